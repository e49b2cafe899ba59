"""CLIP's own predictions on edited tokens: what they are, how sure, how far to be trusted, and who is responsible."""
