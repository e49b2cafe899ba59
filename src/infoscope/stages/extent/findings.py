"""What the numbers on extents say, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from infoscope.report.tables import compute_stat, format_number, format_percent, format_signed
from infoscope.scope.extent.result import ExtentResult
from infoscope.scope.partial_ranks import MIN_LATENTS
from infoscope.stages.confounds.numbers import Correlation, Separation
from infoscope.stages.extent.numbers import ALL, CORRELATES, SCORES, Curve, Summary, is_small


def say_extents(
    separations: Mapping[str, Separation],
    curves: Mapping[str, Curve],
    summaries: Mapping[str, Summary],
    correlations: Mapping[str, Mapping[str, Correlation]],
    extents: Sequence[ExtentResult],
    design: str,
) -> list[str]:
    """Say whether the extent tells more than the CDS, first where the truth is known; and what was measured.

    Args:
        extents: of each SAE seed. design: what was measured of each latent, a sentence.
    """
    known = [
        _say_responses(curves[ALL], extents[0].radii.tolist()),
        _say_summary(summaries[ALL]),
        *_say_unknown(extents),
        _say_correlations(correlations),
    ]
    none = ["No feature has an extent.", *_say_unknown(extents)]
    said, truth = known if summaries[ALL].n.mean else none, _say_truth(separations)
    n_encoded = format_number(compute_stat(one.n_encoded for one in extents).mean, 0)
    measured = f"Measured: {design} Encoded were {n_encoded}."
    return [*truth, *said, measured] if separations else [*said, *truth, measured]


def _say_truth(separations: Mapping[str, Separation]) -> list[str]:
    """Say whether extent and CDS tell broad or global features from local ones, which of them better, and at what.

    Facts that no small window tells are what the extent is about, so that they come first where the data have them.
    """
    if not separations:
        return [
            "Which features are global is not known of these data, so it cannot be said whether extent or CDS is right."
        ]
    said = []
    for subset, name in (("broad", "known-broad"), ("all", "known-global")):
        if subset in separations:
            said.append(_compare(separations[subset], name))
    return sorted(said, key=lambda text: text.startswith("Too few"))


def _compare(found: Separation, name: str) -> str:
    sizes = f"{format_number(found.n_global.mean, 0)} against {format_number(found.n_local.mean, 0)} features"
    extent, cds = found.auroc["extent"].mean, found.auroc["cds"].mean
    if found.is_small or not math.isfinite(extent + cds):
        return (
            f"Too few {name} and known-local features have an extent to tell whether extent or CDS is right ({sizes})."
        )
    (low, high), (other_low, other_high) = (found.intervals[score] for score in ("extent", "cds"))
    is_apart = high < other_low or low > other_high
    verdict = "as well as" if extent == cds else "worse than" if extent < cds else "better than"
    doubt = "" if is_apart or extent == cds else ", though the intervals overlap"
    text = (
        f"The extent tells {name} from known-local features {verdict} the CDS{doubt}: AUROC"
        f" {_write(found, 'extent')} against {_write(found, 'cds')} ({sizes})"
    )
    others = ", ".join(
        f"{SCORES[score]} {format_number(found.auroc[score].mean, 2)}"
        for score in ("mean_extent", "context_effect", "firing_rate")
    )
    return f"{text}; {others}, where a value below .5 tells as much in reverse."


def _write(found: Separation, score: str) -> str:
    low, high = found.intervals[score]
    return f"{found.auroc[score].mean:.2f} (95 % interval {low:.2f} to {high:.2f})"


def _say_responses(curve: Curve, radii: Sequence[int]) -> str:
    side = 2 * radii[-1] + 1
    text = (
        f"With nothing but its own patch left, the mean feature keeps {format_percent(curve.kept[0])} of its response"
    )
    if side > 1:
        text += f", in a window of {side} x {side} patches {format_percent(curve.kept[-1])}"
    return f"{text}; with its own patch alone replaced it keeps {format_percent(curve.replaced[0])}."


def _say_summary(of: Summary) -> str:
    return (
        f"Median extent {format_number(of.extent.mean, 2)} of the grid's side: to keep half of the response, its own"
        f" patch is enough for {format_percent(of.at_0)} of the features, and no measured window for"
        f" {format_percent(of.at_1)}. Median context effect {format_number(of.context_effect.mean, 2)} of the variance."
    )


def _say_unknown(extents: Sequence[ExtentResult]) -> list[str]:
    """Say of how many features nothing is known although they were measured, so that nobody takes them for wide."""
    measured = [found.n_measured > 0 for found in extents]
    spoiled = [of & np.isnan(found.extent) for of, found in zip(measured, extents, strict=True)]
    if not np.any([of.any() for of in spoiled]):
        return []
    n, n_measured = (format_number(float(np.mean([of.sum() for of in every])), 0) for every in (spoiled, measured))
    return [
        f"No extent: {n} of {n_measured} measured features, which donors excite nearly as much as their own images do."
    ]


def _say_correlations(correlations: Mapping[str, Mapping[str, Correlation]]) -> str:
    """Say what the extent goes with, as far as `MIN_LATENTS` features have both."""
    named = {key: correlations["extent"][key] for key in ("cds", "cds_minus_chance", "context_effect", "firing_rate")}
    few = [CORRELATES[key] for key, of in named.items() if is_small(of)]
    even = [CORRELATES[key] for key, of in named.items() if not is_small(of) and not math.isfinite(of.rho.mean)]
    parts = [
        f"{CORRELATES[key]} {format_signed(of.rho.mean)}"
        + (f" ({format_signed(of.at_equal_rate.mean)} at equal firing frequency)" if key != "firing_rate" else "")
        for key, of in named.items()
        if CORRELATES[key] not in (*few, *even)
    ]
    if not parts and even:
        return "The extent goes with nothing here: it, or what it is held against, is the same for all features."
    if not parts:
        n = format_number(max(of.n.mean for of in named.values()), 0)
        return f"Too few features have an extent to say what it goes with ({n}, fewer than {MIN_LATENTS})."
    text = f"Spearman correlation of the extent with {_join(parts)}"
    text += f"; of {_join(few)} too few features have both (fewer than {MIN_LATENTS})" if few else ""
    return text + (f"; with {_join(even)} none, as all features are alike in it." if even else ".")


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
