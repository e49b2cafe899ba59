"""The report on outlier tokens: whether there are any, whether they leap between crops, which features act on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool

from infoscope.report.section import ReportSection
from infoscope.report.tables import PERCENT, Align, Cell, Column, Stat, Table, compute_stat
from infoscope.scope.cds import uniform_chance_score
from infoscope.scope.crops import shared_region
from infoscope.scope.group_activation import GroupActivation
from infoscope.scope.partition import name_group
from infoscope.scope.token_outliers import MAPS, TokenOutliers
from infoscope.stages.outliers.figures import HEADINGS, compute_locked, make_figures
from infoscope.stages.outliers.findings import (
    NOT_SHARED,
    compute_difference,
    compute_means,
    compute_stats,
    describe_activation,
    describe_distances,
    describe_layers,
    list_groups,
)
from infoscope.stages.probe.paper import PAPER_ACTIVATION, PAPER_TITLES

NO_OUTLIER = "No token is an outlier."
"""In place of a table; the findings say how that was found."""
EMPTY = "∅"
MARKS = {EMPTY: "no features in this group, in at least one run."}


def make_outlier_section(
    tokens: TokenOutliers, groups: Mapping[int, GroupActivation], unit: str = "SAE units"
) -> ReportSection:
    """Return tables, figures and findings.

    Args:
        tokens: of the model, the same for every SAE.
        groups: by SAE seed; empty leaves the second table out.
        unit: of activations.
    """
    tables = {"outlier_emd": _make_emd_table(tokens)}
    findings = [*describe_distances(tokens), describe_layers(tokens)]
    if groups:
        runs = list(groups.values())
        table = tables["outlier_activation"] = _make_activation_table(runs, unit)
        table.instead = "" if tokens.norms.n_outliers else NO_OUTLIER
        findings.insert(-1, describe_activation(runs))
    return ReportSection(
        name="outliers",
        title="Outlier tokens",
        findings=tuple(finding for finding in findings if finding),
        tables=tables,
        figures=make_figures(tokens),
        summary=_summarise(tokens, groups),
    )


def _have_outliers(tokens: TokenOutliers) -> Bool[np.ndarray, "n_images 2"]:
    """Whether each crop has outliers in the region both show."""
    norms, shift = tokens.distances.crop_norms, tokens.shift_patches
    both = [shared_region(norms[:, side], shift, crop) for side, crop in ((0, 1), (1, 2))]
    return np.stack([(part > tokens.norms.threshold).any(axis=(1, 2)) for part in both], axis=1)


def _make_emd_table(tokens: TokenOutliers) -> Table:
    columns = [
        Column("map", "norms of", Align.left),
        Column("emd", "EMD", digits=4),
        Column("emd_se", "std. error", digits=4),
        Column("chance", "chance", digits=4),
        Column("emd_to_chance", "EMD / chance", digits=2, optional=True),
        Column("n_pairs", "pairs", digits=0, is_count=True),
    ]
    has = _have_outliers(tokens)
    locked, random = compute_locked(tokens), uniform_chance_score(tokens.grid - tokens.shift_patches)
    n_one_sided, n_neither = int((has[:, 0] != has[:, 1]).sum()), int((~has).all(axis=1).sum())
    which = "images with outliers, evenly spread" if tokens.n_images_with else "images, evenly spread: none has any"
    table = Table(
        "outlier_emd",
        "How far token norms move between two shifted crops of an image",
        columns,
        notes=[
            f"EMD: between the regions both crops show, in diagonals of that region; over {len(has)} training"
            f" {which}. Next-highest: as many normal tokens as the crop has outliers there. Chance: one image's map"
            f" against the next image's. A token locked to its place in the grid scores {locked:.3f},"
            f" two places drawn at random {random:.3f}.",
            "A map of many tokens moves less than one of few whatever they do: the next-highest tokens are the fairer"
            " comparison.",
        ],
        marks=MARKS,
    )
    if has.any():
        table.notes.append(
            f"Without a distance of outliers: {n_one_sided} images with outliers in the shared region of one crop"
            f" alone, {n_neither} with none in either."
        )
    if not tokens.norms.n_outliers:
        table.instead = NO_OUTLIER
    elif not has.all(axis=1).any():
        table.instead = NOT_SHARED
    table.add_section()
    for i, (name, mean) in enumerate(compute_means(tokens).items()):
        chance = compute_stat(tokens.distances.chance_emd[i]).mean
        ratio = mean.mean / chance if chance > 0 else math.nan
        table.add_row(HEADINGS[name], mean.mean, mean.error, chance, ratio, mean.n)
    table.add_section("outlier tokens minus, on the same images")
    for name in MAPS[1:]:
        difference = compute_difference(tokens, name)
        table.add_row(HEADINGS[name], difference.mean, difference.error, None, None, difference.n)
    return table


def _make_activation_table(runs: Sequence[GroupActivation], unit: str) -> Table:
    columns = [
        Column("group", "features", Align.left),
        Column("n_features", "count", digits=0, is_count=True),
        Column("on_outlier", "on an outlier token"),
        Column("on_normal", "on a normal token"),
        Column("ratio", "ratio"),
        Column("share_on_outlier", "share on outlier", optional=True, **PERCENT),
        Column("share_on_normal", "share on normal", optional=True, **PERCENT),
    ]
    first = runs[0]
    seeds = f"mean ± standard deviation of {len(runs)} SAE seeds" if len(runs) > 1 else "one SAE seed"
    table = Table(
        "outlier_activation",
        "Activation per token of each group of features, on outlier and on normal tokens",
        columns,
        notes=[
            f"Sum of the group's activations, mean over {first.n_outlier:,} outlier and {first.n_normal:,} normal patch"
            f" tokens of the training split, in {unit} ({seeds}). Compare ratios only, and with that of all"
            " features, for a token of high norm may well activate every group more. Shares are of all features'"
            " activation on such a token.",
        ],
        marks=MARKS,
    )
    for name in list_groups(runs):
        holding = [(run.groups[name], run.everyone) for run in runs if name in run.groups]
        filled = [(acts, everyone) for acts, everyone in holding if acts.n_features]
        table.add_row(
            Cell(name_group(name), EMPTY if len(filled) < len(holding) else ""),
            compute_stat(acts.n_features for acts, _ in holding),
            *compute_stats([acts for acts, _ in filled]),
            compute_stat(_divide(acts.on_outlier, everyone.on_outlier) for acts, everyone in filled),
            compute_stat(_divide(acts.on_normal, everyone.on_normal) for acts, everyone in filled),
        )
    table.add_section()
    table.add_row("all features", None, *compute_stats([run.everyone for run in runs]), None, None)
    return table


def add_paper_activation(table: Table, paper_reference: str | None) -> Table:
    """Add the paper's rows to the table of activations, only where the caller says that model and data are its own."""
    if paper_reference in PAPER_ACTIVATION:
        table.add_section(f"{PAPER_TITLES[paper_reference]}, in units of its SAE")
        for name, (on_outlier, on_normal) in PAPER_ACTIVATION[paper_reference].items():
            table.add_row(name_group(name), None, on_outlier, on_normal, on_outlier / on_normal, None, None)
    return table


