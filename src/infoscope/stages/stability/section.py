"""The report on stability: how far the scores depend on crops, images, k, solver and seed, and how sure each is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from infoscope.report.figure_style import FAINT, GREY, HIGH, INK, LOW, MIDDLE, make_figure, write_empty
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import PERCENT, Align, Cell, Column, Stat, Table, compute_stat, format_number
from infoscope.scope.agreement import Agreement, IntervalSummary, explain_undecided, find_undecided
from infoscope.scope.stability import Kind, StabilityResult

TITLES = {
    Kind.shift: "other crops",
    Kind.diagonal: "other crops",
    Kind.images: "other images",
    Kind.k_cds: "fewer or more images per feature",
    Kind.solver: "another solver",
    Kind.seed: "another SAE",
}
"""Over the rows of the table, in the order of the page."""
MIN_FEATURES = 20
"""Below, the standard error of a rank correlation near 0 is above .23: such rows are marked, and best or worst of
nothing."""
FEW = "†"
MARKS = {FEW: f"fewer than {MIN_FEATURES} features (on average): the rank correlation says little."}
MAX_INTERVALS = 240
"""Features whose intervals are drawn: more would be a smear."""


INTERVAL_TICKS = (0, 0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1)


class Comparison(NamedTuple):
    """A row: one choice made otherwise, one agreement per SAE seed (per pair of seeds, of kind seed)."""

    name: str
    kind: Kind
    heading: str
    agreements: list[Agreement]
    note: str = ""

    @property
    def rho(self) -> float:
        """The mean rank correlation."""
        return self.stat("rank_correlation").mean

    @property
    def is_solid(self) -> bool:
        """Whether its rank correlation is worth a sentence."""
        return math.isfinite(self.rho) and self.stat("n").mean >= MIN_FEATURES

    def stat(self, field: str) -> Stat:
        """Return mean and spread of one of the numbers."""
        return compute_stat([getattr(agreement, field) for agreement in self.agreements])


def make_stability_section(results: Sequence[StabilityResult]) -> ReportSection:
    """Return the table, the figure and the findings.

    Args:
        results: one per SAE seed, at least one; they may be of different seeds only.
    """
    comparisons = collect_comparisons(results)
    caption = (
        "Left: rank correlation of the CDS as configured with the CDS when one choice is made otherwise; a mark per SAE"
        " seed (per pair of seeds), dots are means, hollow where the features are few. Right: features of SAE seed"
        f" {results[0].sae_seed} in the order of their CDS with {100 * results[0].level:g}% bootstrap intervals over"
        " their images."
    )
    return ReportSection(
        name="stability",
        title="Stability of the scores",
        findings=tuple(_describe(results, comparisons)),
        tables={"stability": make_stability_table(results, comparisons)},
        figures={"stability_cds": SectionFigure(partial(draw_stability, results, comparisons), caption)},
        summary={
            **{row.name: {name: row.stat(name).mean for name in Agreement._fields} for row in comparisons},
            "intervals": _average_intervals(results),
        },
    )


def collect_comparisons(results: Sequence[StabilityResult]) -> list[Comparison]:
    """Return the rows in the order of `Kind`; every pair of SAE seeds counts once."""
    rows: dict[str, Comparison] = {}

    def add(name: str, kind: Kind, heading: str, agreement: Agreement, note: str = "") -> None:
        rows.setdefault(name, Comparison(name, kind, heading, [], note)).agreements.append(agreement)

    seen = set()
    for result in results:
        seen.add(f"seed_{result.sae_seed}")
        for variation in result.variations:
            agreement = result.compare(variation)
            if variation.kind is not Kind.seed:
                add(variation.name, variation.kind, variation.setting, agreement, variation.note)
            elif variation.name not in seen:  # else the pair was counted from the other side
                add("seeds", Kind.seed, f"two seeds, cosine > {result.min_cosine:g}", agreement)
                add("seeds_all", Kind.seed, "two seeds, all pairs", result.compare(variation, all_pairs=True))
    return sorted(rows.values(), key=lambda row: list(Kind).index(row.kind))


def make_stability_table(results: Sequence[StabilityResult], comparisons: Sequence[Comparison]) -> Table:
    """Return the table: a row per comparison, mean ± sd over SAE seeds."""
    first = results[0]
    table = Table(
        "stability",
        "Stability of the CDS when one choice is made otherwise",
        [
            Column("comparison", "", Align.left),
            Column("rank_correlation", "rank correlation", digits=3),
            Column("median_difference", "median difference", digits=4),
            Column("same_side", "same side of gamma", **PERCENT),
            Column("n_features", "features", digits=0),
        ],
        notes=[
            f"Each row is against the scores as configured: {first.configured}. Rank correlation: Spearman's. Median"
            " difference: of the absolute differences of CDS. Features: those that have a score both ways.",
            "Rows of k_CDS are means over distances that the configured score partly shares, and other crops are of the"
            " same images: there some agreement is built in.",
            *([] if first.gamma is None else [explain_undecided(first.level)]),
        ],
        marks=MARKS,
    )
    if any(row.kind is Kind.shift for row in comparisons):
        table.notes.append(
            "One gamma is not the same cut at every shift: the larger the shift, the more a feature scores that is"
            " locked to its place in the crop."
        )
    if any(row.kind is Kind.seed for row in comparisons):
        table.notes.append(f"Two seeds: {_describe_matches(results, comparisons)}.")
    table.notes += [f"Not measured, {row.heading}: {row.note}." for row in comparisons if row.note]
    title = None
    for row in comparisons:
        if TITLES[row.kind] != title:
            title = TITLES[row.kind]
            table.add_section(title)
        is_few = 0 < row.stat("n").mean < MIN_FEATURES
        correlation = Cell(row.stat("rank_correlation"), mark=FEW if is_few else "")
        table.add_row(row.heading, correlation, *map(row.stat, ("median_difference", "same_side", "n")))
    return table


def _describe_matches(results: Sequence[StabilityResult], comparisons: Sequence[Comparison]) -> str:
    """How many features of two seeds were paired, and how many pairs are alike enough to be compared."""
    n_alike, n_pairs = (row.stat("n").mean for row in comparisons if row.kind is Kind.seed)
    cosines = [v.cosine for result in results for v in result.variations if v.cosine is not None]
    median = np.nanmedian(np.concatenate(cosines)) if n_pairs else math.nan
    return (
        f"scored features are matched one to one by the cosine of their decoder rows (median {_number(median)}); on"
        f" average {n_alike:,.0f} of {n_pairs:,.0f} pairs lie above {results[0].min_cosine:g}"
    )


def _describe(results: Sequence[StabilityResult], comparisons: Sequence[Comparison]) -> list[str]:
    measured = [row for row in comparisons if row.is_solid]
    ordered = sorted(measured, key=lambda row: row.rho)

    def list_rhos(kind: Kind) -> str:
        return ", ".join(f"{_number(row.rho)} ({row.heading})" for row in measured if row.kind is kind)

    if len(ordered) > 1:
        worst, best = _name(ordered[0]), _name(ordered[-1])
        findings = [f"The order of the features by CDS is kept best under {best} and worst under {worst}."]
    elif ordered:
        findings = [f"The order of the features by CDS under {_name(ordered[0])}."]
    else:
        findings = [f"No comparison has {MIN_FEATURES} features with a score both ways, too few to say what is stable."]
    if shifts := list_rhos(Kind.shift):
        findings.append(f"Between crops that lie further apart the rank correlation is {shifts}.")
    for row in measured:
        if row.name == "held_out":
            difference, share = row.stat("median_difference").mean, row.stat("same_side").mean
            stay = f"; {share:.0%} of the features stay on their side of gamma" if math.isfinite(share) else ""
            findings.append(
                f"On held-out images the rank correlation is {_number(row.rho)} and the median difference"
                f" {_number(difference)}{stay}."
            )
    if any(row.kind is Kind.seed for row in comparisons):
        rhos = list_rhos(Kind.seed)
        found = f"the rank correlation is {rhos}" if rhos else "too few for a rank correlation"
        findings.append(f"Between SAE seeds {_describe_matches(results, comparisons)}: {found}.")
    elif len(results) == 1:
        findings.append("There is one SAE seed, so nothing is known of the agreement between seeds.")
    findings.append(_describe_intervals(results))
    if missing := [row.heading for row in comparisons if not row.is_solid]:
        findings.append(f"Too few features, or not measured: {', '.join(missing)}.")
    return findings


def _name(row: Comparison) -> str:
    return f"{row.heading} (rank correlation {_number(row.rho)})"


def _average_intervals(results: Sequence[StabilityResult]) -> dict[str, float]:
    """Return means over SAE seeds of what an `IntervalSummary` says."""
    values = zip(*(result.intervals for result in results), strict=True)
    return {name: compute_stat(of).mean for name, of in zip(IntervalSummary._fields, values, strict=True)}


def _describe_intervals(results: Sequence[StabilityResult]) -> str:
    width, undecided, high, _ = _average_intervals(results).values()
    first = results[0]
    text = f"The {100 * first.level:g}% bootstrap intervals over k_CDS {first.k_cds} images have a median width of"
    text += f" {_number(width)}; "
    if not math.isfinite(width):
        text = "No feature has a bootstrap interval: none has two images with a distance; "
    if not math.isfinite(undecided):
        return text + "there is no gamma to hold them against."
    text += f"{undecided:.0%} of the scored features are undecided"
    return text + (f" (of those above gamma {high:.0%})." if math.isfinite(high) else ".")


def _number(value: float) -> str:
    return format_number(value, 3)


def draw_stability(results: Sequence[StabilityResult], comparisons: Sequence[Comparison]) -> Figure:
    """Draw rank correlations per comparison, and the first seed's scores with their intervals."""
    figure = make_figure(max(2.8, 1.0 + 0.21 * len(comparisons)))
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_correlations(left, comparisons)
    _draw_intervals(right, results[0])
    return figure


