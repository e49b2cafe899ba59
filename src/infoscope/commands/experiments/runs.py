"""The runs of a sweep: what is read of each, and the tables that join them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from matplotlib.figure import Figure

from infoscope.commands.experiments.sweep_figures import Point, draw_removal_sweep
from infoscope.config.tree import Config, to_tree
from infoscope.pipeline.context import Context
from infoscope.report.joining import Part, join_tables
from infoscope.report.tables import OVER_SEEDS, PERCENT, Align, Cell, Column, Table, Value, compute_stat
from infoscope.runtime.manifests import flatten_tree
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Role
from infoscope.scope.config import Control
from infoscope.scope.token_outliers import MAPS, TokenOutliers
from infoscope.stages.ablations import ablations_of
from infoscope.stages.outliers.findings import compute_means
from infoscope.stages.probe.results import Result
from infoscope.stages.probe.run import probe_variants
from infoscope.stages.probe.stage import find_paper_reference, read_probed
from infoscope.stages.probe.tables import make_removal_tables
from infoscope.stages.score.figures import draw_cds_histograms
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.score.stage import scope_of
from infoscope.stages.score.tables import summarise_scope

Found = TypeVar("Found")
CONFIG_COLUMNS = {
    "model": Column("model", "model", Align.left),
    "layer": Column("layer", "block", digits=0, is_count=True),
    "k_cds": Column("k_cds", "k_CDS", digits=0, is_count=True),
    "gamma": Column("gamma", "gamma", digits=3, is_count=True),
    "setting": Column("setting", "setting", Align.left),
}
"""The configuration as people read it; the other facts of a run stand in the CSV alone."""
SCOPE_COLUMNS = (
    Column("n_scored", "scored", digits=0, is_count=True),
    Column("n_high", "high scope", digits=0, is_count=True),
    Column("high_mass", "their mass", **PERCENT),
    Column("mean_cds", "mean CDS", digits=3),
    Column("median_cds", "median", digits=3),
    Column("mean_chance", "chance", digits=3),
    Column("reliability", "reliability", optional=True),
    Column("locked", "position-locked", digits=3),
    Column("fvu", "FVU", digits=3, optional=True),
)
"""What is said of the scores of a run; keys are those of `summarise_scope`."""
OUTLIER_COLUMNS = (
    Column("outlier_share", "outliers", digits=2, scale=100, unit="%"),
    Column("images_share", "images with any", **PERCENT),
    Column("has_mode", "a mode of their own", Align.left),
    Column("emd_outlier", "EMD outliers", digits=3),
    Column("emd_next_highest", "EMD next-highest", digits=3),
    Column("chance_outlier", "chance of outliers", digits=3),
)
"""What is said of the outlier tokens of a run."""


@dataclass(frozen=True)
class Run(Generic[Found]):
    """One configuration of a sweep and what was found under it.

    Args:
        label: the configuration in words, different for each run of a sweep.
        facts: the configuration by column: model, layer (block, from 0), k_cds, gamma (mean over seeds), setting, data,
            sae, rule, seeds, overrides, and the hashes of the artifacts that were read.
        found: what the experiment's `measure` returned.
    """

    config: Config
    label: str
    facts: Mapping[str, Value]
    found: Found


@dataclass(frozen=True)
class Shown:
    """What an experiment shows of its runs: tables, figures by file name, and tables that are written, not printed."""

    tables: Sequence[Table]
    figures: Mapping[str, Callable[[], Figure]]
    more_tables: Sequence[Table] = ()


def read_removal(ctx: Context, choose: Callable[[Ablation], bool] = lambda variant: True) -> list[Result]:
    """Return what the probes read from each variant of the tokens, in all SAE seeds; missing ones are trained.

    Args:
        choose: which variants, the original aside.

    Raises:
        InputError: as `probe_variants`.
    """
    probed = {}
    for seed in ctx.config.seeds:
        original, *others = ablations_of(ctx, seed)
        probed[seed] = probe_variants(ctx, seed, [original, *filter(choose, others)])
    return read_probed(ctx, probed)


def is_swept(variant: Ablation) -> bool:
    """Choose what a sweep compares: the groups while the SAE's error stays, and random groups of their mass."""
    is_error_preserving = variant.mode is EditMode.error_preserving
    return is_error_preserving and (variant.role is Role.group or variant.control is Control.mass)


def read_scopes(ctx: Context) -> list[ScopeResult]:
    """Return the scores of all SAE seeds; missing ones are computed."""
    return [scope_of(ctx, seed) for seed in ctx.config.seeds]


def scope_cells(scopes: Sequence[ScopeResult]) -> list[Value]:
    """Return mean and spread over SAE seeds of what `SCOPE_COLUMNS` name."""
    summaries = [summarise_scope(scope) for scope in scopes]
    found = ([summary.get(column.key) for summary in summaries] for column in SCOPE_COLUMNS)
    return [compute_stat(value if isinstance(value, int | float) else None for value in values) for values in found]


