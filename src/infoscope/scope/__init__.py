"""Information scope: shifted crops, rankings, distances between activation maps, scores, groups."""

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
from infoscope.scope.crops import scc_size_px, shared_region, shifted_crops
from infoscope.scope.emd import compute_emd
from infoscope.scope.examples import choose_example_latents
from infoscope.scope.partition import Partition, PartitionConfig, Rule, make_partition
from infoscope.scope.ranking import RankBy, Ranking, TopImages, rank_images
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import EMDMethod, ScopeConfig, ScoringModule, score_latents
from infoscope.scope.sinkhorn import compute_emd_sinkhorn

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
