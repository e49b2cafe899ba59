"""The report on outlier tokens: whether there are any, whether they leap between crops, which features act on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Align, Cell, Column, Table, compute_stat
from infoscope.scope.cds import uniform_chance_score
from infoscope.scope.crops import shared_region
from infoscope.scope.group_activation import GroupActivation
from infoscope.scope.token_outliers import MAPS, TokenOutliers
from infoscope.stages.outliers.figures import (
    HEADINGS,
    compute_locked,
    draw_norms_by_layer,
    draw_outlier_distances,
    draw_outlier_maps,
)
from infoscope.stages.probe.paper import PAPER_ACTIVATION, PAPER_TITLES

EMPTY = "∅"
MARKS = {EMPTY: "no features in this group, in at least one run."}
NOT_SHARED = "Whether outlier tokens leap is not known: in no image both crops have one in the region they share."
N_ERRORS = 2
"""Standard errors that a mean difference must exceed to be called one."""


class Mean(NamedTuple):
    """mean, error: over n images, and its standard error; NaN where there are too few."""

    mean: float
    error: float
    n: int


def compute_mean(values: Float[np.ndarray, " n"]) -> Mean:
    """Return mean and standard error (sample standard deviation / sqrt(n)) of the finite values."""
    stat = compute_stat(values)
    return Mean(stat.mean, stat.sd / math.sqrt(stat.n) if stat.n else math.nan, stat.n)


def make_outlier_section(tokens: TokenOutliers, groups: Mapping[int, GroupActivation]) -> ReportSection:
    """Return tables, figures and findings.

    Args:
        tokens: of the model, the same for every SAE.
        groups: by SAE seed; empty leaves the second table out.
    """
    tables = {"outlier_emd": _make_emd_table(tokens)}
    findings = [*_describe_distances(tokens), _describe_layers(tokens)]
    if groups:
        table = tables["outlier_activation"] = _make_activation_table(list(groups.values()))
        table.instead = "" if tokens.norms.n_outliers else _say_no_outliers(tokens)
        findings.insert(len(findings) - 1, _describe_activation(list(groups.values())))
    return ReportSection(
        name="outliers",
        title="Outlier tokens",
        findings=tuple(finding for finding in findings if finding),
        tables=tables,
        figures=_make_figures(tokens),
        summary=_summarise(tokens, groups),
    )


def _compute_means(tokens: TokenOutliers) -> dict[str, Mean]:
    return {name: compute_mean(tokens.distances.emd[i]) for i, name in enumerate(MAPS)}


def _compute_difference(tokens: TokenOutliers, other: str) -> Mean:
    """Outlier map minus another, over the images in which both have a distance."""
    emd = tokens.distances.emd
    return compute_mean(emd[MAPS.index("outlier")] - emd[MAPS.index(other)])


def _count_shared_outliers(tokens: TokenOutliers) -> Int[np.ndarray, "n_images 2"]:
    """Outliers that each crop has in the region both show."""
    norms, shift = tokens.distances.crop_norms, tokens.shift_patches
    both = [shared_region(norms[:, side], shift, crop) for side, crop in ((0, 1), (1, 2))]
    return np.stack([(part > tokens.norms.threshold).sum(axis=(1, 2)) for part in both], axis=1)


def _make_emd_table(tokens: TokenOutliers) -> Table:
    columns = [
        Column("map", "norms of", Align.left),
        Column("emd", "EMD", digits=4),
        Column("emd_se", "std. error", digits=4),
        Column("chance", "chance", digits=4),
        Column("emd_to_chance", "EMD / chance", digits=2, optional=True),
        Column("n_pairs", "pairs", digits=0, is_count=True),
    ]
    counts = _count_shared_outliers(tokens)
    has = counts > 0
    n_one_sided, n_neither = int((has[:, 0] != has[:, 1]).sum()), int((~has).all(axis=1).sum())
    which = "images with outliers, evenly spread" if tokens.n_images_with else "images, evenly spread: none has any"
    table = Table(
        "outlier_emd",
        "How far token norms move between two shifted crops of an image",
        columns,
        notes=[
            f"EMD: between the regions both crops show, in diagonals of that region; over {len(counts)} training"
            f" {which}. Next-highest: as many normal tokens as the crop has outliers there. Chance: one image's map"
            f" against the next image's. A token locked to its place in the grid scores {compute_locked(tokens):.3f},"
            f" two places drawn at random {_random(tokens):.3f}.",
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
        table.instead = _say_no_outliers(tokens)
    elif not has.all(axis=1).any():
        table.instead = NOT_SHARED
    table.add_section()
    for i, (name, mean) in enumerate(_compute_means(tokens).items()):
        chance = compute_stat(tokens.distances.chance_emd[i]).mean
        ratio = mean.mean / chance if chance > 0 else math.nan
        table.add_row(HEADINGS[name], mean.mean, mean.error, chance, ratio, mean.n)
    table.add_section("outlier tokens minus, on the same images")
    for name in MAPS[1:]:
        difference = _compute_difference(tokens, name)
        table.add_row(HEADINGS[name], difference.mean, difference.error, None, None, difference.n)
    return table


def _random(tokens: TokenOutliers) -> float:
    return uniform_chance_score(tokens.grid - tokens.shift_patches)


def _make_activation_table(runs: Sequence[GroupActivation]) -> Table:
    percent = {"digits": 1, "scale": 100.0, "unit": "%", "optional": True}
    columns = [
        Column("group", "features", Align.left),
        Column("n_features", "count", digits=0, is_count=True),
        Column("on_outlier", "on an outlier token"),
        Column("on_normal", "on a normal token"),
        Column("ratio", "ratio"),
        Column("share_on_outlier", "share on outlier", **percent),
        Column("share_on_normal", "share on normal", **percent),
    ]
    first = runs[0]
    seeds = f"mean ± standard deviation of {len(runs)} SAE seeds" if len(runs) > 1 else "one SAE seed"
    table = Table(
        "outlier_activation",
        "Activation per token of each group of features, on outlier and on normal tokens",
        columns,
        notes=[
            f"Sum of the group's activations, mean over {first.n_outlier:,} outlier and {first.n_normal:,} normal patch"
            f" tokens of the training split, in SAE units ({seeds}). Compare ratios only, and with that of all"
            " features, for a token of high norm may well activate every group more. Shares are of all features'"
            " activation on such a token.",
        ],
        marks=MARKS,
    )
    for name in _group_names(runs):
        holding = [(run, run.names.index(name)) for run in runs if name in run.names]
        filled = [(run, i) for run, i in holding if run.n_features[i]]
        outlier = [float(run.on_outlier[i]) for run, i in filled]
        normal = [float(run.on_normal[i]) for run, i in filled]
        table.add_row(
            Cell(_name_group(name), EMPTY if len(filled) < len(holding) else ""),
            compute_stat(float(run.n_features[i]) for run, i in holding),
            compute_stat(outlier),
            compute_stat(normal),
            compute_stat(float(run.ratio[i]) for run, i in filled),
            compute_stat(_divide(x, run.all_on_outlier) for x, (run, _) in zip(outlier, filled, strict=True)),
            compute_stat(_divide(x, run.all_on_normal) for x, (run, _) in zip(normal, filled, strict=True)),
        )
    table.add_section()
    table.add_row(
        "all features",
        None,
        compute_stat(run.all_on_outlier for run in runs),
        compute_stat(run.all_on_normal for run in runs),
        compute_stat(_divide(run.all_on_outlier, run.all_on_normal) for run in runs),
        None,
        None,
    )
    return table


def add_paper_activation(table: Table, paper_reference: str | None) -> Table:
    """Add the paper's rows to the table of activations, only where the caller says that model and data are its own."""
    if paper_reference in PAPER_ACTIVATION:
        table.add_section(f"{PAPER_TITLES[paper_reference]}, in units of its SAE")
        for name, (on_outlier, on_normal) in PAPER_ACTIVATION[paper_reference].items():
            table.add_row(_name_group(name), None, on_outlier, on_normal, on_outlier / on_normal, None, None)
    return table


