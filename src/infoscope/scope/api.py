"""The whole measurement in one call, for people who have a backbone, an SAE and some images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import ImageSet, iterate_images, resize_image
from infoscope.errors import InputError
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import check_has_maps, choose_layer
from infoscope.scope.config import ScopeConfig
from infoscope.scope.ranking import Ranking, rank_images
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import score_latents
from infoscope.vision.backbone import Backbone

Images = ImageSet | str | Path | Tensor | np.ndarray | Sequence[np.ndarray]


@dataclass
class ContextualDependency:
    """What `contextual_dependency` found.

    ranking: which images each latent fires on most.
    scores: distances, masses and maps; scores for any k up to `scores.k_max` are arithmetic on them.
    k_cds: the k that `cds` and `chance` stand for.
    """

    ranking: Ranking
    scores: Scores
    k_cds: int

    @property
    def cds(self) -> Float[np.ndarray, " d_sae"]:
        """Contextual dependency score per latent, 0..1; NaN where unscored."""
        return self.scores.cds(self.k_cds).values

    @property
    def chance(self) -> Float[np.ndarray, " d_sae"]:
        """Chance level of each latent's score."""
        return self.scores.chance(self.k_cds)

    @property
    def emd(self) -> Float[np.ndarray, "d_sae k_max"]:
        """Normalised distances per latent and rank."""
        return self.scores.emd


def contextual_dependency(
    backbone: Backbone,
    sae: SparseAutoencoder,
    images: Images,
    layer: int | None = None,
    k_cds: int = 8,
    shift_patches: int = 1,
    check_origin: bool = True,
    **options: Any,
) -> ContextualDependency:
    """Rank images per latent, then score how far each latent's activation moves when only the context changes.

    Args:
        backbone: a frozen vision transformer.
        sae: a sparse autoencoder of its patch tokens.
        images: an ImageSet, a folder of image files, or uint8 RGB pictures: a tensor [n, 3, height, width], an array
            [n, height, width, 3], or a list of arrays [height, width, 3] of any sizes.
        layer: the block that the SAE reads, 0-based or negative from the end; None: the one it was trained on.
        k_cds: images per latent that the score averages over.
        shift_patches: by how much the two crops of an image differ.
        check_origin: False insists on another layer or backbone than the SAE was trained on, see `choose_layer`.
        options: other fields of `ScopeConfig`.

    Raises:
        InputError: if the SAE was trained on another backbone or layer, there are fewer images than `k_cds`, or an
            option or image is not what it should be.
    """
    config = ScopeConfig(k_cds=k_cds, shift_patches=shift_patches, **options)
    check_has_maps(sae)
    layer = choose_layer(sae, backbone, layer, check_origin)
    image_set = as_image_set(images)
    tokens = iterate_patch_tokens(backbone, image_set, layer, config.batch_images)
    ranking = rank_images(sae, tokens, config.n_ranks, config.rank_by)
    scores = score_latents(backbone, sae, image_set, ranking, config, layer=layer, check_origin=check_origin)
    return ContextualDependency(ranking, scores, config.k_cds)


def iterate_patch_tokens(
    backbone: Backbone, image_set: ImageSet, layer: int, batch_images: int
) -> Iterator[tuple[Tensor, Float[Tensor, "batch n_patches d_in"]]]:
    """Yield positions and patch tokens of whole images, resized to the backbone's input: what `rank_images` takes."""
    for batch in iterate_images(image_set, backbone.image_px, batch_images):
        yield batch.index, backbone.tokens(batch.images, layer).patches


def as_image_set(images: Images) -> ImageSet:
    """Return images of any of the accepted kinds as an ImageSet.

    Raises:
        InputError: if the folder holds no images, or pictures are not uint8 RGB.
    """
    if isinstance(images, ImageSet):
        return images
    if isinstance(images, str | Path):
        return ImageFolder(images, test_share=0.0)
    if isinstance(images, Tensor):
        if images.ndim != 4 or images.shape[1] != 3:
            raise InputError(f"Expected a tensor of images [n, 3, height, width], got {list(images.shape)}.")
        return ImageArrays(list(images.cpu().permute(0, 2, 3, 1).numpy()))
    return ImageArrays(list(images))


class ImageArrays(ImageSet):
    """Pictures in memory, squashed to the size asked for.

    Raises:
        InputError: if a picture is not uint8 [height, width, 3].
    """

    def __init__(self, pictures: Sequence[UInt8[np.ndarray, "height width 3"]]) -> None:
        for i, picture in enumerate(pictures):
            if not isinstance(picture, np.ndarray) or picture.dtype != np.uint8 or picture.shape[2:] != (3,):
                got = f"{picture.dtype} {list(picture.shape)}" if isinstance(picture, np.ndarray) else type(picture)
                raise InputError(f"Expected pictures as uint8 arrays [height, width, 3], got {got} at position {i}.")
        super().__init__("train", [f"{i:09d}" for i in range(len(pictures))])
        self.pictures = pictures

    @property
    def fingerprint(self) -> dict[str, Any]:
        digest = sha256()
        for picture in self.pictures:
            digest.update(str(picture.shape).encode() + np.ascontiguousarray(picture).tobytes())
        return {"kind": "arrays", "n_images": len(self), "sha256": digest.hexdigest()}

    def load(self, index: int, size_px: int) -> UInt8[np.ndarray, "size size 3"]:
        return resize_image(np.ascontiguousarray(self.pictures[index]), size_px)
