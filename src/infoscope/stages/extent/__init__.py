"""stage=extent: how far the evidence of each latent reaches, and how much of it is context."""
