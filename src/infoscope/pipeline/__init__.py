"""What depends on what, and how a configuration is run."""
