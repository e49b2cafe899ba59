"""The artifacts of one output folder: what there is, who uses it, what is damaged, what can go."""
