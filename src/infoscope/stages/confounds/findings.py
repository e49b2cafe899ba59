"""What the numbers on confounds say, in sentences: what is found, and what is not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from infoscope.report.tables import Stat, compute_stat, format_number, format_signed
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.partial_ranks import compute_spearman
from infoscope.scope.separation import SCORES
from infoscope.stages.confounds.figures import CONFOUNDS, EFFECTS
from infoscope.stages.confounds.numbers import MIN_GROUP, SCORE_NAMES, Correlation, Ranks, Separation

MEDIUM_RHO = 0.3
"""Rank correlations from here on are called out ("medium" by Cohen, 1988)."""


def say_truth(
    separations: Mapping[str, Separation],
    correlations: Mapping[str, Correlation],
    medians: Mapping[str, tuple[Stat, Stat]],
    tables: Sequence[LatentTable],
) -> list[str]:
    """Say whether the CDS goes with what is known of the features: of the declared ones, of effects without cuts."""
    if not separations:
        return [
            "The data have no global factors and label maps, so which features are global is not known: there is no"
            " AUROC."
        ]
    return [
        _say_auroc(separations),
        _say_effects(correlations, tables),
        _say_baselines(separations["all"]),
        _say_diffuse(separations["diffuse"], medians),
    ]


def _write_auroc(found: Separation) -> str:
    sizes = f"{format_number(found.n_global.mean, 0)} against {format_number(found.n_local.mean, 0)} features"
    value = found.auroc["cds"].mean
    if not math.isfinite(value):
        return f"no AUROC ({sizes})"
    low, high = found.intervals["cds"]
    return f"AUROC {value:.2f} (95 % interval {low:.2f} to {high:.2f}; {sizes})"


def _judge(found: Separation) -> str:
    if found.is_small:
        return "too few to say anything"
    low, high = found.intervals["cds"]
    if low > 0.5:
        return "it ranks known-global features higher"
    return "it ranks them the wrong way round" if high < 0.5 else "it does not tell them apart"


def _say_auroc(separations: Mapping[str, Separation]) -> str:
    """Say whether the CDS tells known-global from known-local features, of each subset that has enough of them."""
    parts = [
        f"{name}: {_write_auroc(separations[subset])}, {_judge(separations[subset])}"
        for subset, name in (("all", "All"), ("compact", "Compact ones"), ("matched", "At matched firing frequency"))
    ]
    return f"The CDS as a test of known-global against known-local features. {'. '.join(parts)}."


def _say_effects(correlations: Mapping[str, Correlation], tables: Sequence[LatentTable]) -> str:
    """Say how the CDS correlates with what factors and labels explain, and whether the firing frequency does too."""
    parts, with_rate = [], []
    for key, expected in (("image_effect", 1), ("label_effect", -1)):
        name, rho, equal = EFFECTS[key].name, correlations[key].rho.mean, correlations[key].at_equal_rate.mean
        if not math.isfinite(rho):
            continue
        decisive = equal if math.isfinite(equal) else rho
        verdict = "as it should" if expected * decisive >= MEDIUM_RHO else "not as it should"
        given = f", {format_signed(equal)} at equal firing frequency" if math.isfinite(equal) else ""
        parts.append(f"with the {name} {format_signed(rho)}{given} ({verdict})")
        rates = [compute_spearman(table[key], table["firing_rate"])[0] for table in tables]
        with_rate.append(f"the {name} {format_signed(compute_stat(rates).mean)}")
    if not parts:
        return "No feature has both a CDS and an effect of factors or labels."
    rates = " and ".join(with_rate)
    return f"Without cuts the CDS goes (Spearman) {' and '.join(parts)}; the firing frequency with {rates}."


def _say_baselines(everyone: Separation) -> str:
    """Say what properties that should not do the score's work reach on the same features."""
    if everyone.is_small:
        return "Too few features are declared to compare the CDS with firing frequency, support and peak."
    cds, *others = (everyone.auroc[score].mean for score in SCORES)
    named = dict(zip((SCORE_NAMES[score] for score in SCORES[1:]), others, strict=True))
    strongest = max(named, key=lambda name: abs(named[name] - 0.5))
    parts = ", ".join(f"{name} {value:.2f}" for name, value in named.items())
    adds = abs(cds - 0.5) > abs(named[strongest] - 0.5)
    return (
        f"On the same features the AUROC of what should not do the score's work: {parts}. The CDS, {cds:.2f},"
        f" lies {'farther from 0.5 than any of them' if adds else f'no farther from 0.5 than {strongest} does'}."
    )


def _say_diffuse(found: Separation, medians: Mapping[str, tuple[Stat, Stat]]) -> str:
    """Say that diffuse known-global features are expected to fail, and whether they do."""
    expected = (
        "A feature that fires evenly everywhere scores near 0 by definition, whatever it knows, so diffuse known-global"
        " features are expected to score low and the CDS to fail on them:"
    )
    (diffuse, n_diffuse), (compact, n_compact) = medians["global_diffuse"], medians["global_compact"]
    if n_diffuse.mean < MIN_GROUP or n_compact.mean < MIN_GROUP:
        return (
            f"{expected} with {format_number(n_diffuse.mean, 0)} diffuse and {format_number(n_compact.mean, 0)} compact"
            " known-global features there are too few to say."
        )
    seen = "they do score lower" if diffuse.mean < compact.mean else "they do not score lower"
    text = f"{expected} {seen} (median {diffuse.mean:.3f}) than compact known-global ones ({compact.mean:.3f})"
    return f"{text}; diffuse features alone, {_write_auroc(found)}, {_judge(found)}."


def say_correlations(correlations: Mapping[str, Correlation]) -> str:
    """Name the properties that correlate with the CDS, the strongest first."""
    means = {key: correlations[key].rho.mean for key in CONFOUNDS}
    finite = {key: rho for key, rho in means.items() if math.isfinite(rho)}
    if not finite:
        return "No correlation of the CDS with other properties can be computed."
    strong = sorted((key for key in finite if abs(finite[key]) >= MEDIUM_RHO), key=lambda key: -abs(finite[key]))
    if not strong:
        return f"No measure of how often, how strongly or how widely features fire goes with the CDS by {MEDIUM_RHO}."
    parts = ", ".join(f"{CONFOUNDS[key].name} {format_signed(finite[key])}" for key in strong)
    text = f"The CDS goes with (Spearman, {MEDIUM_RHO} or more): {parts}."
    if "firing_rate" in strong:
        rarer = "rarer" if finite["firing_rate"] < 0 else "more frequent"
        text += f" Features of high CDS are also the {rarer} ones: compare groups at matched frequency."
    return text


def say_ranks(ranks: Ranks) -> str:
    """Say whether the distances change from the first to the last rank."""
    first, last, chance, rho, _ = (of.mean for of in ranks)
    if not math.isfinite(first):
        return "No feature has a distance at the first and at the last rank."
    agreement = f" (Spearman {format_number(rho, 2)} between them)" if math.isfinite(rho) else ""
    return (
        f"By rank: the mean distance is {first:.3f} at the first and {last:.3f} at the last rank{agreement}; chance is"
        f" {format_number(chance, 3)}."
    )
