"""The sparse autoencoder: tokens to a few active latents, and back."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import Activation, SparseActs
from infoscope.sae.origin import Origin


class SAEOutput(NamedTuple):
    """x_hat: the reconstruction in raw units; latent_acts: z, never negative."""

    x_hat: Float[Tensor, "... d_in"]
    latent_acts: Float[Tensor, "... d_sae"]


class SparseAutoencoder(nn.Module):
    """x_n = c (x - mu);  z = act((x_n - b_dec) W_enc + b_enc);  x_hat = mu + (z W_dec + b_dec) / c.

    Tokens come and go in raw units: mu (`mean`) and c (`scale`) are buffers. Rows of W_dec have unit norm; b_dec and
    b_enc start at 0; W_enc starts as the transpose of W_dec.

    Args:
        activation: TopK, ReLU, ...
        mean: mu, the data-set mean of a token; zeros by default.
        scale: c, such that c |x - mu| is sqrt(d_in) on average over the data set.
        seed: of the random unit rows that W_dec starts with.

    Raises:
        InputError: if the activation does not fit this many latents; of every method, if tokens have another width.
    """

    mean: Tensor
    scale: Tensor
    origin: Origin
    """Which tokens it was trained on: known of what infoscope trains and loads; of others, what one says."""

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        activation: Activation,
        mean: Float[Tensor, " d_in"] | None = None,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        activation.check(d_sae)
        self.d_in, self.d_sae, self.activation, self.origin = d_in, d_sae, activation, Origin()
        rows = F.normalize(torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed)), dim=1)
        self.W_dec = nn.Parameter(rows)
        # A transposed view: in memory a latent's encoder column is contiguous, like its decoder row, so that a sparse
        # gradient writes whole rows.
        self.W_enc = nn.Parameter(rows.clone().T)
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.register_buffer("mean", torch.zeros(d_in) if mean is None else mean.detach().clone().float())
        self.register_buffer("scale", torch.tensor(float(scale)))

    def normalise(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """Return x_n = c (x - mu) of raw tokens, in the precision of the weights."""
        self._check_width(x)
        return (x.to(self.mean.dtype) - self.mean) * self.scale

    def denormalise(self, x_n: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """Return mu + x_n / c."""
        return self.mean + x_n / self.scale

    def pre_acts(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_sae"]:
        """Return (x_n - b_dec) W_enc + b_enc of raw tokens."""
        return torch.addmm(self.b_enc, self.normalise(x) - self.b_dec, self.W_enc)

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Return the latent activations z of raw tokens."""
        self._check_width(x)  # before rows of another width are taken apart
        acts = self.activation.dense(self.pre_acts(x.reshape(-1, self.d_in)))
        return acts.view(*x.shape[:-1], self.d_sae)

    def encode_sparse(self, x: Float[Tensor, "n d_in"]) -> SparseActs:
        """Return the latent activations of raw tokens as entries: k per token for TopK, the batch's largest L0 else."""
        return self.activation.sparse(self.pre_acts(x))

    def decode(self, latent_acts: Float[Tensor, "... d_sae"]) -> Float[Tensor, "... d_in"]:
        """Return the reconstruction x_hat in raw units."""
        return self.denormalise(latent_acts @ self.W_dec + self.b_dec)

    def decode_sparse(self, acts: SparseActs) -> Float[Tensor, "n d_in"]:
        """Return the same reconstruction from entries."""
        return self.denormalise(sum_decoder_rows(acts, self.W_dec) + self.b_dec)

    def forward(self, x: Float[Tensor, "... d_in"]) -> SAEOutput:
        latent_acts = self.encode(x)
        return SAEOutput(self.decode(latent_acts), latent_acts)

    def _check_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.d_in:
            raise InputError(
                f"This SAE reads tokens of width {self.d_in}, got tokens of width {x.shape[-1]}: give tokens of the"
                " backbone that it was trained on."
            )

    @torch.no_grad()
    def normalise_decoder(self) -> None:
        """Set every row of W_dec to unit norm, in place."""
        self.W_dec.div_(self.W_dec.norm(dim=1, keepdim=True).clamp_min_(torch.finfo(self.W_dec.dtype).tiny))

    @torch.no_grad()
    def project_decoder_grad(self) -> None:
        """Take from the gradient of each (unit) row of W_dec the part along the row, in place: it would be undone."""
        grad = self.W_dec.grad
        assert grad is not None
        along = torch.einsum("ld,ld->l", grad, self.W_dec)
        grad.addcmul_(along.unsqueeze(1), self.W_dec, value=-1)


def sum_decoder_rows(acts: SparseActs, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "n d_in"]:
    """Return z W_dec from the entries of z."""
    return F.embedding_bag(acts.indices, W_dec, per_sample_weights=acts.values, mode="sum")
