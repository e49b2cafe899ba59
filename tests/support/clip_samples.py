"""Small CLIPs of random weights, and real architectures cut down to a few thousand numbers."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import torch
from torch import Tensor

from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.open_clip.backbone import OpenClipBackbone

MEAN, STD = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
N_LAYERS, GRID, PATCH_PX, WIDTH = 4, 4, 8, 64


def make_clip_cfg(**vision: Any) -> dict[str, Any]:
    """Return an open_clip model config with a tower of 4 blocks, 4 x 4 patches of 8 px and width 64."""
    own = {"image_size": GRID * PATCH_PX, "layers": N_LAYERS, "width": WIDTH, "head_width": 16, "patch_size": PATCH_PX}
    return {
        "embed_dim": 24,
        "vision_cfg": {**own, **vision},
        "text_cfg": {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1},
    }


def shrink_cfg(arch: str, grid: int = 3, n_layers: int = 3) -> dict[str, Any]:
    """Return the config of a real architecture with all that matters kept: patches, heads, activation, MLP ratio."""
    cfg = copy.deepcopy(open_clip.get_model_config(arch))
    assert cfg is not None
    vision = cfg["vision_cfg"]
    head_width = vision.get("head_width", 64)
    vision.update(image_size=grid * vision["patch_size"], layers=n_layers, width=2 * head_width)
    cfg["text_cfg"] = {"context_length": 8, "vocab_size": 20, "width": 16, "heads": 2, "layers": 1}
    return {**cfg, "embed_dim": 24}


def make_clip(cfg: dict[str, Any] | None = None, seed: int = 0) -> open_clip.CLIP:
    """Return a CLIP in evaluation mode; every weight is moved off its start, so that zeros and ones hide nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**copy.deepcopy(cfg or make_clip_cfg())).eval().requires_grad_(False)
        for parameter in clip.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return clip


def make_backbone(cfg: dict[str, Any] | None = None, seed: int = 0, precision: str = "float32") -> OpenClipBackbone:
    """Return a backbone over `make_clip`."""
    options = {"mean": MEAN, "std": STD, "fingerprint": {"seed": seed}, "precision": precision}
    return OpenClipBackbone(make_clip(cfg, seed), **options).eval().requires_grad_(False)


def make_images(n_images: int, size_px: int = GRID * PATCH_PX, seed: int = 0) -> Tensor:
    """Return uint8 noise [n_images, 3, size_px, size_px]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n_images, 3, size_px, size_px), generator=generator, dtype=torch.uint8)


def check_gradient(backbone: Backbone, tokens: Tokens, layer: int) -> Tensor:
    """Return the gradient of a fixed readout of `resume` to the patches, held against a step along it."""
    prefix, patches = tokens.prefix.clone(), tokens.patches.clone().requires_grad_()
    pooled = backbone.resume(Tokens(prefix, patches), layer, with_gradient=True)
    readout = torch.randn(pooled.shape, generator=torch.Generator().manual_seed(4))
    (gradient,) = torch.autograd.grad((pooled * readout).sum(), patches)
    step = 0.02 * gradient / gradient.norm()
    above, below = (
        (backbone.resume(Tokens(prefix, (patches + sign * step).detach()), layer) * readout).double().sum()
        for sign in (1, -1)
    )
    torch.testing.assert_close(float(above - below) / 2, 0.02 * float(gradient.norm()), rtol=0.05, atol=0)
    return gradient
