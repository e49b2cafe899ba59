"""Frozen vision transformers: tokens after any block, going on from there with edited tokens, contrastive training."""
