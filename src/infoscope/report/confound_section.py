"""The section on confounds: what the score goes with, and whether it tells known-global from known-local features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from infoscope.report.confound_figures import (
    CONFOUNDS,
    EFFECTS,
    compute_rank_means,
    draw_cds_by_rank,
    draw_cds_confounds,
)
from infoscope.report.inputs import ScopeResult
from infoscope.report.removal import make_matched_table
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Align, Cell, Column, Stat, Table, compute_stat, format_number
from infoscope.report.variants import (
    MAIN_METRICS,
    Result,
    find_originals,
    group_by_variant,
    is_empty,
    present_metrics,
    read_difference,
)
from infoscope.scope.confounds import DIFFUSE_SUPPORT, IMAGE_CUTS, LABEL_CUTS, MIN_IMAGES, ConfoundResult
from infoscope.scope.separation import (
    BINS_PER_OCTAVE,
    SCORES,
    SUBSETS,
    Auroc,
    compute_separation,
    compute_spearman,
    name_matched,
)

MIN_GROUP = 10
"""With fewer features in a group, on average over SAE seeds, nothing is said of an AUROC: intervals are too short."""
MEDIUM_RHO = 0.3
"""Rank correlations from here on are called out ("medium" by Cohen, 1988)."""
SCORE_NAMES = {"cds": "CDS", "firing_rate": "firing frequency", "support": "support", "peak": "peak"}
_QUADRANTS = {
    "global_compact": ("known_global", "compact"),
    "global_diffuse": ("known_global", "diffuse"),
    "local_compact": ("known_local", "compact"),
    "local_diffuse": ("known_local", "diffuse"),
}


class Correlation(NamedTuple):
    """Of the CDS with a property, one value per SAE seed.

    rho: Spearman's; n: over how many features; at_equal_rate: the partial one, given the firing frequency.
    """

    rho: list[float]
    n: list[int]
    at_equal_rate: list[float]

    @property
    def mean(self) -> float:
        """Of rho, over seeds."""
        return compute_stat(self.rho).mean


Separations = Sequence[Mapping[str, Mapping[str, Auroc]]]
"""Per SAE seed, as `compute_separation` gives it."""


def make_confound_section(
    scopes: Sequence[ScopeResult], confounds: Mapping[int, ConfoundResult], results: Sequence[Result]
) -> ReportSection:
    """Return the section.

    Args:
        scopes: one result per SAE seed.
        confounds: by SAE seed, one for each of `scopes`.
        results: as for the removal tables; those of matched frequency have their table here.
    """
    pairs = [(scope, confounds[scope.sae_seed]) for scope in scopes]
    has_truth = any(found.has_truth for _, found in pairs)
    correlations = {key: _correlate(key, pairs) for key in (*CONFOUNDS, *(EFFECTS if has_truth else ()))}
    by_rank = _compare_ranks(scopes)
    tables = {"confounds": _make_confound_table(correlations, by_rank)}
    separations = [compute_separation(scope.cds, found) for scope, found in pairs] if has_truth else []
    medians = {name: _compute_quadrant(pairs, *parts) for name, parts in _QUADRANTS.items()} if has_truth else {}
    findings: list[str] = []
    if has_truth:
        tables["auroc"] = _make_auroc_table(separations)
        findings += [
            _say_auroc(separations),
            _say_effects(correlations, pairs),
            _say_baselines(separations),
            _say_diffuse(separations, medians),
        ]
    else:
        findings.append(
            "The data have no global factors and label maps, so which features are global is not known: there is no"
            " AUROC."
        )
    findings += [_say_correlations(correlations), _say_ranks(by_rank)]
    if (matched := make_matched_table(results)) is not None:
        tables["removal_matched"] = matched
        findings.append(_say_matched(results))
    colours = " Orange: known-global, blue: known-local, grey: undeclared." if has_truth else ""
    return ReportSection(
        name="confounds",
        title="Confounds of the score",
        findings=tuple(findings),
        tables=tables,
        figures={
            "cds_confounds": SectionFigure(
                partial(draw_cds_confounds, scopes, confounds),
                f"Each feature's CDS against how often, how strongly and how widely it fires.{colours}",
            ),
            "cds_by_rank": SectionFigure(
                partial(draw_cds_by_rank, scopes, confounds),
                "Mean distance between the two crops at each rank, over the features that have one there; chance: the"
                " same maps between two different images.",
            ),
        },
        summary=_summarise(correlations, by_rank, separations, medians),
    )


def _correlate(key: str, pairs: Sequence[tuple[ScopeResult, ConfoundResult]]) -> Correlation:
    found = Correlation([], [], [])
    for scope, confounds in pairs:
        values = np.asarray((CONFOUNDS | EFFECTS)[key].read(scope, confounds), dtype=np.float64)
        rho, n = compute_spearman(values, scope.cds)
        partial_rho, _ = compute_spearman(values, scope.cds, given=confounds.properties.firing_rate)
        found.rho.append(rho)
        found.n.append(n)
        found.at_equal_rate.append(partial_rho)
    return found


def _compare_ranks(scopes: Sequence[ScopeResult]) -> dict[str, list[tuple[float, int]]]:
    """Per quantity, (value, number of features) of each seed; first against last rank over features with both."""
    found: dict[str, list[tuple[float, int]]] = {"first": [], "last": [], "chance": [], "spearman": []}
    for scope in scopes:
        first, last = scope.emd[:, 0], scope.emd[:, scope.k_cds - 1]
        both = np.isfinite(first) & np.isfinite(last)
        found["first"].append((_mean(first[both]), int(both.sum())))
        found["last"].append((_mean(last[both]), int(both.sum())))
        chance = compute_rank_means(scope.chance_emd[:, : scope.k_cds], both)
        found["chance"].append((_mean(chance), int(both.sum())))
        found["spearman"].append(compute_spearman(first, last))
    return found


def _make_confound_table(
    correlations: Mapping[str, Correlation], by_rank: Mapping[str, Sequence[tuple[float, int]]]
) -> Table:
    columns = [
        Column("quantity", "", Align.left),
        Column("value", "value"),
        Column("at_equal_rate", "at equal firing frequency"),
        Column("n_latents", "features", digits=0),
    ]
    table = Table(
        "confounds",
        "What the CDS goes with",
        columns,
        notes=[
            "At equal firing frequency: partial rank correlation. Support: share of the grid's patches on which a"
            " feature fires, given that it fires in the image. Participation ratio: the same by (sum a)^2 / sum a^2."
            " One-sided zeros: pairs in which the map of one crop alone is all zero. First and last rank: over the"
            " features that have a distance at both.",
        ],
    )
    if "image_effect" in correlations:
        table.notes.append(
            "Effect: share of variance explained (epsilon squared): of the image means by the global factor that"
            " explains most, of the patches within images by their labels; over features that fire in at least"
            f" {MIN_IMAGES} images."
        )
    table.add_section("Spearman correlation of the CDS with")
    for key, found in correlations.items():
        if key == "image_effect":
            table.add_section("and with what makes features global or local, without cuts")
        equal = None if key == "firing_rate" else compute_stat(found.at_equal_rate)
        table.add_row((CONFOUNDS | EFFECTS)[key].name, compute_stat(found.rho), equal, compute_stat(found.n))
    table.add_section("distance by rank (EMD / largest distance)")
    names = {
        "first": "mean at rank 1",
        "last": "mean at the last rank of the CDS",
        "chance": "chance of the same features, mean over ranks",
        "spearman": "Spearman correlation of first and last rank",
    }
    for key, name in names.items():
        value, n = _split(by_rank[key])
        table.add_row(name, Cell(value, digits=2 if key == "spearman" else 3), None, n)
    return table


def _split(pairs: Sequence[tuple[float, int]]) -> tuple[Stat, Stat]:
    return compute_stat(value for value, _ in pairs), compute_stat(n for _, n in pairs)


def _make_auroc_table(separations: Separations) -> Table:
    columns = [
        Column("subset", "features", Align.left),
        Column("n_global", "known-global", digits=0),
        Column("n_local", "known-local", digits=0),
        Column("cds", "CDS"),
        Column("cds_low", "95 % from"),
        Column("cds_high", "to"),
        *(Column(name, SCORE_NAMES[name], optional=True) for name in SCORES[1:]),
    ]
    table = Table(
        "auroc",
        "Known-global against known-local features, AUROC",
        columns,
        notes=[
            "AUROC: the chance that a random known-global feature has the higher value, ties counting half; 0.5 tells"
            " nothing apart, below it the order is reversed. Interval: both groups drawn anew 1,000 times, the mean"
            " over SAE seeds in each draw.",
            "Declared by a formula that does not read the score, from the training images. Known-global: a global"
            f" factor explains at least {IMAGE_CUTS[1]:.0%} of the variance of the image means (epsilon squared), the"
            f" labels of the patches less than {LABEL_CUTS[0]:.0%} of that within images; known-local: the labels at"
            f" least {LABEL_CUTS[1]:.0%}, every factor less than {IMAGE_CUTS[0]:.0%}. Features that fire in fewer than"
            f" {MIN_IMAGES} images take no part. Compact: support below {DIFFUSE_SUPPORT:.0%}"
            " of the grid. Matched frequency: equally many of both groups in every"
            f" {'half ' if BINS_PER_OCTAVE == 2 else ''}octave of firing rate, one draw.",
        ],
    )
    for subset, name in SUBSETS.items():
        low, high = _interval(separations, subset)
        n_global, n_local = _count(separations, subset)
        values = {score: _auroc(separations, subset, score) for score in SCORES}
        table.add_row(name, n_global, n_local, values["cds"], low, high, *(values[score] for score in SCORES[1:]))
    return table


def _auroc(separations: Separations, subset: str, score: str = "cds") -> Stat:
    return compute_stat(found[subset][score].value for found in separations)


def _count(separations: Separations, subset: str) -> tuple[Stat, Stat]:
    found = [found[subset]["cds"] for found in separations]
    return compute_stat(one.n_positive for one in found), compute_stat(one.n_negative for one in found)


def _interval(separations: Separations, subset: str) -> tuple[float, float]:
    """The middle 95 % of the mean over seeds; seeds with an empty group are left out."""
    draws = [one.draws for found in separations if math.isfinite((one := found[subset]["cds"]).value)]
    if not draws:
        return math.nan, math.nan
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return float(low), float(high)


def _compute_quadrant(
    pairs: Sequence[tuple[ScopeResult, ConfoundResult]], known: str, support: str
) -> tuple[Stat, Stat]:
    """Median CDS of the known features of one support, and how many those are, over SAE seeds."""
    values = []
    for scope, found in pairs:
        chosen = scope.cds[getattr(found, known) & getattr(found, support)]
        values.append(chosen[np.isfinite(chosen)])
    return compute_stat(np.median(v) if len(v) else math.nan for v in values), compute_stat(len(v) for v in values)


def _too_few(separations: Separations, subset: str) -> bool:
    return min(n.mean for n in _count(separations, subset)) < MIN_GROUP


def _write_auroc(separations: Separations, subset: str) -> str:
    n_global, n_local = (format_number(n.mean, 0) for n in _count(separations, subset))
    sizes = f"{n_global} against {n_local} features"
    value = _auroc(separations, subset).mean
    if not math.isfinite(value):
        return f"no AUROC ({sizes})"
    low, high = _interval(separations, subset)
    return f"AUROC {value:.2f} (95 % interval {low:.2f} to {high:.2f}; {sizes})"


def _judge(separations: Separations, subset: str) -> str:
    if _too_few(separations, subset):
        return "too few to say anything"
    low, high = _interval(separations, subset)
    if low > 0.5:
        return "it ranks known-global features higher"
    return "it ranks them the wrong way round" if high < 0.5 else "it does not tell them apart"


def _say_auroc(separations: Separations) -> str:
    parts = [
        f"{name}: {_write_auroc(separations, subset)}, {_judge(separations, subset)}"
        for subset, name in (("all", "all"), ("compact", "compact ones"), ("matched", "at matched firing frequency"))
    ]
    return f"The CDS as a test of known-global against known-local features. {'. '.join(map(_capitalise, parts))}."


def _say_effects(correlations: Mapping[str, Correlation], pairs: Sequence[tuple[ScopeResult, ConfoundResult]]) -> str:
    told, with_rate = [], []
    for key, expected in (("image_effect", 1), ("label_effect", -1)):
        name, found = EFFECTS[key].name, correlations[key]
        equal = compute_stat(found.at_equal_rate).mean
        if not math.isfinite(found.mean):
            continue
        decisive = equal if math.isfinite(equal) else found.mean
        verdict = "as it should" if expected * decisive >= MEDIUM_RHO else "not as it should"
        given = f", {_signed(equal)} at equal firing frequency" if math.isfinite(equal) else ""
        told.append(f"with the {name} {_signed(found.mean)}{given} ({verdict})")
        rates = [
            compute_spearman(EFFECTS[key].read(scope, confounds), confounds.properties.firing_rate)[0]
            for scope, confounds in pairs
        ]
        with_rate.append(f"the {name} {_signed(compute_stat(rates).mean)}")
    if not told:
        return "No feature has both a CDS and an effect of factors or labels."
    rates = " and ".join(with_rate)
    return f"Without cuts the CDS goes (Spearman) {' and '.join(told)}; the firing frequency with {rates}."


def _say_baselines(separations: Separations) -> str:
    values = {score: _auroc(separations, "all", score).mean for score in SCORES}
    if _too_few(separations, "all"):
        return "Too few features are declared to compare the CDS with firing frequency, support and peak."
    others = {SCORE_NAMES[score]: value for score, value in values.items() if score != "cds"}
    strongest = max(others, key=lambda name: abs(others[name] - 0.5))
    told = ", ".join(f"{name} {value:.2f}" for name, value in others.items())
    adds = abs(values["cds"] - 0.5) > abs(others[strongest] - 0.5)
    return (
        f"On the same features the AUROC of what should not do the score's work: {told}. The CDS, {values['cds']:.2f},"
        f" lies {'farther from 0.5 than any of them' if adds else f'no farther from 0.5 than {strongest} does'}."
    )


def _say_diffuse(separations: Separations, medians: Mapping[str, tuple[Stat, Stat]]) -> str:
    expected = (
        "A feature that fires evenly everywhere scores near 0 by definition, whatever it knows, so diffuse known-global"
        " features are expected to score low and the CDS to fail on them:"
    )
    (diffuse, n_diffuse), (compact, n_compact) = medians["global_diffuse"], medians["global_compact"]
    if n_diffuse.mean < MIN_GROUP or n_compact.mean < MIN_GROUP:
        return (
            f"{expected} with {format_number(n_diffuse.mean, 0)} diffuse and {format_number(n_compact.mean, 0)} compact"
            " known-global features there are too few to say."
        )
    seen = "they do score lower" if diffuse.mean < compact.mean else "they do not score lower"
    text = f"{expected} {seen} (median {diffuse.mean:.3f}) than compact known-global ones ({compact.mean:.3f})"
    judged = _judge(separations, "diffuse")
    return f"{text}; diffuse features alone, {_write_auroc(separations, 'diffuse')}, {judged}."


def _say_correlations(correlations: Mapping[str, Correlation]) -> str:
    finite = {key: correlations[key].mean for key in CONFOUNDS if math.isfinite(correlations[key].mean)}
    if not finite:
        return "No correlation of the CDS with other properties can be computed."
    strong = sorted((key for key in finite if abs(finite[key]) >= MEDIUM_RHO), key=lambda key: -abs(finite[key]))
    if not strong:
        return f"No measure of how often, how strongly or how widely features fire goes with the CDS by {MEDIUM_RHO}."
    told = ", ".join(f"{CONFOUNDS[key].name} {_signed(finite[key])}" for key in strong)
    text = f"The CDS goes with (Spearman, {MEDIUM_RHO} or more): {told}."
    if "firing_rate" in strong:
        rarer = "rarer" if finite["firing_rate"] < 0 else "more frequent"
        text += f" High-scope features are also the {rarer} ones: compare groups at matched frequency."
    return text


def _say_ranks(by_rank: Mapping[str, Sequence[tuple[float, int]]]) -> str:
    first, last, chance, rho = (
        compute_stat(v for v, _ in by_rank[key]).mean for key in ("first", "last", "chance", "spearman")
    )
    if not math.isfinite(first):
        return "No feature has a distance at the first and at the last rank."
    agreement = f" (Spearman {format_number(rho, 2)} between them)" if math.isfinite(rho) else ""
    return (
        f"By rank: the mean distance is {first:.3f} at the first and {last:.3f} at the last rank{agreement}; chance is"
        f" {format_number(chance, 3)}."
    )


def _say_matched(results: Sequence[Result]) -> str:
    runs = {variant.group: many for variant, many in group_by_variant(results, matched=True).items()}
    groups = {name: [r for r in runs.get(name_matched(name), []) if not is_empty(r)] for name in ("high", "low")}
    if not all(groups.values()):
        return "High- and low-scope features share no firing frequency, so no groups of matched frequency exist."
    originals, costs = find_originals(results), {"high": 0, "low": 0}
    told = []
    for metric in present_metrics(results, MAIN_METRICS):
        sign, column = (1 if metric.higher_is_better else -1), metric.column
        change = {
            name: compute_stat(read_difference(run, originals, metric) for run in many).mean
            for name, many in groups.items()
        }
        if not all(math.isfinite(value) for value in change.values()):
            continue
        costs["low" if sign * change["low"] < sign * change["high"] else "high"] += 1
        high, low = (format_number(column.scale * change[name], column.digits, signed=True) for name in ("high", "low"))
        unit = "points" if column.unit == "%" else column.unit
        told.append(f"{column.heading} {low} without low-scope, {high} without high-scope {unit}")
    if not told:
        return "At matched firing frequency nothing was measured against the original tokens."
    n = compute_stat(run["variant"].get("n_latents") for run in groups["low"]).mean
    return (
        f"At matched firing frequency ({format_number(n, 0)} features in each group): {'; '.join(told)}. Removing the"
        f" low-scope ones costs more in {costs['low']} of {len(told)} metrics."
    )


def _summarise(
    correlations: Mapping[str, Correlation],
    by_rank: Mapping[str, Sequence[tuple[float, int]]],
    separations: Separations,
    medians: Mapping[str, tuple[Stat, Stat]],
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "spearman": {
            key: _as_json(compute_stat(found.rho))
            | {
                "at_equal_rate": _finite(compute_stat(found.at_equal_rate).mean),
                "n": _finite(compute_stat(found.n).mean),
            }
            for key, found in correlations.items()
        },
        "by_rank": {key: _as_json(_split(pairs)[0]) for key, pairs in by_rank.items()},
        "auroc": {},
        "median_cds": {name: _as_json(stat) | {"n": _finite(n.mean)} for name, (stat, n) in medians.items()},
    }
    for subset in SUBSETS if separations else ():
        low, high = _interval(separations, subset)
        n_global, n_local = _count(separations, subset)
        summary["auroc"][subset] = {
            **{score: _as_json(_auroc(separations, subset, score)) for score in SCORES},
            "cds_interval": [_finite(low), _finite(high)],
            "n_global": _finite(n_global.mean),
            "n_local": _finite(n_local.mean),
        }
    return summary


def _as_json(stat: Stat) -> dict[str, float | None]:
    return {"mean": _finite(stat.mean), "sd": _finite(stat.sd)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _signed(value: float) -> str:
    return format_number(value, 2, signed=True)


def _capitalise(text: str) -> str:
    return text[0].upper() + text[1:]


def _mean(values: np.ndarray) -> float:
    return compute_stat(values).mean
