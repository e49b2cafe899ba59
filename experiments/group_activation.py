"""Which features act on outlier tokens: summed activation per token of each group, on outlier and on normal tokens.

    python experiments/group_activation.py                                   # the miniature
    python experiments/group_activation.py partition.gamma=0.1,0.15,0.2
    python experiments/group_activation.py experiment=planted_registers      # the positive control
    python experiments/group_activation.py model=clip_b16 sae=topk sae.k=32 sae.expansion_factor=8 \
        sae.n_tokens=50000000 data=imagenet data.root=/imagenet

Activations are in units of the SAE, so only ratios can be compared, and with that of all features: a token of high norm
may well activate every group more.

The paper, CLIP-B/16, as we read a summary: high-scope features 83.45 on an outlier token against 1.66 on a normal one,
low-scope ones 31.51 on a normal token against 10.39 on an outlier. It stands beside ours where model and data are its.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from infoscope.commands.experiments.runs import Run, Shown, join_runs
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.report.figure_style import BAND_COLOURS, FAINT, GREY, INK, make_figure, write_empty
from infoscope.report.tables import Table, compute_stat
from infoscope.scope.group_activation import GroupActivation
from infoscope.scope.partition import name_group
from infoscope.scope.token_outliers import TokenOutliers
from infoscope.stages.outliers.section import add_paper_activation, make_outlier_section
from infoscope.stages.outliers.stage import OutlierTokens, group_activation_of
from infoscope.stages.probe.paper import PAPER_ACTIVATION
from infoscope.stages.probe.stage import find_paper_model

Found = tuple[TokenOutliers, dict[int, GroupActivation]]

RATIOS = {0.0: "0", 0.1: "1/10", 1 / 3: "1/3", 1.0: "1", 3.0: "3", 10.0: "10", math.inf: "∞"}
"""Ticks of an axis of ratios."""


def measure(ctx: Context) -> Found:
    """Return the model's outlier tokens, and per SAE seed what the groups do on them."""
    groups = {seed: group_activation_of(ctx, seed) for seed in ctx.config.seeds}
    return OutlierTokens.at(ctx).load(), groups


def show(runs: Sequence[Run[Found]]) -> Shown:
    """The table with the paper's rows, the figure of ratios, and what they say."""
    sections = {run.label: make_outlier_section(*run.found) for run in runs}

    def make_table(run: Run[Found]) -> Table:
        return add_paper_activation(sections[run.label].tables["outlier_activation"], find_paper_model(run.config))

    table = join_runs(runs, make_table)
    table.notes += [f"{label}: {section.findings[-2]}" for label, section in sections.items()]
    paper = {
        run.label: {group: value.on_outlier / value.on_normal for group, value in PAPER_ACTIVATION[name].items()}
        for run in runs
        if (name := find_paper_model(run.config)) in PAPER_ACTIVATION
    }
    panels = {run.label: list(run.found[1].values()) for run in runs}
    return Shown([table], {"group_activation": lambda: draw_group_activation(panels, paper)})


def draw_group_activation(
    panels: Mapping[str, Sequence[GroupActivation]], paper: Mapping[str, Mapping[str, float]] | None = None
) -> Figure:
    """Draw how many times stronger each group acts on an outlier token than on a normal one, a row of dots per group.

    Args:
        panels: by title, one result per SAE seed.
        paper: by title, the paper's ratios by group, where they may stand beside ours.
    """
    names = {title: [*dict.fromkeys(name for run in runs for name in run.groups)] for title, runs in panels.items()}
    figure = make_figure(0.7 + sum(1.0 + 0.3 * len(of) for of in names.values()))
    heights = [1.5 + len(of) for of in names.values()]
    axes_of = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights).ravel()
    for axes, (title, runs) in zip(axes_of, panels.items(), strict=True):
        axes.set_title(title)
        if not runs[0].n_outlier:
            write_empty(axes, "No token is an outlier.")
            continue
        _draw_ratios(axes, runs, names[title], (paper or {}).get(title, {}))
        axes.set_xlabel("activation on an outlier token / on a normal one")
    handles = [
        Line2D([], [], color=INK, marker="o", linestyle="", ms=4, label="one SAE"),
        Line2D([], [], color=GREY, linewidth=1, linestyle=(0, (5, 2)), label="all features together"),
    ]
    if paper:
        handles.append(Line2D([], [], color=INK, marker="D", mfc="white", linestyle="", ms=5, label="the paper"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _draw_ratios(axes: Axes, runs: Sequence[GroupActivation], names: Sequence[str], paper: Mapping[str, float]) -> None:
    for place, name in enumerate(names):
        ratios = [run.groups[name].ratio for run in runs if name in run.groups]
        colour = BAND_COLOURS.get(name, GREY)
        axes.plot(list(map(_bound, ratios)), [place] * len(ratios), "o", color=colour, markersize=5, alpha=0.8)
        if name in paper:
            axes.plot(_bound(paper[name]), place, "D", color=colour, mfc="white", markersize=6)
    whole = compute_stat(run.everyone.ratio for run in runs).mean
    axes.axvline(_bound(whole), color=GREY, linewidth=1, linestyle=(0, (5, 2)), zorder=0)
    axes.set_xlim(-0.02, 1.02)
    axes.set_xticks(list(map(_bound, RATIOS)), list(RATIOS.values()))
    axes.set_yticks(range(len(names)), list(map(name_group, names)))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)


def _bound(ratio: float) -> float:
    """Where a ratio stands on an axis that ends: 0 at 0, 1 in the middle, infinity at 1."""
    return 1.0 if math.isinf(ratio) else ratio / (1 + ratio)


EXPERIMENT = Experiment("group_activation", __doc__, measure, show, stages=["outliers"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
