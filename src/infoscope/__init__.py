"""infoscope: the information scope of sparse-autoencoder features in vision transformers."""