def _draw_correlations(axes: Axes, comparisons: Sequence[Comparison]) -> None:
    values = [np.array([agreement.rank_correlation for agreement in row.agreements]) for row in comparisons]
    if not any(np.isfinite(part).any() for part in values):
        write_empty(axes, "No comparison has\na rank correlation.")
        return
    for place, part in enumerate(values):
        part = part[np.isfinite(part)]
        if not len(part):
            axes.text(0.02, place, "not measured", va="center", color=GREY, fontsize=7.5)
            continue
        axes.plot(part, np.full(len(part), place), "|", color=INK, alpha=0.45, markersize=8, markeredgewidth=0.8)
        fill = INK if comparisons[place].is_solid else "white"
        axes.plot(part.mean(), place, "o", color=INK, markerfacecolor=fill, markersize=5)
    lowest = min(float(np.nanmin(part)) for part in values if np.isfinite(part).any())
    axes.set_xlim(min(0.0, lowest - 0.05), 1.03)
    axes.set_ylim(len(comparisons) - 0.4, -0.6)
    axes.set_yticks(range(len(comparisons)), [row.heading for row in comparisons])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    kinds = [TITLES[row.kind] for row in comparisons]
    for place in range(1, len(kinds)):
        if kinds[place] != kinds[place - 1]:
            axes.axhline(place - 0.5, color=FAINT, linewidth=0.8)
    axes.set_xlabel("Spearman's rank correlation")
    axes.set_title("The order of the features")


