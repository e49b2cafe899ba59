"""Frozen backbones by configuration or by a short form, whichever family they are of."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Sequence
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from infoscope.runtime.calls import convert_all, name_type, say_in_python, speaks_python
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import ProgressCallback, choose_display
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ContrastiveConfig, ModelConfig, ModelKind
from infoscope.vision.preprocessing import check_preprocessing
from infoscope.vision.weights.facts import Facts
from infoscope.vision.weights.local import find_local_file

LOG = logging.getLogger("infoscope")
FAMILIES = {
    "open_clip": "infoscope.vision.open_clip.family",
    "timm": "infoscope.vision.timm.family",
    "planted_registers": "infoscope.vision.planted",
    "planted_facts": "infoscope.vision.planted_facts",
    "context_free": "infoscope.vision.planted",
}
"""The module of every `model.kind`, imported when it is first asked for. A family offers `count_blocks` of a
configuration, and three functions of that and of the artifact of stage train_clip, or None: `fingerprint`, `facts` and
`make`."""
TIMM_PREFIX = "timm:"
"""Before the architecture in the short form of `load_backbone`."""
_IN_PYTHON = {
    r"\btrue or false\b": "True or False",
    r"\bmodel\.kind=timm\b": f'"{TIMM_PREFIX}<arch>:<weights>"',
    r"\bmodel\.(arch|pretrained)=": "",
    r"\bmodel\.arch\b": "the architecture",
    r"\bmodel\.pretrained\b": "the weights",
}
"""How settings of the command line are called in Python that are no arguments there."""
_ARGUMENTS = {f"model.{one.name}" for one in fields(ModelConfig)}


def _get_family(config: ModelConfig) -> Any:
    return import_module(FAMILIES[config.kind.name])


def compute_model_fingerprint(config: ModelConfig, trained_folder: Path | None = None) -> dict[str, Any]:
    """Return what determines a backbone's numbers, without building it; plain JSON types, no paths.

    Args:
        trained_folder: the artifact of stage train_clip where `pretrained=train_clip`.

    Raises:
        InputError: as `load_backbone`.
    """
    return _get_family(config).fingerprint(config, trained_folder)


def count_blocks(config: ModelConfig, clip: ContrastiveConfig) -> int | None:
    """Return how many blocks a model has, from its configuration: weights are neither read nor looked for.

    None: it is of a kind that is refused when it is loaded, such as a ResNet.

    Args:
        clip: how stage train_clip makes the CLIP of `pretrained=train_clip`.

    Raises:
        InputError: an unknown architecture, or a folder that describes none.
    """
    if config.pretrained == "train_clip":
        return clip.layers
    n_blocks: int | None = _get_family(config).count_blocks(config)
    return n_blocks


def find_facts(config: ModelConfig, trained_folder: Path | None = None) -> Facts | None:
    """Return with which activation, mean and std a model is run, and who says so; None for planted backbones.

    Raises:
        InputError: as `load_backbone`.
    """
    return _get_family(config).facts(config, trained_folder)


@speaks_python()
def load_backbone(
    config: ModelConfig | str = "scenes_clip",
    trained_folder: Path | None = None,
    *,
    origin: str | None = None,
    quick_gelu: bool | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights_key: str | None = None,
    image_px: int | None = None,
    site: str | None = None,
    precision: str | None = None,
    seed: int | None = None,
    progress: bool | ProgressCallback = True,
) -> Backbone:
    """Return a frozen backbone in evaluation mode.

    A short form means what the same architecture and weights mean on the command line.

    Args:
        config: a full configuration, or a short form: "scenes_clip", "<arch>:<pretrained>" such as "ViT-B-16:openai" or
            "ViT-B-16:/weights/b16.safetensors", "local-dir:<folder>", or "timm:<arch>:<pretrained>" such as
            "timm:vit_base_patch14_dinov2:lvd142m".
        trained_folder: the artifact of stage train_clip where `pretrained=train_clip`.
        origin: the tag of open_clip's that a file comes from, such as "openai": whose activation, mean and std it has.
        quick_gelu: whether the activation is QuickGELU.
        mean, std: of the preprocessing, RGB values in 0..1.
        weights_key: which set of weights is read of a file that holds several, such as "teacher".
        image_px: side of the input; another one than the model's own interpolates its positions.
        site: "resid_post", the residual stream after a block, or "post_norm", after the last block and the final norm.
        precision: "float32", or "bfloat16" by autocast.
        seed: of the weights with "<arch>:random".
        progress: True says on stderr, every half minute, that it goes on; False does not.

    Raises:
        InputError: unknown architecture or tag, weights that are missing, damaged or of another architecture, no
            network and no cached weights, a tower that is not a plain vision transformer, or a file that does not say
            with which activation, mean or std it was trained.
    """
    given = {"origin": origin, "quick_gelu": quick_gelu, "weights_key": weights_key}
    given |= {"image_px": image_px, "site": site, "precision": precision, "seed": seed}
    if mean is not None or std is not None:
        given |= check_preprocessing(mean, std, "")._asdict()
    options = convert_all(ModelConfig, {name: value for name, value in given.items() if value is not None})
    show = choose_display(progress)
    if isinstance(config, ModelConfig):
        with show.bar("loading the backbone"):
            return _tell_notes(make_backbone(replace(config, **options) if options else config, trained_folder))
    if not isinstance(config, str):
        raise InputError(f'Expected a name such as "scenes_clip" or "ViT-B-16:openai", got {name_type(config)}.')
    try:
        config = _read_short_form(config, options)
        facts = find_facts(config, trained_folder)
        if facts is not None and facts.is_contradicted:
            warnings.warn(_speak_python(f"{config.arch or config.pretrained} runs with {facts.words}."), stacklevel=3)
        with show.bar("loading the backbone"):
            return _tell_notes(make_backbone(config, trained_folder))
    except InputError as error:
        raise InputError(_speak_python(str(error))) from error


def _tell_notes(backbone: Backbone) -> Backbone:
    """Log what a user of Python should know of the weights: the command line says it itself."""
    if backbone.notes:
        LOG.warning(_speak_python(backbone.notes))
    return backbone


def make_backbone(config: ModelConfig, trained_folder: Path | None = None) -> Backbone:
    """Return the frozen backbone of a configuration, see `load_backbone`; its notes are not printed."""
    made: Backbone = _get_family(config).make(config, trained_folder)
    return made.read_at(config.site).eval().requires_grad_(False)


def _read_short_form(text: str, options: dict[str, Any]) -> ModelConfig:
    if text == "scenes_clip":
        return ModelConfig(**options)
    if text.startswith("local-dir:"):
        return ModelConfig("local-dir", pretrained=text, **options)
    kind = ModelKind.timm if text.startswith(TIMM_PREFIX) else ModelKind.open_clip
    arch, _, pretrained = text.removeprefix(TIMM_PREFIX).partition(":")
    if arch == "hf-hub":
        arch, pretrained = text, "openai"  # refused by its name
    if not arch or not pretrained:
        raise InputError(
            f'Expected "scenes_clip", "local-dir:<folder>" or "<arch>:<weights>", such as "ViT-B-16:openai" or'
            f' "{TIMM_PREFIX}vit_base_patch14_dinov2:lvd142m", got {text!r}.'
        )
    if "origin" in options and pretrained != "random" and find_local_file(pretrained) is None:
        raise InputError(f"origin says whose weights a file holds, but {pretrained} is a tag: leave it out.")
    return ModelConfig(Path(arch).name, kind=kind, arch=arch, pretrained=pretrained, **options)


def _speak_python(sentence: str) -> str:
    """Return a sentence that names the arguments of `load_backbone` in place of the settings of the command line."""
    for settings, words in _IN_PYTHON.items():
        sentence = re.sub(settings, words, sentence)
    return say_in_python(sentence, _ARGUMENTS)
