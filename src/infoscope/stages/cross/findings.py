"""What the cross says, in sentences: what goes with scope beyond firing frequency, and what does not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from infoscope.analyses.config import CrossConfig
from infoscope.report.tables import Table, format_number, format_signed
from infoscope.stages.cross.quantities import LEVEL, Crossed

FEATURED = {
    "ms": "Monosemanticity",
    "label_entropy_excess": "Label entropy beyond chance, low for features of one class",
    "image_effect": "What global factors explain",
    "label_effect": "What patch labels explain",
}
"""By column of the table of latents: what a sentence of its own tells of, where there is such a column."""
N_NAMED = 6
"""Quantities that a sentence lists."""


def say_beyond_rate(crossed: Mapping[str, Crossed], config: CrossConfig) -> list[str]:
    """Say which quantities go with scope at like firing rate, and which overall alone."""
    tested = {name: of for name, of in crossed.items() if math.isfinite(of.p)}
    if not tested:
        return ["Too few features have a CDS and anything else to say what goes with scope."]
    lowest = 1 / (1 + config.n_permutations)
    if lowest * len(tested) >= LEVEL:
        return [
            f"{config.n_permutations:,} permutations cannot tell any of {len(tested)} quantities from chance: raise"
            " cross.n_permutations."
        ]
    told = [of for of in tested.values() if of.is_told]
    words = [
        f"{side} of: {_list([of for of in told if (of.within.mean > 0) == (sign > 0)])}"
        for side, sign in (("more", 1), ("less", -1))
        if any((of.within.mean > 0) == (sign > 0) for of in told)
    ]
    text = f"features of higher scope have {'; '.join(words)}" if words else "nothing is seen to go with scope"
    findings = [
        f"At like firing frequency, after correction for {len(tested)} quantities, {text}. {len(tested) - len(told)} of"
        f" {len(tested)} cannot be told from chance."
    ]
    through_rate = [of for of in tested.values() if of.is_decided and not of.is_told]
    if through_rate:
        findings.append(
            "These go with scope over all features, but at like firing frequency not beyond chance:"
            f" {_list(through_rate, within=False)}."
        )
    return findings


def _list(many: Sequence[Crossed], within: bool = True) -> str:
    """Return the strongest, with their correlations."""
    size = {id(of): of.within.mean if within else of.rho.mean for of in many}
    strongest = sorted(many, key=lambda of: -abs(size[id(of)]))
    parts = [f"{of.label} ({format_signed(size[id(of)])})" for of in strongest[:N_NAMED]]
    return ", ".join(parts) + (f" and {len(many) - N_NAMED} more" if len(many) > N_NAMED else "")


def say_featured(crossed: Mapping[str, Crossed]) -> list[str]:
    """Say of each of `FEATURED` that there is whether it goes with scope."""
    return [_say(words, crossed[name]) for name, words in FEATURED.items() if name in crossed]


def _say(words: str, of: Crossed) -> str:
    if not math.isfinite(of.rho.mean):
        return f"{words}: too few features have it to say whether it goes with scope."
    rho, low, high, at_like = map(format_signed, (of.rho.mean, of.low, of.high, of.within.mean))
    overall = f"Spearman {rho} with the CDS ({low} to {high})"
    within = "at like firing frequency none" if math.isnan(of.p) else f"{at_like} at like firing frequency"
    seen = f"features of higher scope have {'more' if of.within.mean > 0 else 'less'} of it"
    verdict = seen if of.is_told else "not told from chance"
    return f"{words}: {overall}, {within} (p {format_number(of.p_corrected, 3)} after correction): {verdict}."


def say_levels(level: Crossed, table: Table) -> list[str]:
    """Say how scope changes from the first Matryoshka level to the last."""
    place = [column.key for column in table.columns].index("mean_cds")
    means = [row[place].number for row in table.rows]
    if not any(mean is not None and math.isfinite(mean) for mean in means):
        return []
    listed = ", ".join(format_number(math.nan if mean is None else mean, 3) for mean in means)
    return [f"Mean CDS by Matryoshka level, from the first features on: {listed}.", _say("Matryoshka level", level)]
