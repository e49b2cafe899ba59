"""What was scored and how the features split: one column per SAE seed, with landmarks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from infoscope.report.tables import Align, Cell, Column, Stat, Table, Value, compute_stat, format_number, format_percent
from infoscope.scope.agreement import explain_undecided
from infoscope.scope.cds import compute_cds_with_zeros, compute_chance_ratio, count_zero_maps
from infoscope.scope.config import By
from infoscope.scope.partition import ENDS, name_group
from infoscope.scope.ranking import Ranking
from infoscope.stages.score.result import ScopeResult

SAE_METRICS = {
    "fvu": ("FVU, unexplained share of variance", 1.0, 4),
    "l0": ("L0, active features per token", 1.0, 1),
    "dead_share": ("silent on the SAE's held-out tokens (%)", 100.0, 1),
    "cosine": ("cosine of token and reconstruction", 1.0, 4),
    "negative_share": ("share of the activation below 0 (%)", 100.0, 1),
}
"""Rows of the SAE's own metrics: heading, scale, digits. Others are printed under their own names."""


class Quantity(NamedTuple):
    """A row: key and heading, how to compute it for one seed, how to print it."""

    key: str
    heading: str
    compute: Callable[[Any], Value]
    digits: int = 3
    scale: float = 1.0


def compute_mass_share(result: ScopeResult, members: Bool[np.ndarray, " d_sae"]) -> float:
    """Share of all activation mass that these features have; NaN when nothing fires."""
    mass = np.nan_to_num(np.asarray(result.mass, dtype=np.float64))
    return float(mass[members].sum() / mass.sum()) if mass.sum() > 0 else math.nan


def compute_zero_shares(result: ScopeResult) -> tuple[float, float]:
    """Return the shares of ranked pairs in which one map is all zero, and in which both are; NaN without pairs."""
    scores, k = result.scores, result.k_cds
    zeros, n_pairs = count_zero_maps(scores.mass1, scores.mass2, k), int((~np.isnan(scores.mass1[:, :k])).sum())
    if n_pairs == 0:
        return math.nan, math.nan
    return float(zeros.one_sided.sum() / n_pairs), float(zeros.two_sided.sum() / n_pairs)


def make_scope_table(seeds: Sequence[ScopeResult]) -> Table:
    """Return the table: a row per quantity, a column per SAE seed, then mean ± sd when there are several seeds."""
    by = seeds[0].by
    groups = f" and is in no group. {explain_undecided(seeds[0].stability.level)}"
    if by is not By.cds:
        groups = f". Groups are by {by.words}: a feature of which it is not known is in none."
    note = (
        "CDS: 0 = the activation stays where its evidence is, 1 = it moves from corner to corner. Mass: share of the"
        f" sum of activations on the training images. A feature with too few valid pairs has no CDS{groups}"
        " Reliability: random halves of each feature's pairs, Spearman correlation over features, Spearman-Brown"
        " correction; 1: it repeats, 0: noise."
    )
    by_seed = {result.sae_seed: result for result in seeds}
    return make_seed_table("scope", "Information scope of the features", by_seed, _quantities(seeds), [note])


