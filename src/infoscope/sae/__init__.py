"""Sparse autoencoders: activations, model, losses, training, group removal, checkpoints."""
