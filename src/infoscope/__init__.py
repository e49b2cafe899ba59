"""infoscope: the information scope of sparse-autoencoder features in vision transformers.

The public names are looked up when first used: processes that render scenes, and shell completion, need no torch.
"""

from __future__ import annotations

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infoscope.runtime.errors import InputError, InputWarning
    from infoscope.sae.latent_table import load_latents
    from infoscope.sae.loading import load_sae
    from infoscope.stages.contextual_dependency.measure import contextual_dependency
    from infoscope.stages.patch_latents import explain_patch
    from infoscope.stages.prediction_latents import explain_prediction
    from infoscope.stages.similar import find_similar
    from infoscope.vision.load import load_backbone

# Threads of torch that wait for each other leave their core to others. By default they spin on it: with other work on
# the machine, two threads then take many times as long as one. OpenMP reads this when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A library that others load says in every notebook without ipywidgets that bars, which we have of our own, look plain.
warnings.filterwarnings("ignore", message="IProgress not found")

_HOMES = {
    "InputError": "infoscope.runtime.errors",
    "InputWarning": "infoscope.runtime.errors",
    "contextual_dependency": "infoscope.stages.contextual_dependency.measure",
    "explain_patch": "infoscope.stages.patch_latents",
    "explain_prediction": "infoscope.stages.prediction_latents",
    "find_similar": "infoscope.stages.similar",
    "load_backbone": "infoscope.vision.load",
    "load_latents": "infoscope.sae.latent_table",
    "load_sae": "infoscope.sae.loading",
}

__all__ = [
    "InputError",
    "InputWarning",
    "contextual_dependency",
    "explain_patch",
    "explain_prediction",
    "find_similar",
    "load_backbone",
    "load_latents",
    "load_sae",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
