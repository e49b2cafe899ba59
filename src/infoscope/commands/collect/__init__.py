"""Sweeps read back: the jobs of one, what each has left, one table of all of them."""
