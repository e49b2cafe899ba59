"""What the files in experiments/ share: running a sweep, reading what it made, writing tables and figures."""
