"""What fires in one image, whole and in both shifted crops, and what the model predicts without some of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from infoscope.analyses.image_attribution import attribute
from infoscope.analyses.latent_orders import EditedImage
from infoscope.predictions.inputs import PredictInputs
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.sae.edit import EditMode
from infoscope.sae.metrics import compute_row_norms
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.config import Diagonal
from infoscope.scope.crops import shifted_crops
from infoscope.vision.backbone import Backbone, Tokens

N_LATENTS = 2000
"""Latents of an image whose maps are kept, at most."""
N_REMOVED = 24
"""Latents of an image without each of which it is predicted again, at most."""
N_LIKELY, N_LIKELY_AFTER = 5, 3
"""Classes that are kept: the most probable ones as the image is, and after each removal."""


class CropLatents(NamedTuple):
    """The latents that fire in an image or a crop.

    latents: ascending. maps: their activations, 0 where silent. n_left_out: latents that fire and are not among them.
    """

    latents: Int64[np.ndarray, " n"]
    maps: Float32[np.ndarray, "n grid grid"]
    n_left_out: int


@torch.inference_mode()
def encode_image(
    backbone: Backbone,
    layer: int,
    whole: UInt8[Tensor, "3 image_px image_px"],
    square: UInt8[Tensor, "3 size_px size_px"],
    shift_patches: int,
    diagonal: Diagonal = Diagonal.main,
) -> Tokens:
    """Return the tokens of a whole image, of crop 1 and of crop 2, in a batch of three.

    Args:
        whole, square: the image as the backbone takes it, and as it is cropped (`scc_size_px`).

    Raises:
        InputError: as `shifted_crops`, and as `Backbone.tokens`.
    """
    crops = shifted_crops(square[None], backbone.patch_px, backbone.grid, shift_patches, diagonal)
    return backbone.tokens(torch.cat([whole[None].to(square), *crops]), layer)


@torch.inference_mode()
def list_latents(sae: SparseAutoencoder, tokens: Tokens, grid: int, n_latents: int = N_LATENTS) -> list[CropLatents]:
    """Return what fires in the whole image, in crop 1 and in crop 2.

    One choice of latents for all three, so that one that is missing in one crop and not in the other is silent there:
    those whose largest activation in any of them, times the norm of the decoder row, is largest.

    Args:
        tokens: of these, as `encode_image` gives them.
        n_latents: kept at most.
    """
    patches = tokens.patches.to(sae.W_enc.device)
    n_patches = patches.shape[1]
    codes = sae.encode_entries(patches.reshape(-1, sae.d_in))
    fires = codes.values > 0
    places, latents, values = (of[fires].cpu().numpy() for of in (codes.tokens, codes.latents, codes.values.float()))
    firing, rows = np.unique(latents, return_inverse=True)
    peaks = np.zeros(len(firing))
    np.maximum.at(peaks, rows, values)
    order = np.argsort(-peaks * compute_row_norms(sae.W_dec[torch.from_numpy(firing).to(sae.W_dec.device)]))
    is_kept = np.zeros(len(firing), dtype=bool)
    is_kept[order[:n_latents]] = True
    maps = np.zeros((len(firing), 3, n_patches), dtype=np.float32)
    maps[rows, places // n_patches, places % n_patches] = values
    maps = maps.reshape(-1, 3, grid, grid)
    found = []
    for crop in range(3):
        is_on = maps[:, crop].any(axis=(1, 2))
        listed = is_on & is_kept
        found.append(CropLatents(firing[listed], maps[listed, crop], int((is_on & ~is_kept).sum())))
    return found


class ImagePredictions(NamedTuple):
    """What a model predicts of an image, as it is and without some of its latents, the SAE's error kept.

    classes: those that are kept, most probable first: the true one, the `N_LIKELY` most probable ones, and of each
        removal the `N_LIKELY_AFTER` most probable ones.
    before: their probabilities, 0..1, of all classes. groups: without each group.
    latents: those removed one by one, largest attribution to the predicted class first, of either sign.
    attributions: of them, as `attribute` gives it. without: probabilities without each alone.
    """

    classes: Int64[np.ndarray, " n_classes"]
    before: Float32[np.ndarray, " n_classes"]
    groups: dict[str, Float32[np.ndarray, " n_classes"]]
    latents: Int64[np.ndarray, " n"]
    attributions: Float32[np.ndarray, " n"]
    without: Float32[np.ndarray, "n n_classes"]


@torch.no_grad()
def predict_image(
    inputs: PredictInputs,
    head: ZeroShotHead,
    tokens: Tokens,
    groups: Mapping[str, Bool[np.ndarray, " d_sae"]],
    label: int | None = None,
    n_at_once: int = 32,
    n_removed: int = N_REMOVED,
) -> ImagePredictions:
    """Return the predictions of one image: exact ablations, each its own forward.

    Args:
        tokens: of this image alone, where the SAE lies. groups: latents removed together.
        label: its class, where it is known.
        n_at_once: versions of the image sent through the remaining blocks together.
        n_removed: latents removed one by one, at most.
    """
    found = attribute(inputs, head, tokens)
    attribution, fires = found.attribution[0], found.n_on[0] > 0
    order = attribution.abs().where(fires, -1.0).argsort(descending=True, stable=True)
    latents = order[: min(n_removed, int(fires.sum()))]
    image = EditedImage(inputs, head, tokens, int(found.classes[0]), n_at_once)
    removed = [torch.from_numpy(members).to(inputs.device) for members in groups.values()]
    edited = [image.editor.edit(members, EditMode.error_preserving)[0] for members in removed]
    together = image.classify([image.editor.x[0], *edited])
    alone = [image.classify(some) for some in image.remove_each(latents)] if len(latents) else []
    probabilities = torch.cat([together, *alone])
    kept = probabilities.topk(min(N_LIKELY_AFTER, len(head.class_names)), dim=1).indices
    likely = probabilities[0].topk(min(N_LIKELY, len(head.class_names))).indices
    wanted = [*kept.flatten().tolist(), *likely.tolist(), *([] if label is None else [label])]
    classes = torch.tensor(sorted(set(wanted)), device=probabilities.device)
    classes = classes[probabilities[0, classes].argsort(descending=True, stable=True)]
    shown = probabilities[:, classes].float().cpu().numpy()
    n_groups = len(groups)
    return ImagePredictions(
        classes.cpu().numpy(),
        shown[0],
        dict(zip(groups, shown[1 : 1 + n_groups], strict=True)),
        latents.cpu().numpy(),
        attribution[latents].float().cpu().numpy(),
        shown[1 + n_groups :],
    )


def count_forwards(n_groups: int) -> int:
    """Return how often an image goes through the blocks for `predict_image`, at most; a backward is two of them."""
    return 3 + 1 + n_groups + N_REMOVED
