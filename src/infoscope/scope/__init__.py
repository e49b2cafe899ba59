"""Information scope: shifted crops, rankings, distances between activation maps, scores, groups."""
