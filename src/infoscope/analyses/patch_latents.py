"""What fires on one patch of a picture (patch attribution, after PatchSAE, 2412.05276), and where else in it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from infoscope.sae.activation import Entries, pad_entries
from infoscope.sae.metrics import compute_row_norms
from infoscope.sae.model import SparseAutoencoder


class PatchAttribution(NamedTuple):
    """The latents of one patch, largest contribution first.

    latents: those that fire, as many as were asked for at most.
    activations: z on the patch, in the SAE's own units.
    contributions: z times the norm of the latent's decoder row: how far it moves the reconstruction.
    maps: z on all patches of the picture, 0 where the latent does not fire.
    n_active: latents that fire on the patch.
    explained: share of the token's squared deviation from the data set's mean (`sae.centre`) that all latents together
        give back, at most 1, below 0 where the reconstruction is worse than the mean; NaN of a token that is the mean.
    """

    latents: Int64[Tensor, " n"]
    activations: Float32[Tensor, " n"]
    contributions: Float32[Tensor, " n"]
    maps: Float32[Tensor, "n n_patches"]
    n_active: int
    explained: float


@torch.inference_mode()
def attribute_patch(
    sae: SparseAutoencoder, patches: Float32[Tensor, "n_patches d_in"], place: int, n_latents: int
) -> PatchAttribution:
    """Return the latents of one patch.

    Args:
        patches: raw tokens of all patches of one picture, on the SAE's device.
        place: of the patch among them.
        n_latents: how many to return at most.
    """
    codes = sae.encode_entries(patches)
    on_patch = (codes.tokens == place) & (codes.values > 0)
    latents, values = codes.latents[on_patch], codes.values[on_patch]
    contributions = values * torch.as_tensor(compute_row_norms(sae.W_dec[latents]), device=values.device)
    order = contributions.argsort(descending=True, stable=True)[:n_latents]
    chosen = latents[order]
    maps = values.new_zeros(len(chosen), len(patches))
    for of_latent, latent in zip(maps, chosen, strict=True):
        fires = (codes.latents == latent) & (codes.values > 0)
        of_latent[codes.tokens[fires]] = codes.values[fires]
    return PatchAttribution(
        chosen, values[order], contributions[order].float(), maps, len(latents), _explain(sae, codes, patches, place)
    )


def _explain(sae: SparseAutoencoder, codes: Entries, patches: Tensor, place: int) -> float:
    """Return the share of the patch's deviation that is given back; codes below 0 take part."""
    here = codes.tokens == place
    token = patches[place : place + 1].to(sae.mean.dtype)
    acts = pad_entries(Entries(codes.tokens[here] - place, codes.latents[here], codes.values[here]), 1)
    error = (token - sae.decode_sparse(acts, token)).double().square().sum()
    deviation = (token - sae.centre).double().square().sum()
    return float(1 - error / deviation) if deviation > 0 else float("nan")
