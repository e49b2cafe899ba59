"""Made-up inputs for the report's tests: shapes and ranges as the artifacts have them."""

from __future__ import annotations

from typing import Any

import numpy as np

from infoscope.scope.cds import compute_cds
from infoscope.scope.config import PartitionConfig, Rule
from infoscope.scope.outliers import NormSummary
from infoscope.scope.partition import make_partition
from infoscope.scope.scores import Scores
from infoscope.stages.score.example_figure import Example
from infoscope.stages.score.result import ScopeResult

GRID, SHIFT, K_MAX = 12, 1, 8
EFFECTS = {"high": 0.01, "low": -0.25, "all": -0.5, "nothing": -0.03, "control": -0.06}


def make_scope_result(seed: int = 0, n_latents: int = 200, config: PartitionConfig | None = None) -> ScopeResult:
    """A mixture of local and global features; some dead, some firing and unscored, some one-sided pairs."""
    rng = np.random.default_rng(seed)
    centre = np.where(rng.random(n_latents) < 0.8, rng.beta(2, 14, n_latents), rng.beta(8, 14, n_latents))
    emd = np.clip(centre[:, None] + rng.normal(0, 0.03, (n_latents, K_MAX)), 0, 1)
    mass1, mass2 = rng.random((2, n_latents, K_MAX)).astype(np.float32) + 0.1
    mass2[rng.random((n_latents, K_MAX)) < 0.05] = 0  # one-sided
    n_dead, n_unscored = n_latents // 20, n_latents // 20
    mass1[:n_dead] = mass2[:n_dead] = np.nan  # no image
    mass1[n_dead : n_dead + n_unscored] = mass2[n_dead : n_dead + n_unscored] = 0  # two-sided
    emd[~((mass1 > 0) & (mass2 > 0))] = np.nan
    chance = np.where(np.isnan(emd), np.nan, rng.beta(12, 22, emd.shape))
    cds = compute_cds(emd, K_MAX).values
    rate = np.where(np.arange(n_latents) < n_dead, 0, rng.exponential(0.02, n_latents))
    mean_act = (rate * rng.gamma(2, 1, n_latents)).astype(np.float32)
    return ScopeResult(
        sae_seed=seed,
        k_cds=K_MAX,
        cds=cds,
        scores=make_scores(emd, mass1, mass2, chance),
        mass=mean_act,
        firing_rate=rate.astype(np.float32),
        partition=make_partition(cds, mean_act, config or PartitionConfig(gamma=0.2)),
        rule="threshold 0.2",
        sae_metrics={"fvu": 0.112 + 0.001 * seed, "l0": 32.0, "dead_share": 0.05, "cosine": 0.94},
    )


def make_unscored_result() -> ScopeResult:
    """Every feature is without a CDS."""
    n, nan = 10, np.full((10, K_MAX), np.nan)
    cds, zeros = nan[:, 0], np.zeros(10, dtype=np.float32)
    partition = make_partition(cds, zeros, PartitionConfig(rule=Rule.otsu))
    return ScopeResult(0, K_MAX, cds, make_scores(nan, nan, nan, nan), zeros, np.zeros(n), partition, "Otsu")


def make_scores(emd: np.ndarray, mass1: np.ndarray, mass2: np.ndarray, chance_emd: np.ndarray) -> Scores:
    """Distances, with maps in which nothing fires."""
    maps = np.zeros((*emd.shape, 2, GRID, GRID), dtype=np.float32)
    return Scores(emd, mass1, mass2, chance_emd, maps, GRID, SHIFT)


def make_result(seed: int, role: str, mode: str = "error_preserving", **variant: Any) -> dict[str, Any]:
    """One run of one variant, as the probes write it."""
    given = {"group": None, "control": None, "draw": None, "empty": False, "overlap": None} | variant
    rng = np.random.default_rng([seed, len(role), len(mode), len(str(given["group"])), given["draw"] or 0])
    effect = 0.0 if role == "original" else EFFECTS[given["group"] if role == "group" else role]
    effect *= 1.2 if mode == "reconstruct" else 1.0
    effect += rng.normal(0, 0.008)
    share = 0.0 if role in ("original", "nothing") else 1.0 if role == "all" else 0.3
    depth = {"rmse_m": 0.9 - effect, "rmse_pooled_m": 1 - effect, "abs_rel": 0.2 - effect / 4, "delta1": 0.7 + effect}
    metrics = {
        "classification/patch_mean": {"top1": 0.8 + effect},
        "classification/cls_final": {"top1": 0.83 + 0.7 * effect},
        "segmentation": {"miou": 0.42 + effect / 2, "miou_absent_zero": 0.4 + effect / 2, "pixel_accuracy": 0.8},
        "depth": depth,
    }
    return {
        "sae_seed": seed,
        "variant": {"name": role, "mode": mode, "role": role, "n_latents": int(1024 * share), "mass_share": share}
        | {"energy_share": 0.8 * share}
        | given,
        "metrics": metrics,
        "frozen_head": {task: {k: v - 0.02 for k, v in values.items()} for task, values in metrics.items()},
        "lr": {task: {"best": 1e-3, "at_edge": False, "held_out": 0.5} for task in metrics},
    }


def make_results(n_seeds: int = 3, n_draws: int = 5) -> list[dict[str, Any]]:
    """Every variant of the main table."""
    results = []
    for seed in range(n_seeds):
        results += [make_result(seed, "original"), make_result(seed, "nothing", "reconstruct")]
        for mode in ("error_preserving", "reconstruct"):
            results.append(make_result(seed, "all", mode))
            for group in ("high", "low"):
                results.append(make_result(seed, "group", mode, group=group))
                for control in ("size", "mass"):
                    for draw in range(n_draws):
                        given = {"group": group, "control": control, "draw": draw, "overlap": 0.31}
                        results.append(make_result(seed, "control", mode, **given))
    return results


def make_examples(n_pairs: int = 4, patch_px: int = 4) -> list[Example]:
    """Features of both groups on noise: local ones stay, global ones jump; of one it is not known."""
    rng = np.random.default_rng(0)
    side_px = (GRID + SHIFT) * patch_px
    examples = []
    for number, (group, jump) in enumerate((("low", 0), ("high", 2), ("high", 5))):
        maps = np.zeros((n_pairs, 2, GRID, GRID), dtype=np.float32)
        for pair in maps:
            row, column = rng.integers(2, 6, 2)
            pair[0, row : row + 2, column : column + 2] = rng.random((2, 2)) + 0.5
            pair[1, row - 1 + jump : row + 1 + jump, column - 1 : column + 1] = rng.random((2, 2)) + 0.5
        images = rng.integers(0, 256, (n_pairs, side_px, side_px, 3), dtype=np.uint8)
        cds = jump / (np.sqrt(2) * (GRID - SHIFT - 1))
        of_pairs = images, maps, np.full(n_pairs, cds)
        examples.append(Example(100 + number, cds, group, *of_pairs, n_pairs, K_MAX, is_undecided=jump == 2))
    return examples


def make_norms(has_outlier_mode: bool = True) -> NormSummary:
    """Norms around 12, with a few around 60 if asked for."""
    rng = np.random.default_rng(0)
    norms = np.concatenate([rng.normal(12, 1.5, 20_000), rng.normal(60, 5, 150 if has_outlier_mode else 0)])
    counts, edges = np.histogram(norms, 80)
    return NormSummary(counts, edges, 21.0, int((norms > 21).sum()), has_outlier_mode)
