"""How far the evidence of a latent reaches: what is left of its activation when all but a window is replaced."""
