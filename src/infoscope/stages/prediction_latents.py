"""What the latents of a picture do for a text that a CLIP finds to fit, for those who have both and an SAE."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float32, Int, Int64, UInt8

from infoscope.analyses.image_attribution import attribute, map_attributions
from infoscope.analyses.latent_orders import EditedImage
from infoscope.data.config import DataConfig, Resize
from infoscope.data.pictures import Picture
from infoscope.predictions.inputs import PredictInputs
from infoscope.predictions.prompts import Prompts
from infoscope.predictions.zero_shot import check_prompts, make_zero_shot_head
from infoscope.runtime.calls import convert, speaks_python
from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.model import SparseAutoencoder
from infoscope.stages.contextual_dependency.measure import choose_read_layer
from infoscope.stages.patch_latents import load_picture
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.config import ModelConfig
from infoscope.vision.tokens.source import TokenRows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class PredictionLatents:
    """What the latents of a picture do for a text; those that speak for it most come first.

    picture: as the backbone sees it.
    texts: that were given. probabilities: of each, 0..1, the softmax that the model makes of all their cosines.
    text: position of the one that is explained. cosine: of picture and that text, -1..1.
    layer: the block that the SAE reads, counted from 0.
    latents: indices into the SAE.
    attributions: sum over the tokens of z d cosine / d z (Attributing CLIP): to first order what the cosine loses
        without the latent, the SAE's error kept.
    losses: what it does lose without the latent alone (exact ablation).
    maps: what each patch adds to the attribution; a single number of an SAE of pooled embeddings, 0 of one of CLS.
    n_active: latents that fire in the picture, of which these are some.
    total: sum of the attributions of all of them.
    """

    picture: UInt8[np.ndarray, "size_px size_px 3"]
    texts: tuple[str, ...]
    probabilities: Float32[np.ndarray, " n_texts"]
    text: int
    cosine: float
    layer: int
    latents: Int64[np.ndarray, " n"]
    attributions: Float32[np.ndarray, " n"]
    losses: Float32[np.ndarray, " n"]
    maps: Float32[np.ndarray, "n grid grid"]
    n_active: int
    total: float

    def __repr__(self) -> str:
        best = ", ".join(f"{latent}: {a:+.4f}" for latent, a in zip(self.latents, self.attributions, strict=True))
        of_several = f", probability {self.probabilities[self.text]:.1%}" if len(self.texts) > 1 else ""
        return (
            f"PredictionLatents({self.texts[self.text]!r}: cosine {self.cosine:.3f}{of_several}; {self.n_active}"
            f" latents fire, attributions {{{best}}}; layer={self.layer})"
        )

    @property
    def _has_places(self) -> bool:
        return self.maps.shape[-1] > 1

    def _repr_png_(self) -> bytes | None:
        from infoscope.report.figure_style import write_png  # matplotlib is loaded when something is drawn

        return write_png(self.figure()) if self._has_places else None

    def figure(self, labels: Mapping[int, str] | None = None) -> Figure:
        """Draw the picture, and over it where each latent speaks for the text; needs matplotlib.

        Args:
            labels: what is said of a latent under its number, such as {6: "sky"}.

        Raises:
            InputError: labels that are no mapping of latents to texts; latents that have no place in the picture.
        """
        from infoscope.stages.patch_figure import draw_prediction  # matplotlib is loaded when something is drawn

        if not self._has_places:
            raise InputError("These latents are of the whole picture and have no place in it to draw: print them.")
        return draw_prediction(self, labels)


@speaks_python(data=DataConfig, model=ModelConfig, sae=ImportedConfig)
def explain_prediction(
    backbone: Backbone,
    sae: SparseAutoencoder,
    image: Picture,
    texts: str | Sequence[str],
    text: int | None = None,
    n_latents: int = 8,
    layer: int | None = None,
    *,
    resize: str | Resize = "squash",
    check_origin: bool = True,
) -> PredictionLatents:
    """Return the latents on which it rests most that a CLIP finds a text to fit a picture.

    Args:
        backbone: a CLIP with its text tower; read at the site pooled (`backbone.read_at("pooled")`) for an SAE of
            image embeddings.
        sae: a sparse autoencoder of its tokens, with a block between them and the prediction.
        image: a picture as `explain_patch` takes it.
        texts: whole sentences, such as "a photo of a dog"; of several the one that fits best is explained.
        text: position of the one that is explained instead.
        n_latents: how many at most; `sae.d_sae`: all that fire, those that speak against the text last.
        layer, resize, check_origin: as of `explain_patch`.

    Raises:
        InputError: a model without a text tower, texts that it cannot read, an SAE of another width, layer or backbone,
            or from whose tokens nothing reaches the prediction, a picture that cannot be read.
    """
    layer = choose_read_layer(backbone, sae, layer, check_origin)
    given = [texts] if isinstance(texts, str) else convert("texts", texts, list[str])
    n_latents, wanted = convert("n_latents", n_latents, int), convert("text", text, int | None)
    _check(given, wanted, n_latents)
    prompts = Prompts(tuple(given), ("{}",))
    check_prompts(backbone, prompts, "texts=")
    reads = sae.origin.tokens or TokenChoice.patch
    device = sae.W_dec.device
    picture = load_picture(image, backbone.image_px, convert("resize", resize, Resize))
    tokens = Tokens(*(of.to(device) for of in backbone.tokens(torch.from_numpy(picture).permute(2, 0, 1)[None], layer)))
    inputs = PredictInputs(
        *(sae, OneImage(tokens), backbone, layer),
        edits_patches=reads is not TokenChoice.cls,
        edits_prefix=reads is not TokenChoice.patch,
        check_origin=check_origin,
    )
    head = make_zero_shot_head(backbone, prompts)
    found = attribute(inputs, head, tokens, None if wanted is None else torch.tensor([wanted], device=device))
    own, fires = int(found.classes[0]), found.n_on[0] > 0
    attribution = found.attribution[0]
    order = attribution.where(fires, -torch.inf).argsort(descending=True, stable=True)
    latents = order[: min(n_latents, int(fires.sum()))]
    losses = EditedImage(inputs, head, tokens, own).measure_loss(latents)
    maps = map_attributions(inputs, head, tokens, own, latents).unflatten(1, (backbone.grid, backbone.grid))
    return PredictionLatents(
        picture=picture,
        texts=tuple(given),
        probabilities=head.log_probabilities(found.embeddings)[0].exp().cpu().numpy(),
        text=own,
        cosine=float(found.embeddings[0] @ head.weights[own].to(found.embeddings)),
        layer=layer,
        latents=latents.cpu().numpy(),
        attributions=attribution[latents].cpu().numpy(),
        losses=losses.float().cpu().numpy(),
        maps=maps.float().cpu().numpy(),
        n_active=int(fires.sum()),
        total=float(attribution.sum()),
    )


def _check(texts: Sequence[str], text: int | None, n_latents: int) -> None:
    if not texts:
        raise InputError("Expected texts= to hold at least one sentence, got none.")
    if text is not None and not 0 <= text < len(texts):
        raise InputError(f"Expected text= to be a position in 0..{len(texts) - 1} of texts=, got {text}.")
    if n_latents < 1:
        raise InputError(f"Expected n_latents to be at least 1, got {n_latents}.")


class OneImage(TokenRows):
    """The tokens of one picture."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens = tokens

    @property
    def image_index(self) -> Int[np.ndarray, " n_images"]:
        return np.arange(len(self))

    def __len__(self) -> int:
        return len(self.tokens.patches)

    def iterate(
        self, rows: Int[np.ndarray, " n"], batch_images: int
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Tokens]]:
        yield rows, Tokens(*(of[rows] for of in self.tokens))
