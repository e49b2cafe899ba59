"""The command that scores an SAE, as far as its file knows on what it was trained; "..." is to be filled in."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import open_clip
import timm
import yaml

from infoscope.config.overrides import quote_override
from infoscope.config.tree import CONF_FOLDER
from infoscope.runtime.calls import make_options
from infoscope.sae.config import TokenChoice
from infoscope.sae.import_config import ImportedConfig, MatrixNames
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin, lacks_statistics
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.hooks import AT_END, POOLED, RESID_POST, SITES
from infoscope.vision.load import compute_model_fingerprint
from infoscope.vision.names import (
    RANDOM,
    BackboneName,
    find_backbone_name,
    name_architecture,
    name_fingerprint,
    name_model,
)

_NEAR = {"open_clip": "clip_b16", "timm": "mae_b16"}
"""A choice of model= of each kind, for architectures that have none of their own."""


def make_score_command(sae: SparseAutoencoder, config: ImportedConfig, stage: str = "score") -> str | None:
    """Return the command that scores an SAE, of one of CLS tokens or pooled embeddings that which measures its
    reconstruction; None: it reads a site that infoscope does not.

    Args:
        config: by which it was read: path and settings.
        stage: what else reads the scores, such as explore.
    """
    origin = sae.origin
    if origin.site not in (None, *SITES):
        return None
    stage = "import_sae" if origin.tokens is TokenChoice.cls or origin.site == POOLED else stage
    model = list(_list_model(origin))
    data = [] if model[0] == "model=scenes_clip" else ["data=image_folder", "data.root=..."]
    if lacks_statistics(origin):
        data.insert(0, "sae.statistics=estimate")
    arguments = [
        "sae=import",
        quote_override("sae.path", config.path),
        *_list_settings(config),
        *model,
        *data,
        f"stage={stage}",
    ]
    return shlex.join(["infoscope", *arguments])


def _list_settings(config: ImportedConfig) -> Iterator[str]:
    """Yield what was given to read it."""
    before = ImportedConfig(path=config.path)
    for name, value in config.given().items():
        if isinstance(value, MatrixNames):
            yield from (quote_override(f"sae.keys.{ours}", theirs) for ours, theirs in value.given().items())
        elif value != getattr(before, name):
            yield quote_override(f"sae.{name}", getattr(value, "name", value))


def _list_model(origin: Origin) -> Iterator[str]:
    """Yield the settings of the backbone, the layer and the site."""
    source, presets = origin.source, _read_presets()
    name = name_fingerprint(origin.backbone) or (find_backbone_name(source.backbone or "") if source else None)
    name = name or name_architecture(origin.backbone)
    chosen, settings = _choose_preset(origin, name)
    yield f"model={chosen or '...'}"
    for key, value in settings.items():
        yield f"model.{key}=..." if value == "..." else quote_override(f"model.{key}", value)
    own_px = _find_px(presets[chosen]) if chosen in presets else None
    if None not in (origin.image_px, own_px) and origin.image_px != own_px:
        yield f"model.image_px={origin.image_px}"
    if origin.site not in AT_END:
        yield f"model.layer={'...' if origin.layer is None else origin.layer}"
    if origin.site not in (None, RESID_POST):
        yield f"model.site={origin.site}"


def _choose_preset(origin: Origin, name: BackboneName | None) -> tuple[str | None, dict[str, Any]]:
    """Return a choice of model=, None where it is not known, and what is to be set in it."""
    presets = _read_presets()
    for preset, config in presets.items():
        is_shipped = config.arch is None and origin.backbone and origin.backbone == _fingerprint(preset)
        if is_shipped or (name is not None and name_model(config) == name):
            return preset, {}
    if name is None or name.kind not in _NEAR:
        return None, {}
    arch = name.arch if name.kind == "open_clip" else ".".join(filter(None, name[1:]))
    alike = [preset for preset, config in presets.items() if (config.arch or "").partition(".")[0] == name.arch]
    tag = name.tag if name.tag and name.tag != RANDOM else "..."
    if alike and not name.tag:
        return alike[0], {"pretrained": tag}
    preset = (alike or [_NEAR[name.kind]])[0]
    return preset, {"name": name.arch, **({} if presets[preset].arch == arch else {"arch": arch}), "pretrained": tag}


@cache
def _read_presets() -> dict[str, ModelConfig]:
    """Return the choices of model= that are one model; of `clip_folder` the folder says which."""
    files = sorted((CONF_FOLDER / "model").glob("*.yaml"))
    read = {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in files}
    of_one = {name: of for name, of in read.items() if of["kind"] != "open_clip" or of["pretrained"] is not None}
    return {name: make_options(ModelConfig, of) for name, of in of_one.items()}


def _fingerprint(preset: str) -> dict[str, Any]:
    return compute_model_fingerprint(_read_presets()[preset])


def _find_px(config: ModelConfig) -> int | None:
    """Return the side of the images that a choice of model= reads; None: not known."""
    if config.image_px is not None or config.arch is None:
        return config.image_px
    if config.kind is ModelKind.open_clip:
        return ((open_clip.get_model_config(config.arch) or {}).get("vision_cfg") or {}).get("image_size")
    known = timm.models.get_pretrained_cfg(config.arch)
    return known.input_size[-1] if known is not None else None
