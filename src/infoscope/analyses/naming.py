"""Names of latents: the word of a vocabulary that a latent's direction is most like, when it is like that word alone.

After MSAE (2502.20578); concepts, chance levels and the accuracy of names are ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.stats import hypergeom

from infoscope.analyses.top_sets import TopSets

MAX_COSINES = 2**23
"""Of directions and words, that are held at a time (64 MiB)."""
LEVEL = 0.05
"""Below which a value counts as over-represented beyond chance, after division by the number of values."""


class Rule(NamedTuple):
    """When a name is valid (MSAE's): its cosine is larger than `min_cosine`, and over `min_ratio` times the next."""

    min_cosine: float
    min_ratio: float


class Names(NamedTuple):
    """What directions are called.

    concepts: [n, n_best] the concepts of largest cosine, the largest first, the lower of equal ones; -1: a direction of
        zeros has none, or there are no more.
    cosines: theirs; NaN without a concept.
    ratio: of the two largest cosines; infinite where only the first is above 0, NaN where none is.
    """

    concepts: Int64[np.ndarray, "n n_best"]
    cosines: Float[np.ndarray, "n n_best"]
    ratio: Float[np.ndarray, " n"]

    def find_valid(self, rule: Rule) -> Bool[np.ndarray, " n"]:
        """Return which directions have a valid name."""
        return (self.cosines[:, 0] > rule.min_cosine) & (self.ratio > rule.min_ratio)


def name_directions(
    directions: Float[np.ndarray, "n d"],
    texts: Float[np.ndarray, "n_words d"],
    concept_of: Int64[np.ndarray, " n_words"],
    n_best: int = 3,
) -> Names:
    """Return the concepts that directions are most like; a concept counts by the word of it that fits best.

    Args:
        texts: embeddings of words, of any norm but 0.
        concept_of: which concept each word is of, ascending from 0 without gaps; at least two.
    """
    starts = np.flatnonzero(np.diff(concept_of, prepend=-1))
    unit_texts = _scale(texts).T
    n, n_best = len(directions), min(n_best, len(starts))
    names = Names(np.full((n, n_best), -1), np.full((n, n_best), np.nan), np.full(n, np.nan))
    for start in range(0, n, size := max(1, MAX_COSINES // len(texts))):
        rows = slice(start, start + size)
        known = np.linalg.norm(directions[rows], axis=1) > 0
        cosines = np.maximum.reduceat(_scale(directions[rows][known]) @ unit_texts, starts, axis=1)
        best = np.argsort(-cosines, axis=1, kind="stable")[:, : max(n_best, 2)]
        found = np.take_along_axis(cosines, best, axis=1)
        first, second = found[:, 0], found[:, 1]
        ratio = np.where(first > 0, np.inf, np.nan)
        names.ratio[rows][known] = np.divide(first, second, out=ratio, where=second > 0)
        names.concepts[rows][known], names.cosines[rows][known] = best[:, :n_best], found[:, :n_best]
    return names


def count_by_chance(
    directions: Float[np.ndarray, "n d"],
    texts: Float[np.ndarray, "n_words d"],
    concept_of: Int64[np.ndarray, " n_words"],
    rule: Rule,
    draw: Callable[[np.random.Generator], Float[np.ndarray, "n d"]],
    n_draws: int,
    seed: int,
) -> Int64[np.ndarray, "2 n_draws"]:
    """Return how many of some directions have a valid name by chance.

    First with the coordinates of all texts permuted alike, so that words keep their norms and angles with each other
    and lose those with the directions; then with random directions in the place of the directions.

    Args:
        draw: makes these.
    """
    rng, counts = np.random.default_rng(seed), np.zeros((2, n_draws), dtype=np.int64)
    for number in range(n_draws):
        permuted = texts[:, rng.permutation(texts.shape[1])]
        for place, (of, words) in enumerate(((directions, permuted), (draw(rng), texts))):
            counts[place, number] = name_directions(of, words, concept_of, 1).find_valid(rule).sum()
    return counts


def draw_alike(
    rows: Float[np.ndarray, "n d"], shift: Float[np.ndarray, " d"] | float
) -> Callable[[np.random.Generator], Float[np.ndarray, "n d"]]:
    """Return what draws random directions with the norms of some rows, each plus `shift`."""

    def draw(rng: np.random.Generator) -> Float[np.ndarray, "n d"]:
        return _scale(rng.standard_normal(rows.shape)) * np.linalg.norm(rows, axis=1, keepdims=True) + shift

    return draw


def average_top(
    top: TopSets, vectors: Float[np.ndarray, "n_images d"], less: Float[np.ndarray, " d"] | float = 0.0
) -> Float[np.ndarray, "n d"]:
    """Return the mean of the vectors of the images of each set, minus `less`; zeros for a set that lacks an image."""
    means = top.indicate(len(vectors)) @ vectors / top.columns.shape[1] - less
    return np.where(np.all(top.columns >= 0, axis=1)[:, None], means, 0.0)


class Excess(NamedTuple):
    """How far values are over-represented among the top images of latents.

    z: [n, n_values] number of top images that have a value, less what is expected of images at random, in standard
        deviations of that number when the values are permuted over all images (hypergeometric); NaN for a latent
        without enough images, and for a value that all images have or none.
    is_beyond: whether so many by chance have a probability below `LEVEL` / n_values.
    """

    z: Float[np.ndarray, "n n_values"]
    is_beyond: Bool[np.ndarray, "n n_values"]

    def take(self, latents: Bool[np.ndarray, " n"]) -> Excess:
        """Return the same of some latents."""
        return Excess(self.z[latents], self.is_beyond[latents])


def measure_excess(top: TopSets, values: Bool[np.ndarray, "n_images n_values"]) -> Excess:
    """Return how far each value is over-represented in each set of images.

    Args:
        top: sets of images 0..n_images - 1.
        values: what the images have.
    """
    n_top, n_images = top.columns.shape[1], len(values)
    enough = np.all(top.columns >= 0, axis=1)
    counts, n_having = top.indicate(n_images) @ values.astype(np.float64), values.sum(axis=0)
    share = n_having / n_images
    variance = n_top * share * (1 - share) * (n_images - n_top) / max(n_images - 1, 1)
    z = np.divide(counts - n_top * share, np.sqrt(variance), out=np.full(counts.shape, np.nan), where=variance > 0)
    beyond = hypergeom.sf(counts - 1, n_images, n_having[None], n_top) < LEVEL / values.shape[1]
    return Excess(np.where(enough[:, None], z, np.nan), beyond & enough[:, None])


class Accuracy(NamedTuple):
    """How names fit what images were made from.

    is_best: whether no other value is more over-represented among a latent's top images than that of its name; NaN
        where the latent has no name with a value, or too few top images.
    is_beyond: whether that value is over-represented beyond chance; NaN likewise.
    """

    is_best: Float[np.ndarray, " n"]
    is_beyond: Float[np.ndarray, " n"]


def judge_names(
    concepts: Int64[np.ndarray, " n"], excess: Excess, value_of: Int64[np.ndarray, " n_concepts"]
) -> Accuracy:
    """Return whether names are right.

    Args:
        concepts: the name of each latent; -1: none.
        value_of: the value that a concept names; -1: none that is known of the images.
    """
    value = np.where(concepts >= 0, value_of[concepts], -1)
    rows = np.flatnonzero((value >= 0) & np.isfinite(excess.z).any(axis=1))
    found = Accuracy(np.full(len(value), np.nan), np.full(len(value), np.nan))
    own = excess.z[rows, value[rows]]
    found.is_best[rows] = own >= np.nanmax(excess.z[rows], axis=1, initial=-np.inf)
    found.is_beyond[rows] = excess.is_beyond[rows, value[rows]]
    return found


def judge_at_random(
    concepts: Int64[np.ndarray, " n"],
    excess: Excess,
    value_of: Int64[np.ndarray, " n_concepts"],
    n_draws: int,
    seed: int,
) -> Float[np.ndarray, "2 n_draws"]:
    """Return the share of names that are best, and beyond chance, when the names are permuted over the latents."""
    rng, shares = np.random.default_rng(seed), np.full((2, n_draws), np.nan)
    for number in range(n_draws):
        for place, of in enumerate(judge_names(rng.permutation(concepts), excess, value_of)):
            known = of[np.isfinite(of)]
            shares[place, number] = known.mean() if len(known) else np.nan
    return shares


def _scale(rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros(rows.shape), where=norms > 0)