def _divide(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _summarise(tokens: TokenOutliers, groups: Mapping[int, GroupActivation]) -> dict[str, Any]:
    norms, chance = tokens.norms, zip(MAPS, tokens.distances.chance_emd, strict=True)

    def describe(mean: Stat) -> dict[str, float]:
        return {"mean": mean.mean, "standard_error": mean.error, "n_images": mean.n}

    return {
        "threshold": norms.threshold,
        "rule": tokens.rule,
        "n_tokens": norms.n_tokens,
        "n_outliers": norms.n_outliers,
        "n_images_with_outliers": tokens.n_images_with,
        "has_outlier_mode": norms.has_outlier_mode,
        "blocks_with_outlier_mode": [i for i, block in enumerate(tokens.by_layer) if block.has_outlier_mode],
        "by_block": [
            {name: getattr(block, name) for name in ("n_outliers", "n_tokens", "has_outlier_mode")}
            for block in tokens.by_layer
        ],
        "emd": {name: describe(mean) for name, mean in compute_means(tokens).items()},
        "chance_emd": {name: compute_stat(values).mean for name, values in chance},
        "outlier_minus": {name: describe(compute_difference(tokens, name)) for name in MAPS[1:]},
        "activation": [
            {
                "sae_seed": seed,
                "ratio_of_all": run.everyone.ratio,
                "groups": {name: {**acts._asdict(), "ratio": acts.ratio} for name, acts in run.groups.items()},
            }
            for seed, run in groups.items()
        ],
    }
