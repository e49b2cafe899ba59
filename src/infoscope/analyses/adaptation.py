"""One SAE on the tokens of a model and of the same model with other weights: how often latents fire, and for what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csr_array

from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.labels import count_held, count_strong, find_top_classes
from infoscope.analyses.top_sets import TopSets, find_top
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError

BASE, ADAPTED = 0, 1
COMPARED = ("same images", "halves of the base", "across halves")
"""What is compared by class: both models on the same images; the model on one half of a class's images with itself on
the other half, the floor, below which nothing can be told; the model on one half with the adapted one on the other,
which the floor is to be held against."""
SAME, HALVES, ACROSS = range(3)
MIN_SETTLED = 0.9
"""Share of the halvings in which both halves of the images give a latent the same class, if its class is settled."""
MIXED = 0.01
"""Share of the mean profile in each profile, without which a latent that is new to a class made the KL infinite."""
_CLASSES_AT_ONCE = 64


@dataclass(frozen=True)
class Adaptation:
    """What changed between a model and the adapted one, as one SAE sees both; axes of 2 are `BASE` and `ADAPTED`.

    n_images: that both were measured on; n_patches: of each.
    images_on: [2, d_sae] images in which a latent fires.
    tokens_on: [2, d_sae] patch tokens on which it fires.
    class_images: [n_classes] images of each class; without labels there is no class, here and below.
    class_latents: [2, n_classes, k] the latents of each class, as `rank_class_latents`.
    top_class: [2, d_sae] the class of each latent, as `find_top_classes`.
    settled: [2, d_sae] share of the random halvings in which both halves of the images give it the same class.
    jaccard: [3, n_classes] overlap of the latents of a class, shared / in either; by `COMPARED`, mean over halvings.
    divergence: [3, n_classes] KL divergence in nats of a class's profile, as `compute_divergence`; the same way.
    """

    n_images: int
    n_patches: int
    images_on: Int64[np.ndarray, "2 d_sae"]
    tokens_on: Int64[np.ndarray, "2 d_sae"]
    class_images: Int64[np.ndarray, " n_classes"]
    class_latents: Int64[np.ndarray, "2 n_classes k"]
    top_class: Int64[np.ndarray, "2 d_sae"]
    settled: Float[np.ndarray, "2 d_sae"]
    jaccard: Float[np.ndarray, "3 n_classes"]
    divergence: Float[np.ndarray, "3 n_classes"]

    @property
    def has_labels(self) -> bool:
        """Whether the classes of the images are known."""
        return len(self.class_images) > 0

    @property
    def image_rate(self) -> Float[np.ndarray, "2 d_sae"]:
        """Share of the images in which each latent fires."""
        return self.images_on / self.n_images

    @property
    def token_rate(self) -> Float[np.ndarray, "2 d_sae"]:
        """Share of the patch tokens on which each latent fires."""
        return self.tokens_on / (self.n_images * self.n_patches)

    @property
    def rate_ratio(self) -> Float[np.ndarray, " d_sae"]:
        """Token rate of the adapted model over the model's, with a token more in each; NaN: it fires in neither."""
        base, adapted = self.tokens_on
        return np.where(base + adapted > 0, (adapted + 1) / (base + 1), np.nan)

    def find_comparable(self, n_images: int) -> Bool[np.ndarray, " d_sae"]:
        """Return whose class can be compared: they fire in so many images, and their class is settled, in both."""
        if not self.has_labels:
            return np.zeros(self.images_on.shape[1], dtype=bool)
        enough = (self.images_on >= n_images) & (self.top_class >= 0) & (self.settled >= MIN_SETTLED - 1e-9)
        return enough[BASE] & enough[ADAPTED]

    def find_changes(self, n_images: int, factor: float) -> Changes:
        """Return which latents are remapped, new and gone.

        Args:
            n_images: in which a latent must fire to be compared.
            factor: by more of which the token rate of a new latent rises, and that of a gone one falls.
        """
        remapped = self.find_comparable(n_images) & (self.top_class[BASE] != self.top_class[ADAPTED])
        d_sae = self.images_on.shape[1]
        base, adapted = (count_held(self.class_latents[of], d_sae) > 0 for of in (BASE, ADAPTED))
        ratio = np.nan_to_num(self.rate_ratio, nan=1.0)
        return Changes(remapped, adapted & ~base & (ratio > factor), base & ~adapted & (ratio < 1 / factor))

    def count_remapped_halves(self, n_images: int) -> float:
        """Return how many comparable latents two halves of the base's images give other classes: the floor."""
        return float((1 - self.settled[BASE][self.find_comparable(n_images)]).sum())

    def save(self, folder: Path) -> None:
        """Write `adaptation.npz` and `adaptation.json` into a folder."""
        save_result(folder, "adaptation", vars(self), compressed=True)

    @classmethod
    def load(cls, folder: Path) -> Adaptation:
        """Return what `save` wrote."""
        arrays, facts = load_result(folder, "adaptation")
        return cls(**arrays, **facts)


