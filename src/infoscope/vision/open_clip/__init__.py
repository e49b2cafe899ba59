"""CLIPs as open_clip makes them, the scenes' own among them, and its contrastive training."""
