"""Whether outlier tokens leap between two shifted crops of an image, and the norms block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8

from infoscope.data.images import ImageSet
from infoscope.data.reader import iterate_images
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.progress import Advance, ignore
from infoscope.scope.config import Diagonal, OutlierConfig, ScopeConfig
from infoscope.scope.crops import scc_size_px, shared_region, shifted_crops
from infoscope.scope.outliers import NormSummary, compute_norm_summary
from infoscope.scope.scoring import compute_scores
from infoscope.vision.backbone import Backbone
from infoscope.vision.tokens.source import TokenFacts

MAPS = ("outlier", "next_highest", "normal")
"""Maps of norms whose distances are compared: of outlier tokens, of equally many next-highest normal ones, of all
normal ones; 0 elsewhere."""
N_PICTURES = 4
"""Images kept to be shown."""


@dataclass(frozen=True)
class OutlierDistances:
    """How far the maps of norms move between the two shifted crops of each image.

    image_index: positions of the images in their set.
    crop_norms: raw norms of the patch tokens on crop 1 and 2.
    emd: per map of `MAPS` and image, between the regions both crops show, in units of D_grid, 0..1; NaN where the map
        of one crop is all zero there.
    chance_emd: the same, but map 1 of an image against map 2 of the next image that has a distance, the last against
        the first; NaN where there is no other.
    """

    image_index: Int[np.ndarray, " n"]
    crop_norms: Float[np.ndarray, "n 2 grid grid"]
    emd: Float[np.ndarray, "n_maps n"]
    chance_emd: Float[np.ndarray, "n_maps n"]


@dataclass(frozen=True)
class TokenOutliers:
    """A model's outlier tokens, independent of any SAE.

    rule: how the threshold was found, in words.
    layer: the block after which tokens are read, from 0.
    norms: of all patch tokens of the data set after that block.
    n_images, n_images_with: images of the data set, and those that hold at least one outlier.
    distances: over `OutlierConfig.n_images` images (see `choose_images`).
    pictures: the first images with a distance of the outlier map, at the size from which they are cropped.
    by_layer: norms after every block on `OutlierConfig.n_layer_images` images, each with its own threshold by the same
        rule.
    """

    rule: str
    layer: int
    shift_patches: int
    norms: NormSummary
    n_images: int
    n_images_with: int
    distances: OutlierDistances
    pictures: UInt8[np.ndarray, "n_pictures size_px size_px 3"]
    by_layer: tuple[NormSummary, ...]

    @property
    def pictured(self) -> Int[np.ndarray, " n_pictures"]:
        """Which of the distances' images the pictures are."""
        return _choose_pictured(self.distances)

    @property
    def grid(self) -> int:
        """Patches per side of a crop."""
        return self.distances.crop_norms.shape[-1]

    def save(self, folder: Path) -> None:
        """Write token_outliers.npz and token_outliers.json into `folder` (made if missing)."""
        summaries = (self.norms, *self.by_layer)
        arrays = {name: np.stack([getattr(one, name) for one in summaries]) for name in ("counts", "edges")}
        arrays |= {"pictures": self.pictures, **vars(self.distances)}
        facts = {name: getattr(self, name) for name in _FACTS}
        facts["norms"] = [{name: getattr(one, name) for name in _NORM_FACTS} for one in summaries]
        save_result(folder, "token_outliers", arrays, facts, compressed=True)

    @classmethod
    def load(cls, folder: Path) -> TokenOutliers:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "token_outliers")
        counts, edges, pictures = (arrays.pop(name) for name in ("counts", "edges", "pictures"))
        norms = (NormSummary(*two, **rest) for *two, rest in zip(counts, edges, facts.pop("norms"), strict=True))
        own, *by_layer = norms
        distances = OutlierDistances(**arrays)
        return cls(norms=own, by_layer=tuple(by_layer), distances=distances, pictures=pictures, **facts)


_FACTS = ("rule", "layer", "shift_patches", "n_images", "n_images_with")
_NORM_FACTS = ("threshold", "n_outliers", "has_outlier_mode")


