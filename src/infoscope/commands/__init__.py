"""What makes no artifact: joining sweeps, looking after artifacts, experiments over what sweeps found."""
