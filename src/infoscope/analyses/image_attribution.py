"""What each latent of an image does for its class: gradient times activation (Attributing CLIP).

Of latent j in image i, whose class is c, with activations z on the tokens t that the SAE reads, its error kept:

    A_ij = sum_t z_itj  d cos(image_i, text_c) / d z_itj  =  sum_t s_t z_itj (g_t . W_dec[j]) / scale

where g_t is the gradient of the cosine to the raw token, s_t the token's factor and `scale` the SAE's: one forward and
one backward of the blocks after the hooked one for all latents. To first order that is what the cosine loses without
the latent (`GroupEditor`'s edit).

How far it is not: most for latents that fire on many tokens. The gradient halfway to the tokens without the latent
would also take the second order with it, and would cost a backward for each latent. So latents may share one (ours):
those of an image are cut into groups of about equal mass, the heaviest first, so that these are nearly alone, and g_t
of a latent is taken halfway to the tokens without its group.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from infoscope.predictions.inputs import PredictInputs, put_tokens, take_tokens
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.profile import Kind, spent_on
from infoscope.sae.edit import GroupEditor
from infoscope.vision.backbone import Tokens

_NUMBERS = 2**24
"""Coordinates of decoder rows held at a time."""


@dataclass(frozen=True)
class AttributionInputs:
    """What is attributed, and how it is tested.

    inputs: the SAE, the tokens of the test images, the backbone that goes on from them.
    labels: of every image of the test set; None: not known.
    towards_true: whether attributions are towards the true class, which needs labels; else the predicted one.
    n_top: images of which semantic alignment is.
    n_tested: images on which orders of latents are compared, drawn at random; n_steps: of the curves.
    n_groups: of latents that share a gradient halfway; None: all have that at the tokens as they are (the published).
    seed: of the draw, and of random orders.
    """

    inputs: PredictInputs
    head: ZeroShotHead
    _: KW_ONLY
    n_top: int
    n_tested: int
    n_steps: int
    labels: Int64[np.ndarray, " n_all_images"] | None = None
    towards_true: bool = False
    n_groups: int | None = None
    seed: int = 0

    def classes_of(self, index: Int64[np.ndarray, " batch"]) -> Int64[Tensor, " batch"] | None:
        """Return the classes towards which images are attributed, by their positions; None: the predicted ones."""
        if not self.towards_true:
            return None
        assert self.labels is not None, "the true class needs labels"
        return torch.from_numpy(self.labels[index]).to(self.inputs.device)


class Attributed(NamedTuple):
    """What the latents of a batch of images do for their class.

    classes: of the images. embeddings: of unit norm.
    attribution: A_ij. mass: sum of z_ij over the tokens, of signed ones those above 0, times |W_dec[j]|.
    n_on: tokens on which the latent fires.
    """

    classes: Int64[Tensor, " batch"]
    embeddings: Float[Tensor, "batch embed_dim"]
    attribution: Float[Tensor, "batch d_sae"]
    mass: Float[Tensor, "batch d_sae"]
    n_on: Float[Tensor, "batch d_sae"]


@torch.no_grad()
def attribute(
    inputs: PredictInputs,
    head: ZeroShotHead,
    tokens: Tokens,
    classes: Int64[Tensor, " batch"] | None = None,
    n_groups: int | None = None,
) -> Attributed:
    """Return the attributions of all latents in a batch of images, from one forward and one backward.

    Args:
        tokens: of the hooked block.
        classes: towards which; None: the predicted ones.
        n_groups: as in `AttributionInputs`: so many more forwards and backwards.
    """
    sae, x = inputs.sae, take_tokens(tokens, inputs.reads)
    of, embeddings, gradient = differentiate(inputs, head, tokens, x, classes)
    editor, n = GroupEditor(sae, x), len(x)
    (acts, indices), written = editor.acts, editor.written.values
    along = project(gradient.flatten(0, -2), indices, sae.W_dec) / sae.scale
    place = (torch.arange(n, device=x.device).repeat_interleave(x.shape[1])[:, None] * sae.d_sae + indices).flatten()

    def add_up(entries: Float[Tensor, "n k"]) -> Float[Tensor, "batch d_sae"]:
        total = torch.zeros(n * sae.d_sae, device=x.device)
        return total.index_add_(0, place, entries.flatten().float()).view(n, sae.d_sae)

    positive = acts.clamp_min(0) if sae.activation.is_signed else acts
    mass = add_up(positive) * sae.W_dec.norm(dim=1)
    if n_groups is not None:
        group = group_latents(mass, n_groups).flatten()[place].view_as(indices)
        for number in range(n_groups):
            half = x - editor.contribution_of(group == number) / 2
            gradient = differentiate(inputs, head, tokens, half, of)[2]
            found = project(gradient.flatten(0, -2), indices, sae.W_dec) / sae.scale
            along = torch.where(group == number, found, along)
    return Attributed(of, embeddings, add_up(written * along), mass, add_up((acts != 0).float()))


@torch.no_grad()
def map_attributions(
    inputs: PredictInputs, head: ZeroShotHead, tokens: Tokens, own: int, latents: Int64[Tensor, " n"]
) -> Float[Tensor, "n n_patches"]:
    """Return what each patch of one image adds to the attributions of some latents towards a class; 0 where the SAE
    does not read patches."""
    sae, x = inputs.sae, take_tokens(tokens, inputs.reads)
    gradient = differentiate(inputs, head, tokens, x, torch.tensor([own], device=x.device))[2]
    written, indices = GroupEditor(sae, x).written
    entries = written * project(gradient.flatten(0, -2), indices, sae.W_dec) / sae.scale
    maps = entries.new_zeros(len(latents), len(entries))
    for of_latent, latent in zip(maps, latents, strict=True):
        of_latent += (entries * (indices == latent)).sum(-1)
    n_patches = tokens.patches.shape[1]
    return maps[:, -n_patches:] if inputs.edits_patches else maps.new_zeros(len(latents), n_patches)


def group_latents(mass: Float[Tensor, "batch d_sae"], n_groups: int) -> Int64[Tensor, "batch d_sae"]:
    """Return which of some groups of about equal mass each latent of an image is in, cut in the order of their mass.

    A latent with more than its share makes a group smaller, or empty.
    """
    ordered, order = mass.sort(dim=1, descending=True, stable=True)
    middle = ordered.cumsum(1, dtype=torch.float64) - ordered / 2
    whole = ordered.sum(1, keepdim=True, dtype=torch.float64).clamp_min(torch.finfo(torch.float32).tiny)
    return torch.zeros_like(order).scatter_(1, order, (middle / whole * n_groups).long().clamp_max(n_groups - 1))


def differentiate(
    inputs: PredictInputs,
    head: ZeroShotHead,
    tokens: Tokens,
    read: Float[Tensor, "batch n_read d_in"],
    classes: Int64[Tensor, " batch"] | None,
) -> tuple[Int64[Tensor, " batch"], Float[Tensor, "batch embed_dim"], Float[Tensor, "batch n_read d_in"]]:
    """Return the classes, the embeddings, and the gradient of the cosine with each image's class to what is read."""
    with torch.inference_mode(False), torch.enable_grad(), spent_on(Kind.forward):
        weights, x = head.weights.to(inputs.device).clone(), read.clone().requires_grad_()
        others = Tokens(tokens.prefix.clone(), tokens.patches.clone())  # of inference mode nothing can be recorded
        whole = put_tokens(others, x, inputs.reads)
        embeddings = inputs.backbone.embed_tokens(whole, inputs.layer, with_gradient=True).float()
        cosines = embeddings @ weights.T
        of = cosines.argmax(-1) if classes is None else classes.clone()
        (gradient,) = torch.autograd.grad(cosines.gather(1, of[:, None]).sum(), x)
    return of, embeddings.detach(), gradient


def project(
    gradient: Float[Tensor, "n d_in"], indices: Int64[Tensor, "n k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "n k"]:
    """Return g_t . W_dec[j] where latent j has an entry on token t, and nowhere else."""
    n_at_once = max(1, _NUMBERS // max(1, indices.shape[1] * W_dec.shape[1]))
    parts = zip(gradient.split(n_at_once), indices.split(n_at_once), strict=True)
    return torch.cat([torch.einsum("nd,nkd->nk", g, W_dec[some]) for g, some in parts])