def compute_token_outliers(
    backbone: Backbone,
    image_set: ImageSet,
    facts: TokenFacts,
    config: OutlierConfig,
    scope: ScopeConfig,
    *,
    n_readers: int = 0,
    progress: Advance = ignore,
) -> TokenOutliers:
    """Find the outlier tokens of a model on the training split, and measure what needs no SAE.

    Encodes each of `n_images` twice, and each of `n_layer_images` once per block but the hooked one.

    Args:
        image_set: the images of the facts.
        scope: the shift, how distances are computed, and how many images are encoded at a time.
        n_readers: processes that read images ahead; 0 reads in this one.
        progress: called with (images read, all that will be).

    Raises:
        InputError: if the shift leaves fewer than 2 x 2 shared patches, an image cannot be read, or a token is not
            finite.
    """
    norms, layer = compute_norm_summary(facts.norms, config), facts.meta["layer"]
    has_outlier = np.any(facts.norms > norms.threshold, axis=1)
    cropped = facts.image_index[choose_images(has_outlier, config.n_images)]
    layer_rows = _spread(len(facts), config.n_layer_images)
    n_all = len(cropped) + len(layer_rows)
    reading = {"n_readers": n_readers, "progress": lambda n_read: progress(n_read, n_all)}
    distances = compute_outlier_emd(backbone, image_set, cropped, layer, norms.threshold, scope, **reading)
    others = [block for block in range(backbone.n_layers) if block != layer]
    reading["progress"] = lambda n_read: progress(len(cropped) + n_read, n_all)
    indices = facts.image_index[layer_rows]
    n_at_once = 2 * scope.choose_batch(backbone.mean.device.type)  # whole images, not two crops
    by_layer = compute_norms_by_layer(backbone, image_set, others, indices, config, n_at_once, **reading)
    own = compute_norm_summary(facts.norms[layer_rows], config)
    size_px = scc_size_px(backbone.grid, backbone.patch_px, scope.shift_patches)
    pictures = [image_set.load(int(i), size_px) for i in cropped[_choose_pictured(distances)]]
    return TokenOutliers(
        rule=config.rule_in_words,
        layer=layer,
        shift_patches=scope.shift_patches,
        norms=norms,
        n_images=len(facts),
        n_images_with=int(has_outlier.sum()),
        distances=distances,
        pictures=np.array(pictures, np.uint8).reshape(-1, size_px, size_px, 3),
        by_layer=(*by_layer[:layer], own, *by_layer[layer:]),
    )


def choose_images(has_outlier: Bool[np.ndarray, " n_images"], n_images: int) -> Int[np.ndarray, " n"]:
    """Return at most `n_images` of the images that hold an outlier, evenly spread; without any, of all images."""
    rows = np.flatnonzero(has_outlier) if has_outlier.any() else np.arange(len(has_outlier))
    return rows[_spread(len(rows), n_images)]


def _spread(n_all: int, n: int) -> Int[np.ndarray, " n"]:
    """At most n of 0..n_all - 1, evenly spread: folders of images are often sorted by class."""
    n = min(n, n_all)
    return np.arange(n) * n_all // max(n, 1)


