"""The numbers of the section on what features are, over SAE seeds: medians by group, and the latents of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64

from infoscope.analyses.description import Description
from infoscope.report.tables import Stat, compute_stat
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.partition import find_extremes
from infoscope.stages.score.result import ScopeResult


class Measure(NamedTuple):
    """A measure of a feature: its name, and how many digits its values have times `scale`."""

    name: str
    digits: int = 3
    scale: float = 1.0


MEASURES = {
    "mean_firing": Measure("mean activation where it fires"),
    "strong_rate": Measure("patches with a strong activation (%)", 3, 100),
    "ms": Measure("monosemanticity"),
    "clarity": Measure("clarity of the top images"),
    "top_overlap": Measure("overlap of the top images (%)", 2, 100),
    "label_entropy": Measure("label entropy, top images (nats)"),
    "label_entropy_all": Measure("label entropy, all images (nats)"),
    "label_entropy_share": Measure("label entropy, all images, share of the largest"),
    "top_class_share": Measure("strong patches in its top class (%)", 1, 100),
    "tree_depth": Measure("depth in the hierarchy"),
}
"""By column of the table of latents, in the order of the table."""
ALL = "all"


class Found(NamedTuple):
    """What was found of an SAE seed.

    scope: None where features have no maps and so no score, such as those of pooled embeddings.
    table: what is known of each latent, the measures among it.
    """

    description: Description
    scope: ScopeResult | None
    table: LatentTable


Seeds = Sequence[Found]


def name_places(seeds: Seeds) -> str:
    """Return where features fire, in words: on patches, or where they have no maps on whole images."""
    return "images" if seeds[0].scope is None else "patches"


def name_measure(seeds: Seeds, measure: str) -> str:
    """Return what a measure is called."""
    return MEASURES[measure].name.replace("patches", name_places(seeds))


def list_measures(seeds: Seeds) -> list[str]:
    """Return the measures that the data can give."""
    return [name for name in MEASURES if name in seeds[0].table]


def list_groups(seeds: Seeds) -> list[str]:
    """Return the groups of any seed, then features without a score, then all of them; all alone without scores."""
    names = list_scored(seeds)
    return [*names, "unscored", ALL] if names else [ALL]


def list_scored(seeds: Seeds) -> list[str]:
    """Return the groups by score of any seed; none where nothing is scored."""
    scopes = [found.scope for found in seeds if found.scope is not None]
    return list(dict.fromkeys(name for scope in scopes for name in scope.partition.groups))


def get_members(found: Found, group: str) -> Bool[np.ndarray, " d_sae"]:
    """Return the features of a group."""
    everyone = np.ones(len(found.table), dtype=bool)
    if group == ALL or found.scope is None:
        return everyone if group == ALL else ~everyone
    partition = found.scope.partition
    return partition.unscored if group == "unscored" else partition.groups.get(group, ~everyone)


def compute_median(seeds: Seeds, measure: str, group: str) -> Stat:
    """Return the median of a measure over a group's features that have a value."""
    return compute_stat(_median(found.table[measure][get_members(found, group)]) for found in seeds)


def _median(values: Float[np.ndarray, " n"]) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan


def count_without(seeds: Seeds, measure: str) -> Stat:
    """Return how many of all features have no value of a measure."""
    return compute_stat(int((~np.isfinite(found.table[measure])).sum()) for found in seeds)


def compute_chance(seeds: Seeds, measure: str) -> float | None:
    """Return what a measure is for images at random; None where that says nothing."""
    return seeds[0].description.chance.get(measure)  # the same for every SAE


def is_by_labels(seeds: Seeds, measure: str) -> bool:
    """Return whether a measure has a chance level of each group, see `compute_permuted`."""
    return seeds[0].description.by_chance(measure) is not None


def compute_permuted(seeds: Seeds, measure: str, group: str) -> Stat:
    """Return the median of a measure by labels over a group's features, as `compute_median`, with the labels permuted.

    Of each SAE seed it is the mean over the permutations.
    """
    return compute_stat(_median_permuted(found, measure, get_members(found, group)) for found in seeds)


def _median_permuted(found: Found, measure: str, members: Bool[np.ndarray, " d_sae"]) -> float:
    by_chance = found.description.by_chance(measure)
    assert by_chance is not None, f"{measure} is no measure by labels"
    return compute_stat(_median(values[members]) for values in by_chance).mean


