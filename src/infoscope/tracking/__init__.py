"""Where a job's numbers go: Weights & Biases (offline unless asked), CSV files, or nowhere."""