def outlier_cells(tokens: TokenOutliers) -> list[Value]:
    """Return `OUTLIER_COLUMNS`; a distance that does not exist is NaN."""
    norms, means = tokens.norms, compute_means(tokens)
    return [
        norms.n_outliers / norms.n_tokens,
        tokens.n_images_with / tokens.n_images,
        "yes" if norms.has_outlier_mode else "no",
        means["outlier"].mean,
        means["next_highest"].mean,
        compute_stat(tokens.distances.chance_emd[MAPS.index("outlier")]).mean,
    ]


def explain_unscored(scopes: Sequence[ScopeResult]) -> str:
    """Return what stands in place of a table on scores where no feature has one; empty where any has."""
    if any(np.isfinite(scope.cds).any() for scope in scopes):
        return ""
    n_latents = sum(len(scope.cds) for scope in scopes)
    return (
        f"No feature is scored: none of {n_latents:,} fires on both crops of half of the pictures that excite it most,"
        " so there is no CDS to show. More training images or a smaller scope.k_cds may help."
    )


def make_run_table(
    name: str,
    title: str,
    runs: Sequence[Run[Any]],
    columns: Sequence[Column],
    cells: Callable[[Any], Sequence[Value | Cell]],
    notes: Sequence[str] = (),
) -> Table:
    """Return a table of one row per run: its configuration, then `cells` of what was found."""
    facts = dict.fromkeys(key for run in runs for key in run.facts)
    known = [key for key in CONFIG_COLUMNS if any(run.facts.get(key) not in (None, "") for run in runs)]
    hidden = [Column(key, key, csv_only=True) for key in facts if key not in CONFIG_COLUMNS]
    table = Table(name, title, [*(CONFIG_COLUMNS[key] for key in known), *columns, *hidden], notes=list(notes))
    for run in runs:
        table.add_row(
            *(run.facts.get(key) for key in known), *cells(run.found), *(run.facts.get(column.key) for column in hidden)
        )
    return table


def join_runs(runs: Sequence[Run[Any]], make_table: Callable[[Run[Any]], Table]) -> Table:
    """Return a table with a section per run; what configures it stands in the section's title and in the CSV."""
    return join_tables([Part(run.label, run.facts, make_table(run)) for run in runs])


def join_removal(runs: Sequence[Run[Any]], read: Callable[[Any], Sequence[Result]]) -> tuple[Table, list[Table]]:
    """Return the feature-removal table of all runs, with the paper's values where model and data are its own.

    Args:
        read: what the probes read, from what was found.

    Returns:
        the main table, then the others: differences, the original head, further metrics.
    """
    tables = [make_removal_tables(read(run.found), find_paper_reference(run.config)) for run in runs]
    names = dict.fromkeys(name for of_run in tables for name in of_run)
    main_table, *others = [
        join_tables([Part(run.label, run.facts, of[name]) for run, of in zip(runs, tables, strict=True) if name in of])
        for name in names
    ]
    return main_table, others


def split_runs(runs: Sequence[Run[Found]], *but: str) -> dict[str, list[Run[Found]]]:
    """Return runs that differ in some parts of the configuration alone as one list each.

    Args:
        but: those parts: "partition", "scope.k_cds".

    Returns:
        by what to put behind a file name: nothing where all runs are in one list, else "_1", "_2", ...
    """
    lists: dict[str, list[Run[Found]]] = {}
    for run in runs:
        tree = flatten_tree(to_tree(run.config))
        others = {
            key: value for key, value in tree.items() if not f"{key}.".startswith(tuple(f"{part}." for part in but))
        }
        lists.setdefault(json.dumps(others), []).append(run)
    return {f"_{number}" if len(lists) > 1 else "": of for number, of in enumerate(lists.values(), 1)}


def name_figures(
    name: str, runs: Sequence[Run[Found]], draw: Callable[[Run[Found]], Figure]
) -> dict[str, Callable[[], Figure]]:
    """Return a figure per run by file name; runs are numbered where there are several."""
    if len(runs) == 1:
        return {name: lambda: draw(runs[0])}
    return {f"{name}_{number}": lambda run=run: draw(run) for number, run in enumerate(runs, 1)}


def show_models(
    name: str,
    title: str,
    runs: Sequence[Run[Found]],
    columns: Sequence[Column],
    cells: Callable[[Found], Sequence[Value | Cell]],
    read: Callable[[Found], tuple[Sequence[ScopeResult], Sequence[Result]]],
) -> Shown:
    """Return a row of `cells` and of scores per model, the removal tables, histograms, a panel of effects per metric.

    Args:
        read: the scores, and what the probes read, from what was found.
    """
    table = make_run_table(
        name,
        title,
        runs,
        [*columns, *SCOPE_COLUMNS],
        lambda found: [*cells(found), *scope_cells(read(found)[0])],
        [OVER_SEEDS, "Chance: the same maps on two different images."],
    )
    points = [Point(place, str(run.facts["model"]), read(run.found)[1]) for place, run in enumerate(runs)]
    panels = {run.label: read(run.found)[0] for run in runs}
    figures = {
        name: lambda: draw_removal_sweep(points, "", is_scale=False),
        "cds_histograms": lambda: draw_cds_histograms(panels),
    }
    removal, others = join_removal(runs, lambda found: read(found)[1])
    return Shown([removal, table], figures, others)
