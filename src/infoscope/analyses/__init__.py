"""What a latent is: measures of latents beside their scope, and how they go with it."""
