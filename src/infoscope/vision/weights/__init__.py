"""Files of weights that any family may read: formats, names, sets, whose they are, whether they fit."""