class Changes(NamedTuple):
    """Latents that changed.

    remapped: comparable ones of another class than before.
    new: among the latents of a class of the adapted model and of none of the model, and their rate rose.
    gone: the reverse.
    """

    remapped: Bool[np.ndarray, " d_sae"]
    new: Bool[np.ndarray, " d_sae"]
    gone: Bool[np.ndarray, " d_sae"]


def compare_codes(
    base: ImageCodes,
    adapted: ImageCodes,
    labels: Int64[np.ndarray, " n_images"] | None,
    n_classes: int,
    k: int,
    n_draws: int = 10,
    seed: int = 0,
) -> Adaptation:
    """Compare what fires in the same images of a model and of the adapted one.

    Args:
        labels: of the rows, 0..n_classes - 1; None: not known.
        k: latents of a class.
        n_draws, seed: random halvings of the images of each class.

    Raises:
        InputError: the rows are not those of the same images.
    """
    if not np.array_equal(base.image_index, adapted.image_index):
        raise InputError(
            "Expected both models to have tokens of the same images, but some could not be read for one of them: check"
            " the disk, delete the tokens of both (kind tokens) and run again."
        )
    both = (base, adapted)
    images_on = np.stack([np.bincount(of.latents, minlength=of.d_sae) for of in both])
    tokens_on = np.stack([np.bincount(of.latents, of.n_on, of.d_sae).astype(np.int64) for of in both])
    if labels is None:
        classes = _Classes.none(base.d_sae, k)
    else:
        classes = _compare_classes(both, labels, n_classes, k, _draw_halves(labels, n_classes, n_draws, seed))
    return Adaptation(base.n_images, base.n_patches, images_on, tokens_on, *classes)


class _Classes(NamedTuple):
    """What labels tell, as in `Adaptation`."""

    class_images: Int64[np.ndarray, " n_classes"]
    class_latents: Int64[np.ndarray, "2 n_classes k"]
    top_class: Int64[np.ndarray, "2 d_sae"]
    settled: Float[np.ndarray, "2 d_sae"]
    jaccard: Float[np.ndarray, "3 n_classes"]
    divergence: Float[np.ndarray, "3 n_classes"]

    @classmethod
    def none(cls, d_sae: int, k: int) -> _Classes:
        """Return what they tell if there are none."""
        n_images, latents = np.zeros(0, np.int64), np.zeros((2, 0, k), np.int64)
        unknown, nothing = np.full((2, d_sae), -1), np.zeros((3, 0))
        return cls(n_images, latents, unknown, np.full((2, d_sae), np.nan), nothing, nothing)