def _group_names(runs: Sequence[GroupActivation]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.names))


def _name_group(name: str) -> str:
    return f"{name}-scope" if name in ("high", "low") else name


def _divide(part: float, whole: float) -> float:
    return part / whole if whole > 0 else math.nan


def _say_no_outliers(tokens: TokenOutliers) -> str:
    norms = tokens.norms
    return (
        f"None of the {norms.n_tokens:,} patch tokens of the training split has a norm above"
        f" {_name_threshold(tokens)}, where the norm histogram has no second mode, so there is nothing to compare with"
        " normal tokens."
    )


def _name_threshold(tokens: TokenOutliers) -> str:
    return f"the threshold {tokens.norms.threshold:.4g} ({tokens.rule}) after block {tokens.layer}"


def _describe_distances(tokens: TokenOutliers) -> list[str]:
    norms, where = tokens.norms, _name_threshold(tokens)
    if norms.n_outliers == 0:
        return [_say_no_outliers(tokens)]
    mode = "form a mode of their own" if norms.has_outlier_mode else "form no mode of their own: they are a tail"
    there = (
        f"{norms.n_outliers:,} of {norms.n_tokens:,} patch tokens ({norms.n_outliers / norms.n_tokens:.2%}), in"
        f" {tokens.n_images_with:,} of {tokens.n_images:,} training images, have a norm above {where}; in the histogram"
        f" of norms they {mode}."
    )
    mean = _compute_means(tokens)["outlier"]
    if mean.n == 0:
        return [NOT_SHARED, there]
    parts = [_compare(tokens, name) for name in reversed(MAPS[1:])]
    moved = f"Between two shifted crops, the map of outlier tokens' norms moves by {mean.mean:.3f} diagonals"
    return [f"{moved} (mean of {mean.n} images): {' and '.join(parts)}.", there]


