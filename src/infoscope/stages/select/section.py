"""The section on selection: what probes read from n kept features, by the rule that chose them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter, NullLocator

from infoscope.probes.selection import BY_ACTIVATION, BY_CHANCE, BY_PROBE, BY_WORTH
from infoscope.probes.worth import ALONE, WITH, WITHOUT
from infoscope.report.figure_style import FAINT, GREY, HIGH, INK, LOW, MIDDLE, draw_means, make_empty, make_panels
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import PERCENT, Align, Cell, Column, Stat, Table, compute_stat
from infoscope.scope.config import By
from infoscope.scope.partition import name_group
from infoscope.stages.probe.results import MAIN_METRICS, Metric, Result, present_metrics
from infoscope.stages.probe.tables import EDGE, MARKS, UNCONVERGED, make_metric_columns, metric_cell

PROBE_OF = {"classification/cls_final": "classification/patch_mean"}
"""Whose weights chose the features behind a metric, where its own head is not linear in the latents."""
REFERENCES = {"original": "original tokens", "nothing": "all features kept", "all": "no feature kept"}
LINES = {"nothing": (0, (5, 2)), "all": (0, (1, 1.5))}
"""How references are drawn."""
PREDICTED_BY = {
    WITHOUT: "frequency, MS, class counts",
    WITH: "frequency, MS, class counts, CDS",
    ALONE: "CDS",
    "firing_rate": "frequency",
    "ms": "MS",
    "strong_rate": "strong patches",
    "top_class_share": "share of its top class",
    "n_classes_held": "classes that it is a latent of",
}
"""In words."""
LABELS = {BY_ACTIVATION: "most active of all", BY_CHANCE: "random", BY_PROBE: "heaviest in the probe"} | {
    f"{BY_WORTH} {rule}": f"most worth by {words}" for rule, words in PREDICTED_BY.items()
}
COLOURS = {BY_ACTIVATION: INK, BY_CHANCE: GREY, BY_PROBE: "#CC79A7"}
OF_WORTH = ("#009E73", "#E69F00", "#56B4E9", "#0072B2", "#D55E00", "#F0E442", "#8C564B", "#7F3C8D")

Runs = dict[int, dict[str, list[Result]]]
"""{features kept: {rule: runs over SAE seeds and draws}}, rules in the order of the table."""


def make_selection_section(results: Sequence[Result], notes: Sequence[str] = (), by: By = By.cds) -> ReportSection:
    """Return the table, the figure and the findings.

    Args:
        results: of every SAE seed, the variants of `make_selection_ablations` with the original tokens, the plain
            reconstruction and everything removed.
        notes: more below the table.
        by: what bands are of.
    """
    metrics = present_metrics(results, MAIN_METRICS)
    runs = collect_runs(results)
    n_draws = len({result["variant"]["draw"] for result in results if result["variant"]["group"] == BY_CHANCE})
    caption = (
        "What probes read when the tokens are decoded from a few features alone, by the rule that chose them: means"
        f" over SAE seeds (and {n_draws} draws), shades are ± one standard deviation. Dashed: every feature kept;"
        " dotted: none."
    )
    return ReportSection(
        name="selection",
        title="Keeping a few features",
        findings=tuple(_describe(results, runs, metrics, by)),
        tables={"selection": make_selection_table(results, runs, metrics, notes, by)},
        figures={"selection": SectionFigure(lambda: draw_selection(results, runs, metrics), caption)},
        summary={
            str(n): {
                rule: {metric.column.key: _read(runs, n, rule, metric).mean for metric in metrics}
                for rule in list_rules({n: of})
            }
            for n, of in runs.items()
        },
    )


def collect_runs(results: Sequence[Result]) -> Runs:
    """Return the runs that keep a few features, by how many and by which rule."""
    runs: Runs = {}
    d_sae = max(result["variant"]["n_latents"] for result in results)  # where everything is removed
    for result in results:
        variant = result["variant"]
        if variant["role"] == "kept":
            runs.setdefault(d_sae - variant["n_latents"], {}).setdefault(variant["group"], []).append(result)
    return dict(sorted(runs.items()))


def list_rules(runs: Runs) -> list[str]:
    """Return the rules in the order of tables and figures; what one does for each task is one."""
    rules = (rule.rpartition(" ")[0] if is_of_task(rule) else rule for of in runs.values() for rule in of)
    return sorted(dict.fromkeys(rules), key=is_of_task)


def is_of_task(rule: str) -> bool:
    """Whether a rule chooses for every task anew."""
    return rule.startswith((BY_PROBE, BY_WORTH))


def find_runs(runs: Runs, n_kept: int, rule: str, metric: Metric) -> list[Result]:
    """Return the runs behind a number: some rules have a choice of their own for every task."""
    if is_of_task(rule):
        task = PROBE_OF.get(metric.task, metric.task) if rule == BY_PROBE else metric.task
        rule = f"{rule} {task}"
    return runs[n_kept].get(rule, [])


def name_rule(rule: str) -> str:
    """Return a rule for display."""
    return LABELS.get(rule, f"most active of {name_group(rule)}")


def make_selection_table(
    results: Sequence[Result], runs: Runs, metrics: Sequence[Metric], notes: Sequence[str] = (), by: By = By.cds
) -> Table:
    """Return the table: a section per number of features kept, a row per rule, mean ± sd over seeds and draws."""
    n_bands = sum(rule not in LABELS for rule in list_rules(runs))
    table = Table(
        "selection",
        "Keeping a few features",
        [
            Column("rule", "kept", Align.left),
            Column("mass_kept", "mass kept", **PERCENT),
            *make_metric_columns(metrics),
        ],
        notes=[
            f"Tokens are decoded from the kept features alone; heads are retrained. Bands: the scored features in"
            f" {n_bands} groups of equal size by {by.words}, lowest first. Active: by share of the activation"
            " mass. ± is over SAE seeds and draws, all of them on the same test images.",
            "Heaviest in the probe: by mean activation times the norm of what a feature adds to the outputs of the"
            " original head of the same task; the final CLS has the choice of the mean patch token's head.",
            *notes,
        ],
        marks={mark: MARKS[mark] for mark in (EDGE, UNCONVERGED)},
    )
    for role, label in REFERENCES.items():
        chosen = [result for result in results if result["variant"]["role"] == role]
        if chosen:
            table.add_row(label, _mass_kept(chosen), *(metric_cell(chosen, metric) for metric in metrics))
    for n_kept, of in runs.items():
        table.add_section(f"{n_kept} features kept")
        for rule in list_rules({n_kept: of}):
            cells = [metric_cell(find_runs(runs, n_kept, rule, metric), metric) for metric in metrics]
            table.add_row(name_rule(rule), Cell() if is_of_task(rule) else _mass_kept(of[rule]), *cells)
    return table


def _mass_kept(runs: Sequence[Result]) -> Cell:
    if runs[0]["variant"]["role"] == "original":
        return Cell()
    shares = [run["variant"]["mass_share"] for run in runs]
    return Cell(compute_stat(None if share is None else 1 - share for share in shares))


def _read(runs: Runs, n_kept: int, rule: str, metric: Metric) -> Stat:
    return compute_stat(metric.read(run) for run in find_runs(runs, n_kept, rule, metric))


def _read_reference(results: Sequence[Result], role: str, metric: Metric) -> float:
    return compute_stat(metric.read(result) for result in results if result["variant"]["role"] == role).mean


def _describe(results: Sequence[Result], runs: Runs, metrics: Sequence[Metric], by: By) -> list[str]:
    """Say which rule reads each task best, and whether scope guides better than activation does."""
    bands = [rule for rule in list_rules(runs) if rule not in LABELS]
    if not runs or not metrics:
        return ["Nothing was kept: every rule has fewer features to choose from than select.n_kept asks for."]
    findings = []
    for metric in metrics:
        floor = _read_reference(results, "all", metric)
        told = [n for n in runs if _reads_more(runs, n, list_rules(runs), metric, floor)]
        text = f"{metric.column.heading}: "
        if told:
            text += f"the best rule is {_name_best(runs, told, list_rules(runs), metric)}"
            text += f"; of the bands, {_name_best(runs, told, bands, metric)}" if bands else ""
        if rest := [str(n) for n in runs if n not in told]:
            text += "; " if told else ""
            text += f"no rule reads more than no feature does (n = {', '.join(rest)}), so none is told from another"
        findings.append(f"{text}.")
    gains = [
        _compare(find_runs(runs, n, band, metric), runs[n][BY_ACTIVATION], metric)
        for metric in metrics
        for n in runs
        for band in _find_best(runs, n, bands, metric)[:1]
        if BY_ACTIVATION in runs[n]
    ]
    gains = [gain for gain in gains if math.isfinite(gain)]
    if not gains:
        return [*findings, "One SAE seed: how far rules differ by chance is not known."]
    n_better, n_worse = sum(gain > 1 for gain in gains), sum(gain < -1 for gain in gains)
    first = (
        f"The most active features of the best band of {by.words} against the most active of all, for every metric and"
        f" number of features: better in {n_better}, worse in {n_worse} of {len(gains)} by more than one standard"
        " deviation of the difference over SAE seeds. (The best band is picked by the same numbers, which favours it.)"
    )
    return [first, *findings]


def _find_best(runs: Runs, n_kept: int, rules: Sequence[str], metric: Metric) -> list[str]:
    """Return the rule that reads most, several where they tie; empty where none has a number."""
    means = {rule: _read(runs, n_kept, rule, metric).mean for rule in rules}
    known = {rule: mean for rule, mean in means.items() if math.isfinite(mean)}
    best = (max if metric.higher_is_better else min)(known.values(), default=math.nan)
    return [rule for rule, mean in known.items() if math.isclose(mean, best)]


def _reads_more(runs: Runs, n_kept: int, rules: Sequence[str], metric: Metric, floor: float) -> bool:
    """Whether the best rule reads more than the floor, where that is known."""
    means = [_read(runs, n_kept, rule, metric).mean for rule in _find_best(runs, n_kept, rules, metric)[:1]]
    sign = 1 if metric.higher_is_better else -1
    return not any(sign * (mean - floor) <= 0 or math.isclose(mean, floor) for mean in means)


def _name_best(runs: Runs, numbers: Sequence[int], rules: Sequence[str], metric: Metric) -> str:
    """ "random (n = 4, 8), a tie of all but random (n = 16)"."""
    named: dict[str, list[str]] = {}
    for n in numbers:
        best = _find_best(runs, n, rules, metric)
        others = [rule for rule in rules if rule not in best]
        names = " and ".join(map(name_rule, best))
        if len(best) > 1 and len(others) < len(best):
            names = " but ".join(["all", *([" and ".join(map(name_rule, others))] if others else [])])
        names = f"a tie of {names}" if len(best) > 1 else names
        if best:
            named.setdefault(names, []).append(str(n))
    return ", ".join(f"{names} (n = {', '.join(of)})" for names, of in named.items())


def _compare(first: Sequence[Result], second: Sequence[Result], metric: Metric) -> float:
    """Return how much better the first is, in standard deviations of the difference over SAE seeds.

    NaN without two seeds.
    """
    by_seed = {run["sae_seed"]: metric.read(run) for run in second}
    differences = compute_stat(metric.read(run) - by_seed.get(run["sae_seed"], math.nan) for run in first)
    sign = 1 if metric.higher_is_better else -1
    return sign * differences.mean / max(differences.sd, 1e-9)


def draw_selection(results: Sequence[Result], runs: Runs, metrics: Sequence[Metric]) -> Figure:
    """Draw each metric against the number of kept features, a line per rule."""
    if not runs or not metrics:
        return make_empty("No features were kept.")
    rules = list_rules(runs)
    bands = [rule for rule in rules if rule not in LABELS]
    scale = LinearSegmentedColormap.from_list("scope", [LOW, MIDDLE, HIGH])(np.linspace(0, 1, max(len(bands), 1)))
    of_worth = [rule for rule in rules if rule.startswith(BY_WORTH)]
    colours = COLOURS | dict(zip(bands, scale, strict=False)) | dict(zip(of_worth, OF_WORTH, strict=False))
    figure, panels = make_panels(len(metrics), 0.7 + 2.1 * math.ceil(len(metrics) / 2))
    for panel, metric in zip(panels, metrics, strict=True):
        _draw_panel(panel, results, runs, metric, {rule: colours[rule] for rule in rules})
    handles = [Line2D([], [], color=colours[rule], marker="o", markersize=3.5, label=name_rule(rule)) for rule in rules]
    for role, style in LINES.items():
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=style, label=REFERENCES[role]))
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _draw_panel(axes: Axes, results: Sequence[Result], runs: Runs, metric: Metric, colours: Mapping[str, str]) -> None:
    scale = metric.column.scale
    for role, style in LINES.items():
        value = _read_reference(results, role, metric)
        if math.isfinite(value):
            axes.axhline(scale * value, color=INK, linewidth=0.9, linestyle=style)
    for rule, colour in colours.items():
        draw_means(axes, runs, [_read(runs, n, rule, metric) for n in runs], scale, colour)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(runs), [str(n) for n in runs])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_title(metric.column.title, fontsize=8.5)
    axes.set_xlabel("features kept")
    if not metric.higher_is_better:
        axes.invert_yaxis()
