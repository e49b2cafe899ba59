"""What single latents are worth to each task, and what the score says of it beyond how often they fire."""
