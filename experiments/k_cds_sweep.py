"""How many images a score needs: scores and groups as k_CDS grows, against those of the largest k.

    python experiments/k_cds_sweep.py                                       # the miniature, k = 1, 2, 4, 8, 16
    python experiments/k_cds_sweep.py scope.k_cds=1,4,16,64
    python experiments/k_cds_sweep.py stage=probe                           # and what removal costs at each k
    python experiments/k_cds_sweep.py experiment=planted_registers          # the positive control
    python experiments/k_cds_sweep.py model=clip_b16 data=image_folder data.root=/photographs sae=topk sae.k=32 \
        sae.expansion_factor=8 sae.n_tokens=50000000

Every k is arithmetic on one matrix of distances, scored once for the largest. With stage=probe the heads of groups that
change are trained again.

The paper's numbers are unknown to us.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from infoscope.commands.experiments.runs import (
    SCOPE_COLUMNS,
    Run,
    Shown,
    explain_unscored,
    is_swept,
    join_removal,
    make_run_table,
    read_removal,
    read_scopes,
    scope_cells,
    split_runs,
)
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.commands.experiments.sweep_figures import Point, draw_removal_sweep
from infoscope.pipeline.context import Context
from infoscope.report.figure_style import FAINT, INK, draw_means, make_figure
from infoscope.report.tables import OVER_SEEDS, PERCENT, Column, Stat, compute_stat
from infoscope.scope.agreement import compare_cds
from infoscope.stages.probe.results import Result
from infoscope.stages.score.result import ScopeResult

COLUMNS = (
    Column("rank_correlation", "Spearman, largest k", digits=3),
    Column("changed", "other group", **PERCENT),
    Column("scored_share", "scored", **PERCENT),
)
"""What becomes of scores and groups."""

Found = tuple[list[ScopeResult], list[Result]]


def measure(ctx: Context) -> Found:
    """Return the scores at one k, and what the probes read where that is asked for."""
    is_probed = ctx.config.stage.name == "probe"
    return read_scopes(ctx), read_removal(ctx, is_swept) if is_probed else []


def compare(scopes: Sequence[ScopeResult], largest: Sequence[ScopeResult]) -> list[Stat]:
    """Return `COLUMNS` over SAE seeds, against the scores of the largest k."""
    pairs = list(zip(scopes, largest, strict=True))
    agreed = [compare_cds(a.cds, b.cds, a.cds_gamma, b.cds_gamma) for a, b in pairs]
    scored = [np.isfinite(scope.cds[scope.firing_rate > 0]) for scope in scopes]
    return [
        compute_stat(one.rank_correlation for one in agreed),
        compute_stat(1 - one.same_side for one in agreed),
        compute_stat(float(one.mean()) if len(one) else None for one in scored),
    ]


def show(runs: Sequence[Run[Found]]) -> Shown:
    """A row per k, curves over k, and with stage=probe the removal tables and curves."""
    lists = split_runs(runs, "scope.k_cds")
    largest = {id(run): max(of, key=lambda run: run.config.scope.k_cds) for of in lists.values() for run in of}
    compared = {id(run.found): compare(run.found[0], largest[id(run)].found[0]) for run in runs}
    table = make_run_table(
        "k_cds_sweep",
        "Scores and groups under fewer images",
        runs,
        [*COLUMNS, *SCOPE_COLUMNS[1:4]],
        lambda found: [*compared[id(found)], *scope_cells(found[0])[1:4]],
        [
            OVER_SEEDS,
            "Spearman: rank correlation with the scores of the largest k."
            " Other group: on the other side of gamma than there. Both over features with a score under both. Scored:"
            " of the features that fire.",
        ],
    )
    table.instead = explain_unscored([scope for run in runs for scope in run.found[0]])
    curves = {
        of[0].label.replace(f"k_CDS {of[0].config.scope.k_cds}, ", ""): {
            run.config.scope.k_cds: compared[id(run.found)] for run in of
        }
        for of in lists.values()
    }
    figures = {"k_cds_sweep": lambda: draw_settling(curves, COLUMNS)}
    if not all(run.found[1] for run in runs):
        return Shown([table], figures)
    for number, of in lists.items():
        points = [Point(run.config.scope.k_cds, str(run.config.scope.k_cds), run.found[1]) for run in of]
        figures[f"removal{number}"] = lambda points=points: draw_removal_sweep(points, "k_CDS")
    removal, others = join_removal(runs, lambda found: found[1])
    return Shown([removal, table], figures, others)


def draw_settling(curves: Mapping[str, Mapping[int, Sequence[Stat]]], columns: Sequence[Column]) -> Figure:
    """Draw what becomes of some numbers as k grows, a panel per number and a line per configuration.

    Args:
        curves: per configuration and k, mean and spread over SAE seeds of each number.
        columns: how the numbers are headed and scaled.
    """
    figure = make_figure(2.6 if len(curves) == 1 else 3.0)
    panels = figure.subplots(1, len(columns), squeeze=False).ravel()
    styles = ["-", (0, (5, 2)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5))]
    ticks = sorted({k for by_k in curves.values() for k in by_k})
    for number, (panel, column) in enumerate(zip(panels, columns, strict=True)):
        for place, (name, by_k) in enumerate(curves.items()):
            ks = sorted(by_k)
            stats, style = [by_k[k][number] for k in ks], styles[place % len(styles)]
            draw_means(panel, ks, stats, column.scale, INK, linestyle=style, label=name)
        panel.set_xscale("log", base=2)
        panel.set_xticks(ticks, [str(k) for k in ticks])
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(column.title, fontsize=8.5)
        panel.set_xlabel("k_CDS")
        panel.grid(axis="y", color=FAINT, linewidth=0.6)
    if len(curves) > 1:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure


EXPERIMENT = Experiment(
    "k_cds_sweep", __doc__, measure, show, stages=["score", "probe"], defaults=["scope.k_cds=1,2,4,8,16"]
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
