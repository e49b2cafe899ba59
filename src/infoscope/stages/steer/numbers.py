"""What SAE seeds have found of steering, by groups of latents, and joined."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from infoscope.analyses.steering import LATENT, RANDOM, SteeringResult
from infoscope.analyses.suppression import CHOSEN, CONTROL, Suppressed, SuppressionResult
from infoscope.report.tables import Stat, compute_stat, format_number
from infoscope.scope.partition import name_group
from infoscope.stages.score.result import ScopeResult

ALL = "all measured"
EQUAL_WITHIN = 0.1
"""Of the mass of the chosen latents: so near must random ones come to it, in the mean over draws, to be compared."""
MIN_LEFT = 0.01
"""Of all mass: so much must chosen and random latents leave, for random ones that are all the others are no draw."""


class Found(NamedTuple):
    """What was found of one SAE seed.

    scope: None where features have no maps and so no score, such as those of pooled embeddings.
    suppression: None where no target misleads.
    """

    scope: ScopeResult | None
    result: SteeringResult
    suppression: SuppressionResult | None = None

    @property
    def where(self) -> str:
        """In words, where latents are set high: an SAE whose features have no maps reads embeddings."""
        return "in the embedding" if self.scope is None else "on all patches"

    def groups(self) -> dict[str, Bool[np.ndarray, " n"]]:
        """Return which of the measured latents are in each group by score, in words; none where nothing is scored."""
        if self.scope is None:
            return {}
        return {name_group(name): of[self.result.measured] for name, of in self.scope.partition.groups.items()}


def describe_groups(found: Found) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield name and numbers of all measured latents, and of each group; those of random directions in their place."""
    result, everything = found.result, np.ones(len(found.result.measured), dtype=bool)
    for name, members in {ALL: everything, **found.groups()}.items():
        numbers: dict[str, float] = {"n_latents": int(members.sum())}
        for along, of in ((LATENT, ""), (RANDOM, "_random")):
            means = {
                "steerable": result.is_steerable,
                "specificity": result.specificity,
                "taken": result.taken,
                "taken_before": result.taken_before,
            }
            numbers["effect" + of] = float(np.median(result.effect[along][members])) if members.any() else math.nan
            numbers |= {key + of: compute_stat(values[along][members]).mean for key, values in means.items()}
        yield name, numbers


def join_groups(found: Sequence[Found]) -> dict[str, dict[str, Stat]]:
    """Return the numbers of `describe_groups` over SAE seeds."""
    runs = [dict(describe_groups(one)) for one in found]
    return {name: {key: compute_stat(run[name][key] for run in runs) for key in runs[0][name]} for name in runs[0]}


def count_words(found: Sequence[Found]) -> tuple[list[Stat], list[Stat]]:
    """Return how many latents are steerable to each word, and how many random directions, over SAE seeds."""
    both = []
    for along in (LATENT, RANDOM):
        counts = [
            np.bincount(one.result.word[along][one.result.is_steerable[along]], minlength=len(one.result.words))
            for one in found
        ]
        both.append([compute_stat(of) for of in zip(*counts, strict=True)])
    return both[0], both[1]


class Spurious(NamedTuple):
    """How what misleads is spoken of.

    carried: what features carry. typical, other: what images have, "the typical texture" and "another texture".
    explained: a sentence on what is typical.
    """

    carried: str
    typical: str
    other: str
    explained: str


class Removal(NamedTuple):
    """What is removed, over SAE seeds and draws: number and mass of latents, and accuracies, 0..1.

    others: accuracy on images without the typical value of what misleads.
    """

    kind: str
    size: int
    n_latents: Stat
    mass: Stat
    accuracy: Stat
    typical: Stat
    others: Stat
    worst: Stat


def join_removals(removed: Sequence[SuppressionResult], min_images: int) -> list[Removal]:
    """Return what each removal does, nothing first; draws of a seed are averaged before seeds are joined.

    Random latents stand beside chosen ones where they have as much mass in every seed, see `is_equal`.
    """
    points = dict.fromkeys((one.kind, one.size) for one in removed[0].variants)
    joined = []
    for kind, size in points:
        if kind == CONTROL and not all(is_equal(of, size) for of in removed):
            continue
        by_seed = []
        for of in removed:
            places = [i for i, one in enumerate(of.variants) if (one.kind, one.size) == (kind, size)]
            variants = [of.variants[i] for i in places]
            numbers = (of.accuracy(), of.accuracy(True), of.accuracy(False), of.worst_group(min_images))
            means = [float(one[places].mean()) for one in numbers]
            by_seed.append([*_average(variants), *means])
        joined.append(Removal(kind, size, *(compute_stat(of) for of in zip(*by_seed, strict=True))))
    return joined


def name_sizes(removals: Sequence[Removal]) -> dict[int, str]:
    """Return how many features each size removes, in words: "100", or "76 of 100" where no more carry what misleads."""
    named = {one.size: str(one.size) for one in removals if not one.kind}
    for one in removals:
        if one.kind == CHOSEN:
            n = one.n_latents.mean
            number = format_number(n, 0 if n % 1 == 0 else 1)
            named[one.size] = str(one.size) if n == one.size else f"{number} of {one.size}"
    return named


def is_equal(of: SuppressionResult, size: int) -> bool:
    """Return whether the random latents for so many chosen ones have their mass, within `EQUAL_WITHIN`, by choice.

    They cannot where the chosen ones have about half of all mass or more: see `leaves_choice`.
    """
    chosen, control = (_masses(of, kind, size) for kind in (CHOSEN, CONTROL))
    if not control or not leaves_choice(of, size):
        return False
    asked = float(np.mean(chosen))
    return abs(float(np.mean(control)) - asked) <= EQUAL_WITHIN * asked


def leaves_choice(of: SuppressionResult, size: int) -> bool:
    """Return whether each draw of random latents for so many chosen ones leaves others, of a share of `MIN_LEFT`."""
    taken = [mass + max(_masses(of, CHOSEN, size), default=0.0) for mass in _masses(of, CONTROL, size)]
    return max(taken, default=0.0) <= 1 - MIN_LEFT


def _masses(of: SuppressionResult, kind: str, size: int) -> list[float]:
    return [one.mass for one in of.variants if (one.kind, one.size) == (kind, size)]


def _average(variants: Sequence[Suppressed]) -> tuple[float, float]:
    return float(np.mean([one.n_latents for one in variants])), float(np.mean([one.mass for one in variants]))


def compare_removals(removed: Sequence[SuppressionResult], size: int, against: str) -> Stat:
    """Return by how much more images without the typical value are right without so many chosen latents than otherwise.

    Each image's difference is a mean over SAE seeds and draws; the spread is over images.

    Args:
        size: how many were asked for.
        against: `CONTROL`, without random latents of their mass; or empty, with all.
    """
    differences = []
    for of in removed:
        first, second = (
            [i for i, one in enumerate(of.variants) if (one.kind, one.size) == wanted]
            for wanted in ((CHOSEN, size), (against, size if against else 0))
        )
        some = of.correct[:, ~of.is_typical].astype(np.float64)
        differences.append(some[first].mean(axis=0) - some[second].mean(axis=0))
    return compute_stat(np.mean(differences, axis=0))
