"""The tokens of whole image sets: kept on disk in shards, or encoded whenever they are asked for."""
