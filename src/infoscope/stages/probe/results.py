"""Results of many runs sorted by variant: what was removed, how, and what each probe made of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from infoscope.report.tables import PERCENT, Column, compute_stat
from infoscope.scope.config import Control
from infoscope.scope.matching import find_matching
from infoscope.scope.partition import name_group

Result = Mapping[str, Any]
"""One run: {"sae_seed", "variant": {...}, "metrics": {task: {name: value}}, "frozen_head": the same, "lr": {...}}."""

MODES = {"error_preserving": "error-preserving", "reconstruct": "reconstruct"}
KEPT = "error_preserving"
"""The mode in which the SAE's error stays: findings and most figures speak of it."""
UNEQUAL_MASS = 0.1
"""Groups differ in mass where the largest and the smallest are further apart than this share of both together."""


class Metric(NamedTuple):
    """A number that a probe reports, and its column."""

    task: str
    name: str
    column: Column
    higher_is_better: bool = True

    def read(self, result: Result, source: str = "metrics") -> float:
        """Return the value in one run, NaN if it is not there; `source` is "metrics" or "frozen_head"."""
        value = ((result.get(source) or {}).get(self.task) or {}).get(self.name)
        return math.nan if value is None else float(value)


MAIN_METRICS = (
    Metric("classification/patch_mean", "top1", Column("top1_patch_mean", "top-1 patch mean", **PERCENT)),
    Metric("classification/cls_final", "top1", Column("top1_cls_final", "top-1 final CLS", **PERCENT)),
    Metric("segmentation", "miou", Column("miou", "mIoU", **PERCENT)),
    Metric("depth", "rmse_m", Column("depth_rmse_m", "depth RMSE", digits=3, unit="m"), higher_is_better=False),
)
SECOND_METRICS = (
    Metric("segmentation", "miou_absent_zero", Column("miou_absent_zero", "mIoU, absent as 0", **PERCENT)),
    Metric("segmentation", "pixel_accuracy", Column("pixel_accuracy", "pixel accuracy", **PERCENT)),
    Metric("depth", "rmse_pooled_m", Column("depth_rmse_pooled_m", "pooled RMSE", digits=3, unit="m"), False),
    Metric("depth", "abs_rel", Column("depth_abs_rel", "AbsRel", digits=3), False),
    Metric("depth", "delta1", Column("depth_delta1", "delta 1", **PERCENT)),
)


class AblationRow(NamedTuple):
    """A row of the ablation tables: what was ablated and how; SAE seeds and control draws share it."""

    role: str
    mode: str
    group: str | None = None
    control: str | None = None

    @property
    def group_label(self) -> str:
        """The group's name for display: "high-scope", "band 1 of 4", ..."""
        name, *rest = (self.group or "").split(", ", 1)
        return ", ".join([name_group(name), *rest])

    @property
    def label(self) -> str:
        """For the first column of a table."""
        match self.role:
            case "original":
                return "original tokens"
            case "nothing":
                return "nothing removed"
            case "all":
                return "all removed"
            case "control":
                return f"random, {self.control} of {self.group}"
            case _:
                return f"without {self.group_label}"


def get_variant(result: Result) -> AblationRow:
    """Return the variant of one run."""
    variant = result["variant"]
    role = variant["role"]
    mode = "" if role == "original" else variant["mode"]
    return AblationRow(role, mode, variant.get("group"), variant.get("control"))


def is_matched(variant: AblationRow) -> bool:
    """Whether the variant removes the part of a group that is matched with its counterpart."""
    return find_matching(variant.group or "") is not None


def group_by_variant(results: Sequence[Result], matched: bool = False) -> dict[AblationRow, list[Result]]:
    """Return the runs of each variant, in the order in which tables show them.

    Args:
        matched: give the matched groups alone; else all others, for these have a table of their own.
    """
    runs: dict[AblationRow, list[Result]] = {}
    for result in results:
        if is_matched(variant := get_variant(result)) == matched:
            runs.setdefault(variant, []).append(result)
    groups = list(dict.fromkeys(["high", "low", *(variant.group or "" for variant in runs)]))
    modes = list(dict.fromkeys(["", *MODES, *(variant.mode for variant in runs)]))

    controls = list(dict.fromkeys([*(one.name for one in Control), *(variant.control or "" for variant in runs)]))

    def place(variant: AblationRow) -> tuple[int, int, int]:
        first, last = variant.role in ("original", "nothing"), variant.role == "all"
        group = -1 if first else len(groups) if last else groups.index(variant.group or "")
        control = -1 if variant.control is None else controls.index(variant.control)
        return modes.index(variant.mode), group, control

    return {variant: runs[variant] for variant in sorted(runs, key=place)}


def is_empty(result: Result) -> bool:
    """Whether the variant removes a group that has no features, or is a random control of such a group."""
    variant = result["variant"]
    return bool(variant.get("empty")) or (variant["role"] == "control" and variant.get("n_latents") == 0)


def tell_unequal_mass(runs: Mapping[AblationRow, Sequence[Result]], key: str = "mass_share") -> list[str]:
    """Return a sentence if the groups differ in mass by more than `UNEQUAL_MASS`, else nothing.

    Args:
        runs: of each variant, as `group_by_variant` gives them.
        key: which of a variant's mass shares is meant.
    """
    groups = [variant for variant in runs if variant.role == "group" and variant.mode == KEPT]
    masses = {of.group_label: compute_stat(run["variant"].get(key) for run in runs[of]).mean for of in groups}
    least, most = min(masses.values(), default=0.0), max(masses.values(), default=0.0)
    if not most - least > UNEQUAL_MASS * (most + least):
        return []
    shares = ", ".join(f"{name} {100 * mass:.1f}%" for name, mass in masses.items())
    return [
        f"The groups differ in mass ({shares}): hold each against random groups of its mass, not against the other."
    ]


def at_edge(result: Result, task: str) -> bool:
    """Whether the best learning rate (or L2 strength) lies at an edge of its grid: a better one may lie outside."""
    return bool(((result.get("lr") or {}).get(task) or {}).get("at_edge", False))


def is_unconverged(result: Result, task: str) -> bool:
    """Whether the iterations of L-BFGS did not suffice for the head that was measured."""
    return not ((result.get("lr") or {}).get(task) or {}).get("refit_converged", True)


def find_originals(results: Sequence[Result]) -> dict[int, Result]:
    """Return the run on unedited tokens of each SAE seed."""
    return {result["sae_seed"]: result for result in results if result["variant"]["role"] == "original"}


def present_metrics(results: Sequence[Result], metrics: Sequence[Metric], source: str = "metrics") -> list[Metric]:
    """Return the metrics that at least one run has."""
    return [one for one in metrics if any(math.isfinite(one.read(result, source)) for result in results)]


def read_difference(result: Result, originals: Mapping[int, Result], metric: Metric, source: str = "metrics") -> float:
    """Return the metric's difference from the original tokens of the same SAE seed, NaN without them."""
    original = originals.get(result["sae_seed"])
    return math.nan if original is None else metric.read(result, source) - metric.read(original)
