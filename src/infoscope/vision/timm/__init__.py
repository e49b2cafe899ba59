"""timm's plain vision transformers: DINOv2, DeiT-III, MAE and their like."""