def _compare(tokens: TokenOutliers, other: str) -> str:
    difference, theirs = _compute_difference(tokens, other), _compute_means(tokens)[other].mean
    heading = HEADINGS[other]
    if not difference.n:
        return f"{heading} have no distance"
    if not math.isfinite(difference.error):
        return f"{heading} by {theirs:.3f}, with too few images to tell them apart"
    amount = f"{abs(difference.mean):.3f} ± {difference.error:.3f} (standard error)"
    if abs(difference.mean) <= N_ERRORS * difference.error:
        return f"not clearly farther or less far than {heading} ({theirs:.3f}; difference {amount})"
    direction = "farther" if difference.mean > 0 else "less far"
    return f"{direction} than {heading} ({theirs:.3f}; by {amount})"


def _describe_activation(runs: Sequence[GroupActivation]) -> str:
    """One sentence on the direction of both ratios; for bands, of the highest and the lowest."""
    names = [name for name in _group_names(runs) if name != "unscored"]
    if len(names) < 2 or runs[0].n_outlier == 0:  # that there are none is said already
        return ""
    high, low = ("high", "low") if "high" in names else (names[-1], names[0])
    known = [run for run in runs if _has_features(run, high) and _has_features(run, low)]
    if not known:
        return "Which features act on outlier tokens is not known: the group of high scope or of low scope is empty."
    agree = [_read(run, high)[0] > _read(run, high)[1] and _read(run, low)[0] < _read(run, low)[1] for run in known]
    direction = "high scope more on outlier tokens, low scope more on normal ones"
    n_agree, n = sum(agree), len(known)
    seeds = {1: "", 2: "in both SAE seeds "}.get(n, f"in all {n} SAE seeds ")
    if n_agree == n:
        verdict = f"{seeds}the paper's direction ({direction})"
    elif n_agree == 0:
        verdict = f"{seeds}not the paper's direction ({direction})"
    else:
        verdict = f"the paper's direction ({direction}) in {n_agree} of {n} SAE seeds alone"
    parts = [
        f"{_name_group(name)} features {_describe_pair([_read(run, name) for run in known])}" for name in (high, low)
    ]
    everyone = _describe_pair([(run.all_on_outlier, run.all_on_normal) for run in known])
    return f"Activation per outlier token against that per normal token: {', '.join(parts)}, all {everyone}: {verdict}."


def _has_features(run: GroupActivation, name: str) -> bool:
    return name in run.names and bool(run.n_features[run.names.index(name)])


