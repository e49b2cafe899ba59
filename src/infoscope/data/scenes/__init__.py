"""Procedural scenes: pictures drawn from factors, with labels, depth and captions that are known by construction."""
