"""How work is run: the store of artifacts, processes, parts that resume, progress, errors, the machine."""
