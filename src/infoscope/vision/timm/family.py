"""timm's vision transformers by configuration: tags and local files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig
from infoscope.vision.timm.backbone import TimmBackbone
from infoscope.vision.timm.weights import (
    TimmSource,
    check_arch,
    count_tower_blocks,
    fetch_timm_tag,
    find_timm_source,
    load_timm_weights,
    make_trunk,
)
from infoscope.vision.weights.facts import Facts
from infoscope.vision.weights.local import finish


def fingerprint(config: ModelConfig, trained_folder: Path | None) -> dict[str, Any]:
    """Return what determines a tower's numbers."""
    return _identify(find_timm_source(config), config)


def _identify(source: TimmSource, config: ModelConfig) -> dict[str, Any]:
    return {
        "kind": "timm",
        "arch": source.arch,
        "image_px": source.image_px,
        **source.facts.normalisation,
        "weights": source.weights_id,
        "precision": config.precision,
    }


def count_blocks(config: ModelConfig) -> int | None:
    """Return how many blocks a tower has."""
    return count_tower_blocks(check_arch(config))


def facts(config: ModelConfig, trained_folder: Path | None) -> Facts:
    """Return a tower's mean and std, with the activation of CLIPs, and who says so."""
    return find_timm_source(config).facts


def make(config: ModelConfig, trained_folder: Path | None) -> Backbone:
    """Return the tower that a configuration stands for, its weights loaded."""
    source = find_timm_source(config)
    weights = fetch_timm_tag(source) if source.repo is not None else source.weights
    trunk = make_trunk(source, config.seed)
    notes = load_timm_weights(trunk, weights, source.full_name, config) if weights is not None else ()
    options = {**source.facts.normalisation, "fingerprint": _identify(source, config), "precision": config.precision}
    return finish(TimmBackbone(trunk, **options), config, notes)
