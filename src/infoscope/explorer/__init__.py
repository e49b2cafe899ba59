"""The explorer: a folder that a browser opens from the disk, to look at every latent, image and group."""
