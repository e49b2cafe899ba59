"""How all that is known of the latents goes with their scope."""
