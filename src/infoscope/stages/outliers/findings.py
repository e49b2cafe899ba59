"""What the numbers on outlier tokens say, in sentences: whether there are any, whether they leap, who acts on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from infoscope.report.tables import Stat, compute_stat
from infoscope.scope.group_activation import Acts, GroupActivation
from infoscope.scope.partition import find_extremes, name_group
from infoscope.scope.token_outliers import MAPS, TokenOutliers
from infoscope.stages.outliers.figures import HEADINGS

NOT_SHARED = "Whether outlier tokens leap is not known: in no image both crops have one in the region they share."
N_ERRORS = 2
"""Standard errors that a mean difference must exceed to be called one."""


def compute_means(tokens: TokenOutliers) -> dict[str, Stat]:
    """Return how far each map of norms moves, over images, in diagonals of the shared region."""
    return {name: compute_stat(emd) for name, emd in zip(MAPS, tokens.distances.emd, strict=True)}


def compute_difference(tokens: TokenOutliers, other: str) -> Stat:
    """Return the outlier map's distance minus another's, over the images in which both have a distance."""
    emd = tokens.distances.emd
    return compute_stat(emd[MAPS.index("outlier")] - emd[MAPS.index(other)])


def compute_stats(acts: Sequence[Acts]) -> list[Stat]:
    """Return, over SAE seeds, the activation on outlier tokens, on normal ones, and their ratio."""
    return [compute_stat(getattr(one, name) for one in acts) for name in ("on_outlier", "on_normal", "ratio")]


def list_groups(runs: Sequence[GroupActivation]) -> list[str]:
    """Return the groups of any run, in their order."""
    return list(dict.fromkeys(name for run in runs for name in run.groups))


def _name_threshold(tokens: TokenOutliers) -> str:
    return f"the threshold {tokens.norms.threshold:.4g} ({tokens.rule}) after block {tokens.layer}"


def describe_distances(tokens: TokenOutliers) -> list[str]:
    """Say whether the outlier tokens leap between crops, and how many there are."""
    norms, where = tokens.norms, _name_threshold(tokens)
    if norms.n_outliers == 0:
        return [
            f"None of the {norms.n_tokens:,} patch tokens of the training split has a norm above {where}, where the"
            " norm histogram has no second mode, so there is nothing to compare with normal tokens."
        ]
    mode = "form a mode of their own" if norms.has_outlier_mode else "form no mode of their own: they are a tail"
    there = (
        f"{norms.n_outliers:,} of {norms.n_tokens:,} patch tokens ({norms.n_outliers / norms.n_tokens:.2%}), in"
        f" {tokens.n_images_with:,} of {tokens.n_images:,} training images, have a norm above {where}; in the histogram"
        f" of norms they {mode}."
    )
    mean = compute_means(tokens)["outlier"]
    if mean.n == 0:
        return [NOT_SHARED, there]
    parts = [_compare(tokens, name) for name in reversed(MAPS[1:])]
    moved = f"Between two shifted crops, the map of outlier tokens' norms moves by {mean.mean:.3f} diagonals"
    return [f"{moved} (mean of {mean.n} images): {' and '.join(parts)}.", there]


def _compare(tokens: TokenOutliers, other: str) -> str:
    difference, theirs = compute_difference(tokens, other), compute_means(tokens)[other].mean
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


def describe_activation(runs: Sequence[GroupActivation]) -> str:
    """Say in which direction both ratios lie, for bands of the highest and the lowest; nothing where that is said."""
    names = [name for name in list_groups(runs) if name != "unscored"]
    if len(names) < 2 or runs[0].n_outlier == 0:  # that there are none is said already
        return ""
    high, low = find_extremes(names)
    pairs = [(run.groups.get(high), run.groups.get(low), run.everyone) for run in runs]
    known = [(a, b, everyone) for a, b, everyone in pairs if a and b and a.n_features and b.n_features]
    if not known:
        return "Which features act on outlier tokens is not known: one of the two groups is empty."
    agree = [a.on_outlier > a.on_normal and b.on_outlier < b.on_normal for a, b, _ in known]
    direction = f"{name_group(high, ' ')} more on outlier tokens, {name_group(low, ' ')} more on normal ones"
    n_agree, n = sum(agree), len(known)
    seeds = {1: "", 2: "in both SAE seeds "}.get(n, f"in all {n} SAE seeds ")
    if n_agree == n:
        verdict = f"{seeds}the paper's direction ({direction})"
    elif n_agree == 0:
        verdict = f"{seeds}not the paper's direction ({direction})"
    else:
        verdict = f"the paper's direction ({direction}) in {n_agree} of {n} SAE seeds alone"
    highs, lows, all_of = (_describe_acts(acts) for acts in zip(*known, strict=True))
    return (
        "Activation per outlier token against that per normal token:"
        f" {name_group(high)} features {highs}, {name_group(low)} features {lows}, all {all_of}: {verdict}."
    )


def _describe_acts(acts: Sequence[Acts]) -> str:
    outlier, normal, ratio = (stat.mean for stat in compute_stats(acts))
    times = f" (ratio {ratio:.2f})" if math.isfinite(ratio) else ""
    return f"{outlier:.2f} against {normal:.2f}{times}"


def describe_layers(tokens: TokenOutliers) -> str:
    """Say after which blocks outliers form a mode of their own."""
    with_mode = [str(i) for i, summary in enumerate(tokens.by_layer) if summary.has_outlier_mode]
    if not with_mode:
        found = [f"{one.n_outliers:,} of {one.n_tokens:,} after block {i}" for i, one in enumerate(tokens.by_layer)]
        tails = [text for text in found if not text.startswith("0 ")]
        tail = f": tokens above the threshold of their block are {', '.join(tails)}" if tails else ""
        return f"After none of the {len(tokens.by_layer)} blocks do outliers form a mode of their own{tail}."
    blocks = "block" if len(with_mode) == 1 else "blocks"
    return f"Outliers form a mode of their own after {blocks} {', '.join(with_mode)} of 0..{len(tokens.by_layer) - 1}."
