"""The launchers of infoscope, `hydra/launcher=local` and `slurm`: Hydra looks for plugins below `hydra_plugins`.

It runs each module here before Python knows it by name, so annotations cannot be postponed in them.
"""
