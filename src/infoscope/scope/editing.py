"""Every edited version of a batch of tokens, from one encoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from infoscope.sae.activation import SparseActs
from infoscope.sae.edit import EditMode, GroupEditor, RemovedShareMeter
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Ablation


class AblationEditor:
    """Forms the tokens of several variants.

    Args:
        sae: whose latents are removed.
        variants: what is removed; the tokens come in this order.
    """

    def __init__(self, sae: SparseAutoencoder, variants: Sequence[Ablation]) -> None:
        self.sae = sae
        self.variants = list(variants)
        self.removed = [torch.from_numpy(variant.ablated).to(sae.W_dec.device) for variant in variants]

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


class AblationShares:
    """Accumulates what each variant removes from raw tokens: (share of activation mass, share of energy).

    The energy counts everything in which the edited tokens differ, so in mode `reconstruct` the SAE's error too.
    """

    def __init__(self, sae: SparseAutoencoder, variants: Sequence[Ablation]) -> None:
        self.n_variants = len(variants)
        self.meters: list[tuple[list[int], RemovedShareMeter]] = []
        for mode in EditMode:
            places = [i for i, variant in enumerate(variants) if variant.mode is mode]
            if places:
                removed = torch.stack([torch.from_numpy(variants[i].ablated) for i in places])
                self.meters.append((places, RemovedShareMeter(sae, removed, mode)))

    def update(self, editor: GroupEditor) -> None:
        """Add one batch of tokens."""
        for _, meter in self.meters:
            meter.update(editor)

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far, for `add`."""
        return {
            f"shares/{number}/{name}": getattr(meter, name)
            for number, (_, meter) in enumerate(self.meters)
            for name in meter.SUMS
        }

    def add(self, state: Mapping[str, Tensor]) -> None:
        """Add the sums of other tokens, which may lie among other things."""
        for number, (_, meter) in enumerate(self.meters):
            for name in meter.SUMS:
                sums = getattr(meter, name)
                sums += state[f"shares/{number}/{name}"].to(sums.device)

    def compute(self) -> list[tuple[float, float]]:
        """Return the shares of everything seen so far, in the order of the variants."""
        shares = [(0.0, 0.0)] * self.n_variants
        for places, meter in self.meters:
            mass, energy = meter.compute()
            for i, m, e in zip(places, mass.tolist(), energy.tolist(), strict=True):
                shares[i] = (m, e)
        return shares
