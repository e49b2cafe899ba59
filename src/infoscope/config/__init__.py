"""The configuration: one tree of typed settings, read by Hydra, and what is wrong with it in one sentence."""
