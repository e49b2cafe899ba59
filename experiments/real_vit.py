"""A real vision transformer: the scope of its features and its outlier tokens after every block, on photographs.

    python experiments/real_vit.py model.pretrained=dinov2_s14.safetensors data.root=/photographs
    python experiments/real_vit.py model=dinov2_b14 model.layer=2,5,8,10 seeds=[0,1,2] data.root=/photographs

Without model= it runs dinov2_s14, an SAE of one seed after each of its 12 blocks, each on few tokens: blocks are to be
compared, and two cores to be enough. A row per block, the CDS and its chance level block by block, and of the
penultimate one the histogram and some features on their pictures.

What removal costs needs labels: `experiment=dinov2_scenes` is the same model on scenes, for feature_removal.py
and others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from infoscope.commands.experiments.runs import (
    OUTLIER_COLUMNS,
    SCOPE_COLUMNS,
    Run,
    Shown,
    explain_unscored,
    make_run_table,
    outlier_cells,
    read_scopes,
    scope_cells,
)
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.report.figure_style import INK, LOW, make_empty, make_figure
from infoscope.report.section import ReportSection
from infoscope.scope.token_outliers import TokenOutliers
from infoscope.stages.outliers.figures import draw_norms_by_layer
from infoscope.stages.outliers.findings import describe_distances, describe_layers
from infoscope.stages.outliers.stage import OutlierTokens
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.score.stage import Score

BLOCKS = ",".join(str(block) for block in range(12))


class Found(NamedTuple):
    """What is known of one block."""

    tokens: TokenOutliers
    scopes: list[ScopeResult]
    section: ReportSection
    """The report's section of the scores."""


def measure(ctx: Context) -> Found:
    """Return norms and distances of the tokens, and the scores of the features."""
    return Found(OutlierTokens.at(ctx).load(), read_scopes(ctx), Score().section(ctx))


def show(runs: Sequence[Run[Found]]) -> Shown:
    """A row per block, what its outlier tokens do, and the figures."""
    table = make_run_table(
        "real_vit",
        "Outlier tokens and information scope by block",
        runs,
        [*OUTLIER_COLUMNS, *SCOPE_COLUMNS],
        lambda found: [*outlier_cells(found.tokens), *scope_cells(found.scopes)],
        ["Chance: the same maps on two different images. EMD: between two shifted crops, of the map of token norms."],
    )
    table.notes += [f"{run.label}: {words}" for run in runs for words in describe_distances(run.found.tokens)]
    shown = runs[-2] if len(runs) > 1 else runs[-1]
    figures = {name: figure.draw for name, figure in shown.found.section.figures.items()}
    figures["cds_by_block"] = lambda: draw_cds_by_block(runs)
    tokens = join_blocks([run.found.tokens for run in runs], shown.found.tokens)
    if tokens is not None:
        table.notes.append(describe_layers(tokens))
        figures["norms_by_block"] = lambda: draw_norms_by_layer(tokens)
    return Shown([table], figures)


def join_blocks(blocks: Sequence[TokenOutliers], shown: TokenOutliers) -> TokenOutliers | None:
    """Return the norms after every block on all images, one block marked; None where not every block was asked for."""
    if [of_block.layer for of_block in blocks] != list(range(len(shown.by_layer))):
        return None
    return replace(shown, by_layer=tuple(of_block.norms for of_block in blocks))


def draw_cds_by_block(runs: Sequence[Run[Found]]) -> Figure:
    """Draw median, quartiles and outer tenths of the CDS after each block, and of its chance level."""
    everything = [scope for run in runs for scope in run.found.scopes]
    if words := explain_unscored(everything):
        return make_empty(words)
    figure = make_figure(3.0)
    axes = figure.subplots()
    cds = [np.concatenate([scope.cds for scope in run.found.scopes]) for run in runs]
    chance = [np.concatenate([scope.scores.chance(scope.k_cds) for scope in run.found.scopes]) for run in runs]
    names = [str(run.facts["layer"]) for run in runs]
    for values, colour, line in ((cds, LOW, "-"), (chance, INK, (0, (1, 1)))):
        q10, q25, q50, q75, q90 = np.array([_quantiles(of_block) for of_block in values]).T
        places = np.arange(len(runs))
        axes.fill_between(places, q10, q90, color=colour, alpha=0.1, linewidth=0)
        axes.fill_between(places, q25, q75, color=colour, alpha=0.2, linewidth=0)
        axes.plot(places, q50, color=colour, linestyle=line, marker="o", markersize=3.5)
    axes.set_xticks(range(len(runs)), names)
    axes.set(xlabel="block", ylabel="contextual dependency score (CDS)", ylim=(0, None))
    handles = [
        Line2D([], [], color=LOW, marker="o", markersize=3.5, label="CDS, median over features"),
        Line2D(
            [], [], color=INK, marker="o", markersize=3.5, linestyle=(0, (1, 1)), label="chance of the same features"
        ),
        Patch(color=LOW, alpha=0.3, linewidth=0, label="half of the features; lighter: four fifths"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    return figure


def _quantiles(values: np.ndarray) -> np.ndarray:
    known = values[np.isfinite(values)]
    return np.quantile(known, (0.1, 0.25, 0.5, 0.75, 0.9)) if len(known) else np.full(5, np.nan)


EXPERIMENT = Experiment(
    "real_vit",
    __doc__,
    measure,
    show,
    also=["outliers"],
    defaults=[
        "model=dinov2_s14",
        f"model.layer={BLOCKS}",
        "data=image_folder",
        "seeds=[0]",
        "sae=topk",
        "sae.n_tokens=400000",
        "sae.batch_tokens=1024",
        "outliers.n_images=64",
        "outliers.n_layer_images=1",  # the norms after other blocks are those of their own rows
    ],
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
