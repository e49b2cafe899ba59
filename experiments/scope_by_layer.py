"""How scope changes over the blocks of a model, and what goes with it in each.

    python experiments/scope_by_layer.py                                    # the miniature, all of its four blocks
    python experiments/scope_by_layer.py model.layer=[0,-1] seeds=[0]
    python experiments/scope_by_layer.py model=clip_b16 model.layer=[2,5,8,10] data=image_folder \
        data.root=/photographs sae=topk sae.k=32 sae.expansion_factor=8 sae.n_tokens=50000000

The tokens of all blocks come from the same forwards of the backbone. One gamma does not mean the same in two blocks:
scores are held against chance, and the split is by mass unless another one is asked for.

The paper's numbers are unknown to us.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from infoscope.commands.experiments.runs import (
    SCOPE_COLUMNS,
    Run,
    Shown,
    explain_unscored,
    join_runs,
    make_run_table,
    read_scopes,
    scope_cells,
)
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.report.figure_style import FAINT, INK, draw_means, make_panels
from infoscope.report.tables import OVER_SEEDS, Align, Column, Stat, Table, compute_stat
from infoscope.stages.cross.quantities import Crossed, join_crossed
from infoscope.stages.cross.stage import Cross
from infoscope.stages.latents import Latents
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.score.tables import summarise_scope

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
COLUMNS = (
    Column("quantity", "", Align.left),
    Column("rho", "Spearman with CDS", signed=True),
    Column("low", "95 % from", signed=True),
    Column("high", "to", signed=True),
    Column("within", "at like frequency", signed=True),
    Column("p", "p", digits=3),
    Column("n", "features", digits=0, is_count=True),
)
N_LINES = len(COLOURS)
"""Quantities that the figure follows: those that go with scope most, in the mean over blocks."""


class Found(NamedTuple):
    """Of one block: the scores of all SAE seeds, and what goes with them."""

    scopes: list[ScopeResult]
    crossed: dict[str, Crossed]


def measure(ctx: Context) -> Found:
    """Return the scores of a block's features, and how all that is known of them goes with them."""
    table = Latents.at(ctx, ctx.config.seeds[0]).load()
    return Found(read_scopes(ctx), join_crossed(Cross.at(ctx).load(), table))


def show(runs: Sequence[Run[Found]]) -> Shown:
    """A row of scores per block, a row per block and quantity that goes with scope, and both as curves over blocks."""
    scores = make_run_table(
        "scope_by_layer",
        "Information scope by block",
        runs,
        SCOPE_COLUMNS,
        lambda found: scope_cells(found.scopes),
        [OVER_SEEDS, "Chance: the same maps on two different images."],
    )
    scores.instead = explain_unscored([scope for run in runs for scope in run.found.scopes])
    crossed = join_runs(runs, lambda run: make_cross_table(run.found.crossed))
    return Shown([scores, crossed], {"scope_by_layer": lambda: draw_layers(runs)})


def make_cross_table(crossed: Mapping[str, Crossed]) -> Table:
    """Return a row for each quantity of a block."""
    table = Table(
        "cross_by_layer",
        "What goes with scope, by block",
        COLUMNS,
        notes=[
            "Spearman's correlation with the CDS over features; at like frequency: within strata of firing rate, freed"
            " of their trend over it. p: of permutations within strata, after Holm's correction for the quantities of"
            " the block."
        ],
    )
    for one in crossed.values():
        table.add_row(one.column.heading, one.rho, one.low, one.high, one.within, one.p_corrected, one.n)
    return table


def choose_followed(runs: Sequence[Run[Found]]) -> list[str]:
    """Return the quantities that the figure follows: at like frequency those that go with scope most."""
    names = dict.fromkeys(name for run in runs for name in run.found.crossed)
    strength = {
        name: float(
            np.mean([abs(of[name].within.mean) if name in of else 0 for of in (run.found.crossed for run in runs)])
        )
        for name in names
    }
    known = [name for name in names if np.isfinite(strength[name]) and strength[name] > 0]
    return sorted(known, key=lambda name: -strength[name])[:N_LINES]


def draw_layers(runs: Sequence[Run[Found]]) -> Figure:
    """Draw the scores over blocks beside chance, and how quantities go with them at like frequency."""
    runs = sorted(runs, key=lambda run: float(str(run.facts["layer"])))
    layers = [float(str(run.facts["layer"])) for run in runs]
    figure, (left, right) = make_panels(2, 3.4)
    summaries = [[summarise_scope(scope) for scope in run.found.scopes] for run in runs]
    for key, label, colour in (("median_cds", "median CDS", INK), ("mean_chance", "chance, mean", FAINT)):
        draw_means(left, layers, [compute_stat(one[key] for one in of) for of in summaries], 1, colour, label=label)
    left.set_ylim(bottom=0)
    left.set_title("EMD / largest distance", fontsize=8.5)
    for name, colour in zip(choose_followed(runs), COLOURS, strict=False):
        of = [run.found.crossed.get(name) for run in runs]
        stats = [Stat(np.nan, np.nan, 0) if one is None else one.within for one in of]
        heading = next(one.column.heading for one in of if one is not None)
        draw_means(right, layers, stats, 1, colour, label=heading)
    right.axhline(0, color=FAINT, linewidth=0.8)
    right.set_title("correlation with the CDS at like frequency", fontsize=8.5)
    for panel in (left, right):
        panel.set_xticks(layers)
        panel.set_xlabel("block")
        panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize=7, frameon=False)
    return figure


EXPERIMENT = Experiment("scope_by_layer", __doc__, measure, show, stages=["cross"], defaults=["model.layer=0,1,2,-1"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