def _read(run: GroupActivation, name: str) -> tuple[float, float]:
    """The group's activation on an outlier and on a normal token."""
    i = run.names.index(name)
    return float(run.on_outlier[i]), float(run.on_normal[i])


def _describe_pair(pairs: Sequence[tuple[float, float]]) -> str:
    outlier, normal = np.mean(pairs, axis=0)
    ratio = compute_stat(_divide(*pair) for pair in pairs).mean
    times = f" (ratio {ratio:.2f})" if math.isfinite(ratio) else ""
    return f"{outlier:.2f} against {normal:.2f}{times}"


def _describe_layers(tokens: TokenOutliers) -> str:
    with_mode = [str(i) for i, summary in enumerate(tokens.by_layer) if summary.has_outlier_mode]
    if not with_mode:
        found = [f"{one.n_outliers:,} of {one.n_tokens:,} after block {i}" for i, one in enumerate(tokens.by_layer)]
        tails = [text for text in found if not text.startswith("0 ")]
        tail = f": tokens above the threshold of their block are {', '.join(tails)}" if tails else ""
        return f"After none of the {len(tokens.by_layer)} blocks do outliers form a mode of their own{tail}."
    blocks = "block" if len(with_mode) == 1 else "blocks"
    return f"Outliers form a mode of their own after {blocks} {', '.join(with_mode)} of 0..{len(tokens.by_layer) - 1}."


def _make_figures(tokens: TokenOutliers) -> dict[str, SectionFigure]:
    by_layer = SectionFigure(
        lambda: draw_norms_by_layer(tokens),
        "Norms of the patch tokens after every block, each with its own threshold by the same rule.",
    )
    if len(tokens.pictures) == 0:  # no outliers, or none to compare
        return {"norms_by_layer": by_layer}
    return {
        "outlier_maps": SectionFigure(
            lambda: draw_outlier_maps(tokens),
            "Where the outlier tokens lie on both crops of some images, and where equally many next-highest normal ones"
            " do; the region both crops show is outlined.",
        ),
        "outlier_distances": SectionFigure(
            lambda: draw_outlier_distances(tokens),
            "How far the maps of norms move between the crops of each image; chance: against the next image's map.",
        ),
        "norms_by_layer": by_layer,
    }


def _summarise(tokens: TokenOutliers, groups: Mapping[int, GroupActivation]) -> dict[str, Any]:
    means = _compute_means(tokens)
    return {
        "threshold": tokens.norms.threshold,
        "rule": tokens.rule,
        "n_tokens": tokens.norms.n_tokens,
        "n_outliers": tokens.norms.n_outliers,
        "n_images_with_outliers": tokens.n_images_with,
        "has_outlier_mode": tokens.norms.has_outlier_mode,
        "blocks_with_outlier_mode": [i for i, summary in enumerate(tokens.by_layer) if summary.has_outlier_mode],
        "by_block": [
            {
                "n_outliers": summary.n_outliers,
                "n_tokens": summary.n_tokens,
                "has_outlier_mode": summary.has_outlier_mode,
            }
            for summary in tokens.by_layer
        ],
        "emd": {name: _plain(mean) for name, mean in means.items()},
        "chance_emd": {name: _finite(compute_stat(tokens.distances.chance_emd[i]).mean) for i, name in enumerate(MAPS)},
        "outlier_minus": {name: _plain(_compute_difference(tokens, name)) for name in MAPS[1:]},
        "activation": [
            {
                "sae_seed": seed,
                "ratio_of_all": _finite(_divide(run.all_on_outlier, run.all_on_normal)),
                "groups": {
                    name: {
                        "n_features": int(run.n_features[i]),
                        "on_outlier": _finite(float(run.on_outlier[i])),
                        "on_normal": _finite(float(run.on_normal[i])),
                        "ratio": _finite(float(run.ratio[i])),
                    }
                    for i, name in enumerate(run.names)
                },
            }
            for seed, run in groups.items()
        ],
    }


def _plain(mean: Mean) -> dict[str, float | int | None]:
    return {"mean": _finite(mean.mean), "standard_error": _finite(mean.error), "n_images": mean.n}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