def _draw_intervals(axes: Axes, result: StabilityResult) -> None:
    lower, upper = result.interval
    order = np.argsort(result.cds, kind="stable")
    order = order[np.isfinite(lower[order])]
    if not len(order):
        write_empty(axes, "No feature has\na bootstrap interval.")
        return
    place = np.linspace(0, len(order) - 1, min(len(order), MAX_INTERVALS)).round().astype(int)
    shown, gamma = order[place], result.gamma
    undecided = find_undecided(result.cds, result.interval, gamma)[shown]
    colours = np.where(undecided, GREY, MIDDLE if gamma is None else np.where(result.cds[shown] > gamma, HIGH, LOW))
    segments = [[(x, lower[i]), (x, upper[i])] for x, i in zip(place, shown, strict=True)]
    axes.add_collection(LineCollection(segments, colors=colours.tolist(), linewidths=1.0, alpha=0.6))
    axes.scatter(place, result.cds[shown], s=2.5, c=INK, linewidths=0, zorder=3)
    if gamma is not None:
        axes.axhline(gamma, color=INK, linewidth=1.2)
    axes.set_xlim(-0.01 * len(order), 1.01 * len(order))
    highest = float(upper[shown].max()) or 1
    axes.set_yscale("function", functions=(_stretch, np.square))  # most scores, and most gammas, lie near 0
    axes.set_yticks([tick for tick in INTERVAL_TICKS if tick < 1.05 * highest])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(0, 1.05 * highest)
    axes.set_xlabel(f"features of SAE seed {result.sae_seed}, by CDS")
    axes.set_ylabel(f"CDS, {100 * result.level:g}% interval")
    axes.set_title("What the images leave open")
    if gamma is not None:
        names = {LOW: "low-scope", HIGH: "high-scope", GREY: "undecided"}
        handles = [Line2D([], [], color=colour, linewidth=2, label=name) for colour, name in names.items()]
        handles.append(Line2D([], [], color=INK, linewidth=1.2, label=f"gamma, {gamma:.3f}"))
        axes.figure.legend(handles=handles, loc="outside lower right", ncols=4, handlelength=1)


def _stretch(values: np.ndarray) -> np.ndarray:
    return np.sqrt(np.maximum(values, 0))
