"""SAEs of other toolkits: a module per format, see `base.py`. How their files are found and read: `sae/loading.py`."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from infoscope.sae.formats.base import Format

NAMES = (
    "patchsae",
    "saev",
    "sparsify",
    "overcomplete",
    "visaebench",
    "clipscope",
    "attributing_clip",
    "dncbm",
    "clip_topk_sae",
    "plain",
    "exported",
    "msae",
    "sae_for_vlm",
    "dictionary_learning",
    "prisma",
    "saelens",
)  # fmt: skip
"""The formats, by the names of their modules; a file is of exactly one."""


def load_formats() -> dict[str, Format]:
    """Return the modules by name."""
    return {name: cast(Format, import_module(f"{__name__}.{name}")) for name in NAMES}
