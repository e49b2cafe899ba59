"""Data sets as they lie on disk, and the procedural scenes."""
