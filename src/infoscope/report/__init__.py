"""Tables and figures: what the artifacts say, for a terminal, a page, a paper and a program."""