def compute_outlier_emd(
    backbone: Backbone,
    image_set: ImageSet,
    indices: Int[np.ndarray, " n"],
    layer: int,
    threshold: float,
    scope: ScopeConfig,
    n_readers: int = 0,
    progress: Callable[[int], object] = ignore,
) -> OutlierDistances:
    """Crop some images twice, encode both crops, and measure how far the maps of token norms moved.

    The crops lie on the main diagonal, as the paper's do; `scope.diagonal` is not read.

    Args:
        indices: positions in the image set.
        threshold: norms above it are outliers.
        progress: called with the number of images encoded so far.

    Raises:
        InputError: as `compute_token_outliers`.
    """
    grid, shift = backbone.grid, scope.shift_patches
    size_px = scc_size_px(grid, backbone.patch_px, shift)
    crop_norms = np.zeros((len(indices), 2, grid, grid), np.float32)
    n_done, device = 0, backbone.mean.device
    n_at_once = scope.choose_batch(device.type)
    for batch in iterate_images(image_set, size_px, n_at_once, indices, n_workers=n_readers, device=device):
        rows = slice(n_done, n_done + len(batch.index))
        both = torch.cat(shifted_crops(batch.images, backbone.patch_px, grid, shift))
        norms = backbone.tokens(both, layer).patches.norm(dim=-1)
        crop_norms[rows] = norms.view(2, -1, grid, grid).transpose(0, 1).cpu().numpy()
        n_done = rows.stop
        progress(n_done)
    maps = make_token_maps(crop_norms, threshold, shift)
    # maps take the place of latents, images that of ranks
    scores = compute_scores(maps, np.ones(maps.shape[:2], dtype=bool), replace(scope, diagonal=Diagonal.main))
    return OutlierDistances(np.asarray(indices), crop_norms, scores.emd, scores.chance_emd)


def make_token_maps(
    crop_norms: Float[np.ndarray, "n 2 grid grid"], threshold: float, shift_patches: int
) -> Float[np.ndarray, "n_maps n 2 grid grid"]:
    """Return the maps of `MAPS`: norms of the chosen tokens, 0 elsewhere and outside the region both crops show.

    The next-highest normal tokens are chosen in that region too, as many as it has outliers in that crop: a map of few
    tokens moves more easily than one of many.
    """
    maps = np.zeros((len(MAPS), *crop_norms.shape), crop_norms.dtype)
    for side, crop in ((0, 1), (1, 2)):
        norms = shared_region(crop_norms[:, side], shift_patches, crop)
        is_outlier = norms > threshold
        members = {
            "outlier": is_outlier,
            "next_highest": _choose_next_highest(norms, is_outlier),
            "normal": ~is_outlier,
        }
        for number, name in enumerate(MAPS):
            shared_region(maps[number, :, side], shift_patches, crop)[:] = np.where(members[name], norms, 0)
    return maps


def _choose_next_highest(norms: np.ndarray, is_outlier: np.ndarray) -> np.ndarray:
    normal_first = np.where(is_outlier, -np.inf, norms).reshape(len(norms), -1)
    place = np.argsort(np.argsort(-normal_first, axis=1, kind="stable"), axis=1)  # equal norms: the first in row order
    n_outliers = is_outlier.sum(axis=(1, 2))
    return (place < n_outliers[:, None]).reshape(norms.shape) & ~is_outlier


def compute_norms_by_layer(
    backbone: Backbone,
    image_set: ImageSet,
    layers: Sequence[int],
    indices: Int[np.ndarray, " n"],
    config: OutlierConfig,
    batch_images: int = 32,
    n_readers: int = 0,
    progress: Callable[[int], object] = ignore,
) -> list[NormSummary]:
    """Describe the norms of patch tokens after several blocks, each with its own threshold; whole images.

    Every image is encoded once per block: choose few.

    Args:
        indices: positions in the image set.
        progress: called with the number of images read so far.

    Raises:
        InputError: if a layer does not exist, an image cannot be read, or a token is not finite.
    """
    norms = np.zeros((len(layers), len(indices), backbone.grid**2), np.float32)
    n_done, device = 0, backbone.mean.device
    for batch in iterate_images(
        image_set, backbone.image_px, batch_images, indices, n_workers=n_readers, device=device
    ):
        rows = slice(n_done, n_done + len(batch.index))
        for number, layer in enumerate(layers):
            norms[number, rows] = backbone.tokens(batch.images, layer).patches.norm(dim=-1).cpu().numpy()
        n_done = rows.stop
        progress(n_done)
    return [compute_norm_summary(of_layer, config) for of_layer in norms]


def _choose_pictured(distances: OutlierDistances) -> Int[np.ndarray, " n_pictures"]:
    return np.flatnonzero(np.isfinite(distances.emd[MAPS.index("outlier")]))[:N_PICTURES]
