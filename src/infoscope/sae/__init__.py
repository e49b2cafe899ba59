"""Sparse autoencoders: activations, model, losses, training, group removal, checkpoints.

Names are looked up when they are first used, so that composing a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infoscope.sae.activations import SparseActs
    from infoscope.sae.checkpoint import load_sae, load_sae_info, save_sae
    from infoscope.sae.config import Kind, SAEConfig, TokenChoice
    from infoscope.sae.edit import (
        EditMode,
        GroupEditor,
        RemovedShareMeter,
        RemovedShares,
        compute_removed_shares,
        edit_tokens,
    )
    from infoscope.sae.metrics import compute_sae_metrics
    from infoscope.sae.model import SAEOutput, SparseAutoencoder
    from infoscope.sae.module import SAEModule, make_sae
    from infoscope.sae.stream import TokenArray, TokenStream
    from infoscope.sae.train import train_sae

_HOMES = {
    "activations": ("SparseActs",),
    "checkpoint": (
        "load_sae",
        "load_sae_info",
        "save_sae",
    ),
    "config": (
        "Kind",
        "SAEConfig",
        "TokenChoice",
    ),
    "edit": (
        "EditMode",
        "GroupEditor",
        "RemovedShareMeter",
        "RemovedShares",
        "compute_removed_shares",
        "edit_tokens",
    ),
    "metrics": ("compute_sae_metrics",),
    "model": (
        "SAEOutput",
        "SparseAutoencoder",
    ),
    "module": (
        "SAEModule",
        "make_sae",
    ),
    "stream": (
        "TokenArray",
        "TokenStream",
    ),
    "train": ("train_sae",),
}

__all__ = [
    "EditMode",
    "GroupEditor",
    "Kind",
    "RemovedShareMeter",
    "RemovedShares",
    "SAEConfig",
    "SAEModule",
    "SAEOutput",
    "SparseActs",
    "SparseAutoencoder",
    "TokenArray",
    "TokenChoice",
    "TokenStream",
    "compute_removed_shares",
    "compute_sae_metrics",
    "edit_tokens",
    "load_sae",
    "load_sae_info",
    "make_sae",
    "save_sae",
    "train_sae",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