def compute_permuted_mean(found: Found, measure: str, members: Bool[np.ndarray, " d_sae"]) -> float:
    """Return the mean of a measure by labels over some of a seed's features, with the labels permuted."""
    by_chance = found.description.by_chance(measure)
    assert by_chance is not None, f"{measure} is no measure by labels"
    return compute_stat(by_chance[:, members].ravel()).mean


class ClassLatents(NamedTuple):
    """The latents of the classes of an SAE seed, and how many are in the group of the highest scores.

    n: [n_classes] latents. share: [n_classes] of those with a score, the share in the group; NaN: none, and so
        everywhere where nothing is scored.
    n_held: different latents. n_everywhere: those that every class with images has.
    everyone: share in the group of all scored latents that fire strongly anywhere; by_patches: the same, each
        weighted by the patches on which it does: what to expect of latents that are chosen by their number.
    """

    n: Int64[np.ndarray, " n_classes"]
    share: Float[np.ndarray, " n_classes"]
    n_held: int
    n_everywhere: int
    everyone: float
    by_patches: float


def name_highest(seeds: Seeds) -> str:
    """Return the group of the highest scores; there must be scores."""
    return find_extremes(list_scored(seeds))[0]


def count_class_latents(found: Found, group: str | None) -> ClassLatents:
    """Return how many of each class's latents are in a group, None: nothing is scored; there must be labels."""
    said = found.description
    of, held, images = said.class_latents, said.n_classes_held, said.class_images
    assert of is not None, "there are no labels"
    assert held is not None, "there are no labels"
    assert images is not None, "there are no labels"
    members = get_members(found, group or "unscored")
    scored = members if found.scope is None else ~found.scope.partition.unscored
    known = of >= 0
    n_scored, n_members = (known & scored[of]).sum(axis=1), (known & members[of]).sum(axis=1)
    rate = said.strong_rate
    return ClassLatents(
        n=known.sum(axis=1),
        share=_divide(n_members, n_scored),
        n_held=int((held > 0).sum()),
        n_everywhere=int((held == np.count_nonzero(images)).sum()),
        everyone=float(_divide(((rate > 0) & members).sum(), ((rate > 0) & scored).sum())),
        by_patches=float(_divide(rate[members].sum(), rate[scored].sum())),
    )


def _divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) > 0)


def compute_uniqueness(seeds: Seeds) -> tuple[Stat, Sequence[Stat]]:
    """Return the mean overlap of two features' top images, and the shares of pairs above 0, 0.1, ... 0.9."""
    overlaps = [found.description.top_overlap for found in seeds]
    means = (float(np.mean(of[np.isfinite(of)])) if np.isfinite(of).any() else math.nan for of in overlaps)
    shares = zip(*(found.description.overlap_shares for found in seeds), strict=True)
    return compute_stat(means), [compute_stat(of) for of in shares]


def summarise(seeds: Seeds) -> Mapping[str, object]:
    """Return medians by measure and group, what they are by chance, how unique the sets are, and the scope of the
    latents of classes."""
    measures, groups = list_measures(seeds), list_groups(seeds)
    overlap, shares = compute_uniqueness(seeds)
    said: dict[str, object] = {
        "medians": {name: {group: compute_median(seeds, name, group) for group in groups} for name in measures},
        "without": {name: count_without(seeds, name) for name in measures},
        "at_random": seeds[0].description.chance,
        "labels_permuted": {
            name: {group: compute_permuted(seeds, name, group) for group in groups}
            for name in measures
            if is_by_labels(seeds, name)
        },
        "overlap": overlap,
        "pairs_above": {f"{step / 10:g}": share for step, share in enumerate(shares)},
    }
    if seeds[0].description.class_latents is not None:
        group = name_highest(seeds) if list_scored(seeds) else None
        counts = [count_class_latents(found, group) for found in seeds]
        said["class_latents"] = {
            "n_different": compute_stat(of.n_held for of in counts),
            "n_of_every_class": compute_stat(of.n_everywhere for of in counts),
            "group": group,
            "share": compute_stat(compute_stat(of.share).mean for of in counts),
            "share_by_patches": compute_stat(of.by_patches for of in counts),
        }
    return said
