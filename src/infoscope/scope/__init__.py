"""Information scope: shifted crops, rankings, distances between activation maps, scores, groups.

Names are looked up when they are first used, so that composing a configuration does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infoscope.scope.api import ContextualDependency, contextual_dependency
    from infoscope.scope.cds import (
        CDS,
        ZeroCounts,
        compute_cds,
        compute_cds_with_zeros,
        compute_chance_ratio,
        compute_d_grid,
        count_zero_maps,
        position_locked_score,
        uniform_chance_score,
    )
    from infoscope.scope.config import EMDMethod, PartitionConfig, RankBy, Rule, ScopeConfig
    from infoscope.scope.crops import scc_size_px, shared_region, shifted_crops
    from infoscope.scope.emd import compute_emd
    from infoscope.scope.examples import choose_example_latents
    from infoscope.scope.partition import Partition, make_partition
    from infoscope.scope.ranking import Ranking, TopImages, rank_images
    from infoscope.scope.scores import Scores
    from infoscope.scope.scoring import ScoringModule, score_latents
    from infoscope.scope.sinkhorn import compute_emd_sinkhorn

_HOMES = {
    "api": (
        "ContextualDependency",
        "contextual_dependency",
    ),
    "cds": (
        "CDS",
        "ZeroCounts",
        "compute_cds",
        "compute_cds_with_zeros",
        "compute_chance_ratio",
        "compute_d_grid",
        "count_zero_maps",
        "position_locked_score",
        "uniform_chance_score",
    ),
    "config": (
        "EMDMethod",
        "PartitionConfig",
        "RankBy",
        "Rule",
        "ScopeConfig",
    ),
    "crops": (
        "scc_size_px",
        "shared_region",
        "shifted_crops",
    ),
    "emd": ("compute_emd",),
    "examples": ("choose_example_latents",),
    "partition": (
        "Partition",
        "make_partition",
    ),
    "ranking": (
        "Ranking",
        "TopImages",
        "rank_images",
    ),
    "scores": ("Scores",),
    "scoring": (
        "ScoringModule",
        "score_latents",
    ),
    "sinkhorn": ("compute_emd_sinkhorn",),
}

__all__ = [
    "CDS",
    "ContextualDependency",
    "EMDMethod",
    "Partition",
    "PartitionConfig",
    "RankBy",
    "Ranking",
    "Rule",
    "ScopeConfig",
    "Scores",
    "ScoringModule",
    "TopImages",
    "ZeroCounts",
    "choose_example_latents",
    "compute_cds",
    "compute_cds_with_zeros",
    "compute_chance_ratio",
    "compute_d_grid",
    "compute_emd",
    "compute_emd_sinkhorn",
    "contextual_dependency",
    "count_zero_maps",
    "make_partition",
    "position_locked_score",
    "rank_images",
    "scc_size_px",
    "score_latents",
    "shared_region",
    "shifted_crops",
    "uniform_chance_score",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
