"""What is said of each latent of an SAE: arithmetic on what fires in each image, how alike images are, and labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64
from scipy.sparse import csr_array

from infoscope.analyses.config import DescribeConfig, ImageCode
from infoscope.analyses.hierarchy import Hierarchy, compute_meeting_depth
from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.labels import (
    compute_entropy,
    compute_largest_entropy,
    compute_top_entropy,
    count_held,
    count_strong,
    find_top_classes,
)
from infoscope.analyses.monosemanticity import compute_clarity, compute_likeness, compute_ms, normalise
from infoscope.analyses.top_sets import TopSets, compute_overlaps, expect_overlap, find_top
from infoscope.runtime.arrays import load_result, save_result

CODES = {ImageCode.mean: "means", ImageCode.max: "peaks"}
"""The column of `ImageCodes` that holds an image code."""
N_PERMUTATIONS = 5
"""Of the labels over the images: what measures by labels are by chance."""


class Labels(NamedTuple):
    """What is known of the images' classes.

    of: [n_images] 0..n_classes - 1, of the rows of the codes.
    names: of the classes; some may have no image.
    hierarchy: of the classes, where there is one.
    """

    of: Int64[np.ndarray, " n_images"]
    names: Sequence[str]
    hierarchy: Hierarchy | None = None

    @property
    def n_images(self) -> Int64[np.ndarray, " n_classes"]:
        """Images of each class."""
        return np.bincount(self.of, minlength=len(self.names))


@dataclass(frozen=True)
class Description:
    """What is said of each latent. A latent that fires in fewer than `n_label_images` images has NaN for all but the
    first three numbers, and is in no set.

    n_firing: images in which it fires.
    mean_firing: mean activation over the patches on which it fires, in the SAE's own units; NaN: it never fires.
    strong_rate: share of all patches on which its activation is larger than `strong_above`.
    ms: monosemanticity, -1..1; NaN also for a latent that is constant, see `compute_ms`.
    clarity: mean cosine of its top images, -1..1.
    top_overlap: mean Jaccard index of its top images with those of every other latent, 0..1.
    top_images: the sets of `top_overlap`, positions in the image set, the strongest first; -1: none.
    overlap_shares: of all pairs of latents, those with an index above 0, 0.1, ... 0.9.
    label_entropy: of the labels of its `n_label_images` top images, in nats.
    label_entropy_all: of all images. label_entropy_share: the same over that of equally frequent classes, 0..1.
    top_class: on whose images it fires strongly on most patches per image; -1: it never does.
    top_class_share: of the patches on which it fires strongly, those in images of that class; NaN: there are none.
    n_classes_held: among how many classes' latents it is.
    class_latents: of each class, those that fire strongly on most of its patches; -1: fewer do.
    tree_depth: how deep two of its top images meet in the hierarchy of classes, in the mean; 0: in the root.
    class_names, class_images: names of the classes, and their images.
    chance: the measures without labels for images at random, by name.
    permuted, by_permuted: names of the measures by labels, and what each latent has by chance: the same arithmetic on
        its own activations, when the labels of all images are permuted. (Of few images, or unequal weights, the entropy
        is low whatever the labels.)
    All from label_entropy to class_images are None without labels, tree_depth without a hierarchy.
    """

    n_images: int
    n_label_images: int
    strong_above: float
    n_firing: Int64[np.ndarray, " d_sae"]
    mean_firing: Float[np.ndarray, " d_sae"]
    strong_rate: Float[np.ndarray, " d_sae"]
    ms: Float[np.ndarray, " d_sae"]
    clarity: Float[np.ndarray, " d_sae"]
    top_overlap: Float[np.ndarray, " d_sae"]
    top_images: Int64[np.ndarray, "d_sae n_top"]
    overlap_shares: Float[np.ndarray, " n_steps"]
    chance: dict[str, float]
    label_entropy: Float[np.ndarray, " d_sae"] | None = None
    label_entropy_all: Float[np.ndarray, " d_sae"] | None = None
    label_entropy_share: Float[np.ndarray, " d_sae"] | None = None
    top_class: Int64[np.ndarray, " d_sae"] | None = None
    top_class_share: Float[np.ndarray, " d_sae"] | None = None
    n_classes_held: Int64[np.ndarray, " d_sae"] | None = None
    class_latents: Int64[np.ndarray, "n_classes k"] | None = None
    class_names: list[str] | None = None
    class_images: list[int] | None = None
    tree_depth: Float[np.ndarray, " d_sae"] | None = None
    permuted: list[str] = field(default_factory=list)
    by_permuted: Float32[np.ndarray, "n_measures n_permutations d_sae"] | None = None

    def by_chance(self, measure: str) -> Float32[np.ndarray, "n_permutations d_sae"] | None:
        """Return what each latent has of a measure by labels when these are permuted; None of another measure."""
        if self.by_permuted is None or measure not in self.permuted:
            return None
        return self.by_permuted[self.permuted.index(measure)]

    def beyond_chance(self, measure: str) -> Float[np.ndarray, " d_sae"] | None:
        """Return a measure by labels less the mean of what the latent has by chance; None of another measure.

        Around 0 where labels make no difference, however few images the latent fires in.
        """
        by_chance = self.by_chance(measure)
        return None if by_chance is None else getattr(self, measure) - by_chance.mean(axis=0, dtype=np.float64)

    @property
    def fires_enough(self) -> Bool[np.ndarray, " d_sae"]:
        """Whether a latent fires in enough images to be described."""
        return self.n_firing >= self.n_label_images

    def save(self, folder: Path) -> None:
        """Write describe.npz and describe.json into an existing folder."""
        save_result(folder, "describe", vars(self))

    @classmethod
    def load(cls, folder: Path) -> Description:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "describe")
        return cls(**arrays, **facts)


def describe_latents(
    codes: ImageCodes,
    vectors: Float[np.ndarray, "n_images d_judge"],
    config: DescribeConfig,
    labels: Labels | None = None,
) -> Description:
    """Return what is said of each latent.

    Args:
        vectors: of the judge, of the rows of `codes`; of any norm but 0.
        labels: of the rows of `codes`; None: not known.
    """
    by_latent = csr_array(codes.matrix(CODES[config.image_code]).T)
    n_firing = np.diff(np.asarray(by_latent.indptr)).astype(np.int64)
    enough = n_firing >= config.n_label_images
    top = find_top(by_latent, max(config.n_label_images, config.n_top_images, config.n_clarity_images))
    top.columns[~enough] = -1
    top.values[~enough] = 0
    n_on = np.bincount(codes.latents, codes.n_on, codes.d_sae)
    n_strong = np.bincount(codes.latents, codes.n_strong, codes.d_sae)
    total = np.bincount(codes.latents, codes.means, codes.d_sae) * codes.n_patches
    unit = normalise(vectors)
    sets = top.first(config.n_top_images)
    overlaps = compute_overlaps(sets, codes.n_images)
    likeness = compute_likeness(unit)
    chance = {"ms": likeness, "clarity": likeness, "top_overlap": expect_overlap(config.n_top_images, codes.n_images)}
    known = {} if labels is None else _describe_by_labels(codes, config, by_latent, top, labels)
    return Description(
        n_images=codes.n_images,
        n_label_images=config.n_label_images,
        strong_above=codes.strong_above,
        n_firing=n_firing,
        mean_firing=np.divide(total, n_on, out=np.full(codes.d_sae, np.nan), where=n_on > 0),
        strong_rate=n_strong / (codes.n_images * codes.n_patches),
        ms=np.where(enough, compute_ms(by_latent, unit), np.nan),
        clarity=compute_clarity(top.first(config.n_clarity_images), unit),
        top_overlap=overlaps.of_latent,
        top_images=np.where(sets.columns >= 0, codes.image_index[sets.columns], -1),
        overlap_shares=overlaps.shares,
        chance=chance,
        **known,
    )


def _describe_by_labels(
    codes: ImageCodes, config: DescribeConfig, by_latent: csr_array, top: TopSets, labels: Labels
) -> dict[str, Any]:
    """Return what labels say of the latents, and what they say when they are permuted over the images."""
    strong, n_images, rng = count_strong(codes, labels.of, len(labels.names)), labels.n_images, np.random.default_rng(0)
    class_latents = find_top(strong, config.n_class_latents).columns
    measured = _measure_by_labels(config, by_latent, top, labels, strong)
    by_permuted = np.empty((len(measured), N_PERMUTATIONS, codes.d_sae), dtype=np.float32)
    for number in range(N_PERMUTATIONS):
        other = labels._replace(of=rng.permutation(labels.of))
        counts = count_strong(codes, other.of, len(labels.names))
        by_permuted[:, number] = list(_measure_by_labels(config, by_latent, top, other, counts).values())
    return {
        **measured,
        "top_class": find_top_classes(strong, n_images).of,
        "n_classes_held": count_held(class_latents, codes.d_sae),
        "class_latents": class_latents,
        "class_names": list(labels.names),
        "class_images": n_images.tolist(),
        "permuted": list(measured),
        "by_permuted": by_permuted,
    }


def _measure_by_labels(
    config: DescribeConfig, by_latent: csr_array, top: TopSets, labels: Labels, strong: csr_array
) -> dict[str, Float[np.ndarray, " d_sae"]]:
    """Return the measures by labels, by name.

    Args:
        strong: see `count_strong`, of the same labels.
    """
    n_classes, n_images, enough = len(labels.names), labels.n_images, top.columns[:, 0] >= 0
    of_all = np.where(enough, compute_entropy(by_latent, labels.of, n_classes), np.nan)
    found = {
        "label_entropy": compute_top_entropy(top.first(config.n_label_images), labels.of, n_classes),
        "label_entropy_all": of_all,
        "label_entropy_share": of_all / compute_largest_entropy(n_images),
        "top_class_share": find_top_classes(strong, n_images).share,
    }
    if labels.hierarchy is not None:
        found["tree_depth"] = compute_meeting_depth(top.first(config.n_top_images), labels.of, labels.hierarchy)
    return found
