"""What fires on a patch of a picture, for those who have a backbone, an SAE and a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from infoscope.analyses.patch_latents import attribute_patch
from infoscope.data.config import DataConfig, OnError, Resize
from infoscope.data.images import ImageError
from infoscope.data.pictures import Picture, Pictures
from infoscope.runtime.calls import convert, speaks_python
from infoscope.runtime.errors import InputError
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.model import SparseAutoencoder
from infoscope.stages.contextual_dependency.measure import choose_scored_layer
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class PatchLatents:
    """What fires on one patch of a picture, and where else in it; largest contribution first.

    picture: as the backbone sees it.
    row, column: of the patch, counted from 0 at the top left.
    layer: the block that the SAE reads, counted from 0.
    latents: indices into the SAE.
    activations: z on the patch, in the SAE's own units.
    contributions: z times the norm of the latent's decoder row, by which the latents are ordered.
    maps: z on every patch of the picture.
    n_active: latents that fire on the patch, of which these are some.
    explained: share of the token's squared deviation from the data set's mean that the reconstruction gives back.
    """

    picture: UInt8[np.ndarray, "size_px size_px 3"]
    row: int
    column: int
    layer: int
    latents: Int64[np.ndarray, " n"]
    activations: Float32[np.ndarray, " n"]
    contributions: Float32[np.ndarray, " n"]
    maps: Float32[np.ndarray, "n grid grid"]
    n_active: int
    explained: float

    def __repr__(self) -> str:
        best = ", ".join(f"{latent}: {z:.3g}" for latent, z in zip(self.latents, self.contributions, strict=True))
        return (
            f"PatchLatents({self.n_active} latents fire on patch ({self.row}, {self.column}), {self.explained:.1%} of"
            f" its token explained; contributions {{{best}}}; layer={self.layer})"
        )

    def _repr_png_(self) -> bytes:
        from infoscope.report.figure_style import write_png  # matplotlib is loaded when something is drawn

        return write_png(self.figure())

    def figure(self, labels: Mapping[int, str] | None = None) -> Figure:
        """Draw the picture with the patch outlined, and each latent's map over it; needs matplotlib.

        Args:
            labels: what is said of a latent under its number, such as {6: "sky"}.

        Raises:
            InputError: labels that are no mapping of latents to texts.
        """
        from infoscope.stages.patch_figure import draw_patch  # matplotlib is loaded when something is drawn

        return draw_patch(self, labels)


@speaks_python(data=DataConfig, model=ModelConfig, sae=ImportedConfig)
def explain_patch(
    backbone: Backbone,
    sae: SparseAutoencoder,
    image: Picture,
    row: int,
    column: int,
    n_latents: int = 8,
    layer: int | None = None,
    *,
    resize: str | Resize = "squash",
    check_origin: bool = True,
) -> PatchLatents:
    """Return the latents that fire on one patch of a picture, and their maps over it.

    Args:
        backbone: a frozen vision transformer; the picture is encoded where it lies.
        sae: a sparse autoencoder of its patch tokens.
        image: a path, a PIL image, or a uint8 array or tensor [height, width, 3] or [3, height, width], of any size.
        row, column: of the patch, 0 .. grid - 1, from the top left of the picture as the backbone sees it.
        n_latents: how many at most, those of largest activation times norm of the decoder row.
        layer: the block that the SAE reads, 0-based or negative from the end; None: the one it was trained on.
        resize: "squash" both sides to the backbone's square, or "crop" the centre.
        check_origin: False insists on other tokens than the SAE was trained on: of another layer or backbone.

    Raises:
        InputError: a patch outside of the grid, a picture that cannot be read, an SAE of another width, layer or
            backbone, or of tokens without a place, or an option that is not what it should be.
    """
    layer = choose_scored_layer(backbone, sae, layer, check_origin)
    row, column = convert("row", row, int), convert("column", column, int)
    grid, n_latents = backbone.grid, convert("n_latents", n_latents, int)
    if not (0 <= row < grid and 0 <= column < grid):
        raise InputError(
            f"Expected row= and column= of a patch in 0..{grid - 1}, for this backbone cuts a picture into {grid} x"
            f" {grid} patches, got {row} and {column}."
        )
    if n_latents < 1:
        raise InputError(f"Expected n_latents to be at least 1, got {n_latents}.")
    picture = load_picture(image, backbone.image_px, convert("resize", resize, Resize))
    tokens = backbone.tokens(torch.from_numpy(picture).permute(2, 0, 1)[None], layer)
    found = attribute_patch(sae, tokens.patches[0].to(sae.W_enc.device), row * grid + column, n_latents)
    latents, activations, contributions, maps = (of.cpu().numpy() for of in found[:4])
    maps = maps.reshape(-1, grid, grid)
    return PatchLatents(
        *(picture, row, column, layer, latents, activations, contributions, maps), found.n_active, found.explained
    )


def load_picture(
    image: Picture, size_px: int, resize: Resize = Resize.squash
) -> UInt8[np.ndarray, "size_px size_px 3"]:
    """Return one picture, as `explain_patch` takes it, at the size that the backbone takes.

    Raises:
        InputError: it cannot be read, or is none.
    """
    try:
        return Pictures([image], resize, OnError.skip).load(0, size_px)
    except ImageError as error:
        what = os.fspath(image) if isinstance(image, str | os.PathLike) else "given as image="
        raise InputError(f"Cannot read the picture {what} ({error.reason}): give another one.") from error
    except InputError as error:
        raise InputError(str(error).replace("at position 0 of images=", "as image=")) from error
