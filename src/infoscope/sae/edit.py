"""Ablation: tokens without the contribution of a group of latents, in raw units."""

from __future__ import annotations

from enum import Enum
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.activation import SparseActs
from infoscope.sae.model import SparseAutoencoder, sum_decoder_rows


class EditMode(Enum):
    """error_preserving: x - s z_G W_dec / c, the SAE's error stays; reconstruct: decode without the group.

    s is the token's factor (`SparseAutoencoder.token_factor`), 1 without a token norm. What a token norm took from the
    token before it was encoded stays in it.
    """

    error_preserving = "error_preserving"
    reconstruct = "reconstruct"


class GroupEditor:
    """Encodes a batch of tokens once and forms its edited versions for any number of groups.

    A version costs k decoder rows per token for any group: both modes need s z_G W_dec alone, since decoding
    without the group is the full reconstruction (formed once) minus that.

    Args:
        x: raw tokens.
        acts: their latent activations, where they are known already.
    """

    def __init__(self, sae: SparseAutoencoder, x: Float[Tensor, "... d_in"], acts: SparseActs | None = None) -> None:
        self.sae, self.x = sae, x
        with torch.no_grad():
            self.acts = sae.encode_sparse(x.reshape(-1, sae.d_in)) if acts is None else acts

    @cached_property
    def x_hat(self) -> Float[Tensor, "... d_in"]:
        """The full reconstruction in raw units."""
        with torch.no_grad():
            x = self.x.reshape(-1, self.sae.d_in)
            return self.sae.decode_sparse(self.acts, x).view(self.x.shape)

    @cached_property
    def written(self) -> SparseActs:
        """The latent activations times each token's factor."""
        return self.sae.written(self.acts, self.x)

    @torch.no_grad()
    def contribution(self, removed: Bool[Tensor, " d_sae"]) -> Float[Tensor, "... d_in"]:
        """Return what the group wrote, s z_G W_dec / c, in raw units.

        Raises:
            InputError: if `removed` is not one boolean per latent.
        """
        if removed.dtype != torch.bool or tuple(removed.shape) != (self.sae.d_sae,):
            got = f"{removed.dtype} {list(removed.shape)}"
            raise InputError(f"Expected a group as {self.sae.d_sae} booleans, one per latent, got {got}.")
        return self.contribution_of(removed[self.acts.indices])

    @torch.no_grad()
    def contribution_of(self, entries: Bool[Tensor, "n k"]) -> Float[Tensor, "... d_in"]:
        """Return what some entries of `acts` wrote: those of another group for each token, such as its image's own."""
        values, indices = self.written
        rows = sum_decoder_rows(SparseActs(values * entries, indices), self.sae.W_dec)
        # z lives in normalised units, x_n = c (x - mu): without 1/c the edit would be c times too large.
        return (rows / self.sae.scale).view(self.x.shape)

    def whole(self, mode: EditMode) -> Float[Tensor, "... d_in"]:
        """Return the tokens from which nothing is removed: themselves where the SAE's error stays, else decoded."""
        return self.x if mode is EditMode.error_preserving else self.x_hat

    @torch.no_grad()
    def edit(self, removed: Bool[Tensor, " d_sae"], mode: EditMode) -> Float[Tensor, "... d_in"]:
        """Return the tokens without the group, in raw units.

        error_preserving: x - s z_G W_dec / c; the empty group gives x itself, bit for bit.
        reconstruct: mu + N^-1(z W_dec - z_G W_dec + b_dec) / c, the decoding of the other latents.

        Raises:
            InputError: if `removed` is not one boolean per latent.
        """
        return self.whole(mode) - self.contribution(removed)


class RemovedShareMeter:
    """Accumulates over batches, in float64, the shares of mass and energy that the ablation of each group removes.

    mass: sum of z |W_dec| over the group's latents / over all latents, in the SAE's own units: a token's factor does
    not count, and of signed activations those above 0 alone, as in `compute_mass`. energy: sum |x - x'|^2 / sum |x -
    mean|^2 (ours) of raw tokens, from the mean of the data set; it can exceed 1. NaN where nothing was active, or no
    token differs from the mean.

    Args:
        removed: one boolean row per group.
        mode: of the edit whose energy is measured.
    """

    SUMS = ("latent_mass", "energy", "total_energy")
    """Everything that is known of the batches so far; those of other batches may be added."""

    def __init__(
        self,
        sae: SparseAutoencoder,
        removed: Bool[Tensor, "n_groups d_sae"],
        mode: EditMode = EditMode.error_preserving,
    ) -> None:
        self.sae, self.mode = sae, mode
        self.removed = removed.to(sae.mean.device)
        new = {"dtype": torch.float64, "device": sae.mean.device}
        self.latent_mass = torch.zeros(sae.d_sae, **new)
        self.energy = torch.zeros(len(removed), **new)
        self.total_energy = torch.zeros((), **new)

    @torch.no_grad()
    def update(self, editor: GroupEditor) -> None:
        """Add one batch of tokens."""
        values, indices = editor.acts
        if self.sae.activation.is_signed:
            values = values.clamp_min(0)
        self.latent_mass.index_add_(0, indices.flatten(), values.flatten().double())
        self.total_energy += (editor.x - self.sae.centre).square().sum(dtype=torch.float64)
        for group, removed in enumerate(self.removed):
            difference = editor.x - editor.edit(removed, self.mode)
            self.energy[group] += difference.square().sum(dtype=torch.float64)

    @torch.no_grad()
    def compute(self) -> tuple[Float[Tensor, " n_groups"], Float[Tensor, " n_groups"]]:
        """Return mass and energy of everything seen so far."""
        mass = self.latent_mass * self.sae.W_dec.norm(dim=1)
        # group by group, so that no group's sum depends on how many others there are
        taken = [mass[group].sum() for group in self.removed]
        share = torch.stack(taken) / mass.sum() if taken else mass.new_zeros(0)
        return share, self.energy / self.total_energy