def make_seed_table(
    name: str,
    title: str,
    seeds: Mapping[int, Any],
    sections: Mapping[str, Sequence[Quantity]],
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of quantities by section, a column per SAE seed, then mean ± sd when there are several seeds.

    Args:
        seeds: what the quantities are computed from, by SAE seed.
    """
    columns = [Column("quantity", "", Align.left)]
    columns += [Column(f"seed_{seed}", f"SAE seed {seed}") for seed in seeds]
    if len(seeds) > 1:
        columns.append(Column("mean", "mean ± sd"))
    table = Table(name, title, columns, notes=list(notes))
    for heading, quantities in sections.items():
        table.add_section(heading)
        for quantity in quantities:
            values = [quantity.compute(result) for result in seeds.values()]
            cells = [Cell(value, digits=quantity.digits, scale=quantity.scale) for value in values]
            if len(seeds) > 1:
                cells.append(Cell(_spread(values), digits=quantity.digits, scale=quantity.scale))
            table.add_row(quantity.heading, *cells)
    return table


def _quantities(seeds: Sequence[ScopeResult]) -> dict[str, list[Quantity]]:
    names, by = list(dict.fromkeys(name for result in seeds for name in result.partition.groups)), seeds[0].by
    sections = {
        "features": [
            Quantity("n_latents", "all", lambda r: len(r.cds), 0),
            Quantity("n_scored", "scored", lambda r: int(np.isfinite(r.cds).sum()), 0),
            Quantity("n_unscored", "firing, not scored", lambda r: int(_unscored(r).sum()), 0),
            Quantity("unscored_mass", "mass of those (%)", lambda r: compute_mass_share(r, _unscored(r)), 2, 100),
            Quantity("n_dead", "silent on these images", lambda r: int((r.firing_rate == 0).sum()), 0),
        ],
        "groups": [
            Quantity("rule", "rule", lambda r: r.rule),
            Quantity("gamma", "gamma", lambda r: math.nan if r.partition.gamma is None else r.partition.gamma, 4),
            *(quantity for name in names for quantity in _group_quantities(name, by)),
            *(UNDECIDED if any(result.cds_gamma is not None for result in seeds) else ()),
            *(() if by is By.cds else _ungrouped_quantities(by)),
        ],
        "CDS": [
            Quantity("reliability", "reliability", lambda r: r.reliability),
            Quantity("median_cds", "median", lambda r: _quantile(r.cds, 0.5)),
            Quantity("mean_cds", "mean", lambda r: _mean(r.cds)),
            Quantity("tenth_cds", "a tenth lies below", lambda r: _quantile(r.cds, 0.1)),
            Quantity("ninetieth_cds", "a tenth lies above", lambda r: _quantile(r.cds, 0.9)),
            Quantity("mean_chance", "chance, mean", lambda r: _mean(r.scores.chance(r.k_cds))),
            Quantity(
                "ratio",
                "CDS over chance, median",
                lambda r: _quantile(compute_chance_ratio(r.cds, r.scores.chance(r.k_cds)), 0.5),
            ),
            Quantity("uniform", "chance, two uniform patches", lambda r: r.uniform_chance),
            Quantity("locked", "a position-locked feature", lambda r: r.locked),
            Quantity("one_sided", "pairs with one map all zero (%)", lambda r: compute_zero_shares(r)[0], 2, 100),
            Quantity("two_sided", "pairs with both maps all zero (%)", lambda r: compute_zero_shares(r)[1], 2, 100),
            Quantity("sensitive", "mean when one all-zero map counts as 1", _mean_with_zeros),
        ],
    }
    if quantities := _sae_quantities([result.sae_metrics for result in seeds], lambda result: result.sae_metrics):
        sections["SAE"] = quantities
    return sections


def make_sae_table(metrics: Mapping[int, Mapping[str, float]]) -> Table:
    """Return the SAEs' own metrics, which are given by SAE seed."""
    quantities = _sae_quantities(list(metrics.values()), lambda of_seed: of_seed)
    return make_seed_table("sae", "Sparse autoencoders", metrics, {"": quantities})


class Ranked(NamedTuple):
    """A ranking, and the activation mass of each latent."""

    ranking: Ranking
    mass: Float[np.ndarray, " d_sae"]


def make_ranking_table(ranked: Mapping[int, Ranked]) -> Table:
    """Return what was ranked, by SAE seed."""

    def count_silent(one: Ranked) -> int:
        return int((one.ranking.firing_rate == 0).sum())

    quantities = [
        Quantity("n_images", "images", lambda one: one.ranking.n_images, 0),
        Quantity("n_latents", "latents", lambda one: one.ranking.d_sae, 0),
        Quantity("n_silent", "silent (never fire on these images)", count_silent, 0),
        Quantity("firing_rate", "share of tokens a latent fires on, median (%)", _median_firing_rate, 2, 100),
        Quantity("n_half", "latents with half of the mass", lambda one: _count_heaviest(one.mass, 0.5), 0),
    ]
    return make_seed_table("ranking", "Images ranked for every latent", ranked, {"": quantities})


def _median_firing_rate(one: Ranked) -> float:
    return _quantile(one.ranking.firing_rate[one.ranking.firing_rate > 0], 0.5)


def _count_heaviest(mass: Float[np.ndarray, " d_sae"], share: float) -> int:
    """How many latents, the heaviest first, it takes to reach a share of all mass."""
    total = np.cumsum(np.sort(mass)[::-1])
    return int(np.searchsorted(total, share * total[-1])) + 1 if total[-1] > 0 else 0


def _ungrouped_quantities(by: By) -> list[Quantity]:
    def members(result: ScopeResult) -> np.ndarray:
        return (result.firing_rate > 0) & result.partition.unscored

    return [
        Quantity("n_ungrouped", f"firing, {by.words} not known", lambda r: int(members(r).sum()), 0),
        Quantity("ungrouped_mass", "   mass (%)", lambda r: compute_mass_share(r, members(r)), 1, 100),
    ]


def tell_ungrouped(seeds: Sequence[ScopeResult]) -> str:
    """Return how many features fire and are in no group, for what divides features is not known of them; "": none."""
    members = [(of.firing_rate > 0) & of.partition.unscored for of in seeds]
    n = compute_stat(int(one.sum()) for one in members)
    if n.mean == 0:
        return ""
    fire = compute_stat(int((of.firing_rate > 0).sum()) for of in seeds)
    mass = compute_stat(compute_mass_share(of, one) for of, one in zip(seeds, members, strict=True))
    by, digits = seeds[0].by, 0 if n.mean == round(n.mean) and fire.mean == round(fire.mean) else 1
    why = "not scored" if by is By.cds else f"{by.words} not known"
    return (
        f"{format_number(n.mean, digits)} of {format_number(fire.mean, digits)} features that fire"
        f" ({format_percent(mass)} of the mass) are in no group: {why}"
    )


def _group_quantities(name: str, by: By) -> list[Quantity]:
    above, below = ENDS[by]
    heading = name_group(name) + {above: f" ({by.words} > gamma)", below: f" ({by.words} ≤ gamma)"}.get(name, "")
    key = name.replace(" ", "_")

    def members(result: ScopeResult) -> np.ndarray:
        return result.partition.groups.get(name, np.zeros(len(result.cds), dtype=bool))

    quantities = [
        Quantity(f"n_{key}", heading, lambda r: int(members(r).sum()), 0),
        Quantity(f"{key}_mass", "   mass (%)", lambda r: compute_mass_share(r, members(r)), 1, 100),
    ]
    if name not in ENDS[by]:  # gamma divides those; a band ends at its highest score
        heading = f"   highest {by.words}"
        quantities.append(Quantity(f"{key}_end", heading, lambda r: _quantile(r.measure[members(r)], 1.0), 4))
    if by is not By.cds:
        quantities.append(Quantity(f"{key}_cds", "   median CDS", lambda r: _quantile(r.cds[members(r)], 0.5)))
    return quantities


UNDECIDED = (
    Quantity("n_undecided", "undecided", lambda r: int(r.undecided.sum()), 0),
    Quantity("undecided_mass", "   mass (%)", lambda r: compute_mass_share(r, r.undecided), 1, 100),
)


def _mean_with_zeros(result: ScopeResult) -> float:
    scores = result.scores
    return _mean(compute_cds_with_zeros(scores.emd, scores.mass1, scores.mass2, result.k_cds).values)


def _sae_quantities(
    metrics: Sequence[Mapping[str, float]], read: Callable[[Any], Mapping[str, float]]
) -> list[Quantity]:
    """A row per metric that any SAE has, those of `SAE_METRICS` first; `read` gets them from what the table is of."""
    measured = {name for of_sae in metrics for name in of_sae}
    quantities = []
    for name in [*(name for name in SAE_METRICS if name in measured), *sorted(measured - SAE_METRICS.keys())]:
        heading, scale, digits = SAE_METRICS.get(name, (name, 1.0, 4))

        def compute(result: Any, name: str = name) -> float:
            return float(read(result).get(name, math.nan))

        quantities.append(Quantity(name, heading, compute, digits, scale))
    return quantities


def summarise_scope(result: ScopeResult) -> dict[str, Value]:
    """Return the table's numbers for one seed, unscaled and by key; None where there is none (JSON knows no NaN)."""
    summary: dict[str, Value] = {"sae_seed": result.sae_seed, "k_cds": result.k_cds}
    for quantities in _quantities([result]).values():
        for quantity in quantities:
            value = quantity.compute(result)
            summary[quantity.key] = None if isinstance(value, float) and not math.isfinite(value) else value
    return summary


def _unscored(result: ScopeResult) -> Bool[np.ndarray, " d_sae"]:
    return (result.firing_rate > 0) & ~np.isfinite(result.cds)


def _spread(values: Sequence[Value]) -> Stat | None:
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    return compute_stat(numbers) if len(numbers) == len(values) else None


def _quantile(values: np.ndarray, share: float) -> float:
    finite = values[np.isfinite(values)]
    return float(np.quantile(finite, share)) if len(finite) else math.nan


def _mean(values: np.ndarray) -> float:
    return compute_stat(values).mean
