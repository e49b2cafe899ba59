"""Images like one of them, by embedding or by a concept, for those who have a backbone, an SAE and pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from infoscope.analyses.concepts import Edit, find_near_codes, find_nearest, read_factors, read_rows
from infoscope.data.config import DataConfig, OnError, Resize
from infoscope.data.pictures import Picture, Pictures
from infoscope.runtime.calls import convert, speaks_python
from infoscope.runtime.errors import InputError
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.model import SparseAutoencoder
from infoscope.stages.contextual_dependency.measure import choose_read_layer
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig
from infoscope.vision.hooks import POOLED

_IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class SimilarImages:
    """The images nearest to the one that was searched for, the nearest first.

    positions: in the list of images. activations: [n, n_latents] z of the latents of the concept in these images.
    query: z of the same latents in the image that was searched for.
    """

    positions: Int64[np.ndarray, " n"]
    activations: Float64[np.ndarray, "n n_latents"]
    query: Float64[np.ndarray, " n_latents"]


@speaks_python(data=DataConfig, model=ModelConfig, sae=ImportedConfig)
def find_similar(
    backbone: Backbone,
    sae: SparseAutoencoder,
    images: Sequence[Picture],
    query: int,
    latents: Sequence[int] | None = None,
    value: float | None = None,
    n: int = 8,
    *,
    resize: str | Resize = "squash",
) -> SimilarImages:
    """Return the images that are most like one of them.

    Without latents that is by the cosine of embeddings. With latents, such as those that stage=name calls by a word, it
    is by how strongly these fire, alone; with a value too it is by the cosine with the embedding of the image in which
    they are set to it (0: without them; the SAE's error stays).

    Args:
        backbone: read at the site pooled, `load_backbone(name).read_at("pooled")`.
        sae: of its image embeddings.
        images: pictures as `explain_patch` takes them, at least two.
        query: position of the one that is searched for.
        n: images to return at most.

    Raises:
        InputError: another backbone or SAE, an image that cannot be read, latents or a query that do not exist, latents
            twice or of which none fires in the query, a value without latents, or one that is not finite.
    """
    if backbone.site != POOLED:
        raise InputError(
            f"Expected a backbone that gives embeddings of whole images, got one at site {backbone.site}: give"
            ' backbone.read_at("pooled").'
        )
    choose_read_layer(backbone, sae)
    query, n = convert("query", query, int), convert("n", n, int)
    wanted = [] if latents is None else convert("latents", latents, list[int])
    value = convert("value", value, float | None)
    _check_search(images, query, None if latents is None else wanted, value, n, sae.d_sae)
    x = _embed(backbone, Pictures(list(images), convert("resize", resize, Resize), OnError["raise"]))
    with torch.no_grad():
        acts = sae.encode(x.to(sae.W_dec.device))[:, wanted].double().cpu().numpy()
    vectors, own = x.double().cpu().numpy(), np.array([query])
    edit = Edit(acts, read_rows(sae)[wanted], read_factors(sae, vectors))
    if wanted and value is None:
        if not acts[query].any():
            raise InputError(
                f"Expected latents= that fire in image {query}, to find others in which they fire as strongly, got"
                f" {wanted}: choose another query=, or give a value= to which they are set."
            )
        codes = edit.codes
        near = find_near_codes(codes[own], codes, own, n)[0]
    else:
        moved = vectors[own] if value is None else edit.take(own).set_to(vectors[own], np.full(len(wanted), value))
        near = find_nearest(moved, vectors, own, n)[0]
    return SimilarImages(near, acts[near], acts[query])


def _check_search(
    images: Sequence[Picture], query: int, latents: Sequence[int] | None, value: float | None, n: int, d_sae: int
) -> None:
    if isinstance(images, str | os.PathLike):
        raise InputError(
            f"Expected images= to be a list of pictures, such as the paths of files, got {os.fspath(images)}: give"
            " sorted(Path(folder).iterdir()) of a folder of images."
        )
    if len(images) < 2 or not 0 <= query < len(images):
        raise InputError(f"Expected at least two images and query= to be one of their positions, got {query}.")
    if latents is not None and not latents:
        raise InputError("Expected latents= of a concept, got none: leave it out to search by embedding alone.")
    if wrong := [one for one in latents or () if not 0 <= one < d_sae]:
        raise InputError(f"Expected latents= of 0..{d_sae - 1}, got {wrong[0]}.")
    if len(set(latents or ())) < len(latents or ()):
        raise InputError(f"Expected each of latents= once, got {latents}: remove the repeats.")
    if value is not None and not np.isfinite(value):
        raise InputError(f"Expected a finite value=, got {value}.")
    if value is not None and not latents:
        raise InputError("Expected latents= that are set to value=, got none: give those of a concept.")
    if n < 1:
        raise InputError(f"Expected n to be at least 1, got {n}.")


def _embed(backbone: Backbone, pictures: Pictures) -> torch.Tensor:
    found = []
    for start in range(0, len(pictures), _IMAGES_AT_ONCE):
        batch = range(start, min(start + _IMAGES_AT_ONCE, len(pictures)))
        pixels = np.stack([pictures.load(i, backbone.image_px) for i in batch])
        found.append(backbone.tokens(torch.from_numpy(pixels).permute(0, 3, 1, 2), -1).patches[:, 0].float())
    return torch.cat(found)
