"""Jobs in other processes: how they end, and what Slurm knows of them. The launchers are in `hydra_plugins`."""