def _compare_classes(
    both: Sequence[ImageCodes],
    labels: Int64[np.ndarray, " n_images"],
    n_classes: int,
    k: int,
    draws: Sequence[Bool[np.ndarray, " n_images"]],
) -> _Classes:
    d_sae, class_images = both[BASE].d_sae, np.bincount(labels, minlength=n_classes)
    counts = [count_strong(of, labels, n_classes) for of in both]
    sets = [find_top(of, k) for of in counts]
    mean = _compute_profile(counts[BASE].sum(0) + counts[ADAPTED].sum(0))
    jaccard, divergence = np.zeros((2, 3, n_classes))
    jaccard[SAME] = compute_jaccard(sets[BASE], sets[ADAPTED], d_sae)
    divergence[SAME] = compute_divergence(counts[ADAPTED], counts[BASE], mean)
    settled = np.zeros((2, d_sae))
    for in_second in draws:
        n_second = np.bincount(labels[in_second], minlength=n_classes)
        halves = [_count_halves(of, labels, in_second, n_classes) for of in both]
        for of, (first, second) in enumerate(halves):
            one = find_top_classes(first, class_images - n_second).of
            settled[of] += (one == find_top_classes(second, n_second).of) & (one >= 0)
        first = find_top(halves[BASE][0], k)
        for row, of in ((HALVES, BASE), (ACROSS, ADAPTED)):
            jaccard[row] += compute_jaccard(first, find_top(halves[of][1], k), d_sae) / len(draws)
            divergence[row] += compute_divergence(halves[of][1], halves[BASE][0], mean) / len(draws)
    latents = np.stack([of.columns for of in sets])
    top_class = np.stack([find_top_classes(of, class_images).of for of in counts])
    return _Classes(class_images, latents, top_class, settled / len(draws), jaccard, divergence)


def compute_jaccard(one: TopSets, other: TopSets, d_sae: int) -> Float[np.ndarray, " n_classes"]:
    """Return how many latents the sets of a class share, of those in either; NaN where a set is empty."""
    first, second = one.indicate(d_sae), other.indicate(d_sae)
    shared, sizes = np.asarray(first.multiply(second).sum(1)), [np.asarray(of.sum(1)) for of in (first, second)]
    either = sizes[0] + sizes[1] - shared
    return np.divide(shared, either, out=np.full(len(shared), np.nan), where=(sizes[0] > 0) & (sizes[1] > 0))


def compute_divergence(
    of: csr_array, reference: csr_array, mean: Float[np.ndarray, " d_sae"]
) -> Float[np.ndarray, " n_classes"]:
    """Return KL(of || reference) in nats of the profiles of each class; NaN where one of them has none.

    A class's profile is the share of each latent in all that fires strongly on its patches. Each is mixed with the
    share `MIXED` of the mean profile.

    Args:
        of, reference: [n_classes, d_sae] counts.
        mean: a profile that holds every latent of either.
    """
    n_classes = len(np.asarray(of.indptr)) - 1
    found = np.full(n_classes, np.nan)
    for start in range(0, n_classes, _CLASSES_AT_ONCE):
        rows = np.arange(n_classes)[start : start + _CLASSES_AT_ONCE]
        q, p = (
            (1 - MIXED) * _compute_profile(csr_array(counts[rows]).toarray()) + MIXED * mean
            for counts in (of, reference)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            found[rows] = np.where(q == 0, 0, q * np.log(q / p)).sum(1)
    return found


def _compute_profile(counts: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return counts / counts.sum(-1, keepdims=True)


def _draw_halves(
    labels: Int64[np.ndarray, " n_images"], n_classes: int, n_draws: int, seed: int
) -> list[Bool[np.ndarray, " n_images"]]:
    """Return which images are in the second half, drawn anew within each class; of an odd number one more or less."""
    draws, rng = [], np.random.default_rng(seed)
    by_class = np.argsort(labels, kind="stable")
    starts = np.searchsorted(labels[by_class], np.arange(n_classes))
    for _ in range(n_draws):
        mixed = by_class[np.lexsort((rng.random(len(labels)), labels[by_class]))]
        place = np.arange(len(labels)) - starts[labels[mixed]]
        second = np.zeros(len(labels), dtype=bool)
        second[mixed] = (place + rng.integers(2, size=n_classes)[labels[mixed]]) % 2 == 1
        draws.append(second)
    return draws


def _count_halves(
    codes: ImageCodes,
    labels: Int64[np.ndarray, " n_images"],
    second: Bool[np.ndarray, " n_images"],
    n_classes: int,
) -> tuple[csr_array, csr_array]:
    counts = count_strong(codes, labels + n_classes * second, 2 * n_classes)
    return csr_array(counts[np.arange(n_classes)]), csr_array(counts[np.arange(n_classes, 2 * n_classes)])
