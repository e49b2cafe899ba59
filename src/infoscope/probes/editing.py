"""Every edited version of a batch of tokens, from one encoding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from infoscope.probes.variants import Variant
from infoscope.sae.activations import SparseActs
from infoscope.sae.edit import EditMode, GroupEditor, RemovedShareMeter
from infoscope.sae.model import SparseAutoencoder


class VariantEditor:
    """Forms the tokens of several variants.

    Args:
        sae: whose latents are removed.
        variants: what is removed; the tokens come in this order.
    """

    def __init__(self, sae: SparseAutoencoder, variants: Sequence[Variant]) -> None:
        self.sae = sae
        self.variants = list(variants)
        self.removed = [torch.from_numpy(variant.removed).to(sae.W_dec.device) for variant in variants]

    def __len__(self) -> int:
        return len(self.variants)

    @torch.no_grad()
    def edit(self, x: Float[Tensor, "n d_in"], acts: SparseActs | None = None) -> Float[Tensor, "n_variants n d_in"]:
        """Return raw tokens in every variant.

        Args:
            acts: their latent activations, where they are known already.
        """
        editor = GroupEditor(self.sae, x, acts)
        edited = torch.empty(len(self), *x.shape, device=x.device, dtype=x.dtype)
        for place, variant, removed in zip(edited, self.variants, self.removed, strict=True):
            place.copy_(editor.edit(removed, variant.mode))
        return edited


def compute_variant_shares(
    sae: SparseAutoencoder, batches: Iterable[Float[Tensor, "n d_in"]], variants: Sequence[Variant]
) -> list[tuple[float, float]]:
    """Return (share of activation mass, share of energy) that each variant removes from these raw tokens.

    The energy counts everything in which the edited tokens differ, so in mode `reconstruct` the SAE's error too.
    """
    meters = {}
    for mode in EditMode:
        places = [i for i, variant in enumerate(variants) if variant.mode is mode]
        if places:
            removed = torch.stack([torch.from_numpy(variants[i].removed) for i in places])
            meters[mode] = (places, RemovedShareMeter(sae, removed, mode))
    for x in batches:
        editor = GroupEditor(sae, x)
        for _, meter in meters.values():
            meter.update(editor)
    shares = [(0.0, 0.0)] * len(variants)
    for places, meter in meters.values():
        mass, energy = meter.compute()
        for i, m, e in zip(places, mass.tolist(), energy.tolist(), strict=True):
            shares[i] = (m, e)
    return shares
