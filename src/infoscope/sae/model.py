"""The sparse autoencoder: tokens to a few active latents, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from infoscope.runtime import notebook
from infoscope.runtime.calls import name_type
from infoscope.runtime.errors import InputError
from infoscope.runtime.precision import tf32_products
from infoscope.runtime.profile import Kind, spent_on
from infoscope.sae.activation import Activation, Entries, SparseActs, join_acts, join_entries, list_entries
from infoscope.sae.config import TokenNorm
from infoscope.sae.origin import Origin

MAX_PRE_ACTS = 2**26
"""Pre-activations held at a time where entries are wanted (256 MiB): tokens of large dictionaries come in parts."""
LAYER_NORM_EPS = 1e-5
"""What every toolkit adds to the standard deviation by which it divides."""


class SAEOutput(NamedTuple):
    """x_hat: the reconstruction in raw units; latent_acts: z, below 0 only where the activation is signed."""

    x_hat: Float[Tensor, "... d_in"]
    latent_acts: Float[Tensor, "... d_sae"]


class TokenStats(NamedTuple):
    """What a token norm N undoes of each token, in units of y = c (x - mu): N(y) is about (y - shift) / factor, and
    N^-1(x_n) is x_n factor + shift.

    layer_norm: mean and standard deviation (that of a sample). constant_norm: 0 and |y| / sqrt(d_in).
    """

    shift: Float[Tensor, "... 1"]
    factor: Float[Tensor, "... 1"]


class SparseAutoencoder(nn.Module):
    """x_n = N(c (x - mu));  z = act((x_n - b_dec) W_enc + b_enc);  x_hat = mu + N^-1(z W_dec + b_dec) / c.

    Tokens come and go in raw units: mu (`mean`) and c (`scale`) are buffers. N normalises each token by itself, and is
    nothing in what infoscope trains. Rows of W_dec have unit norm; b_dec and b_enc start at 0; W_enc starts as the
    transpose of W_dec. Imported SAEs may have any of them.

    Args:
        activation: TopK, ReLU, ...
        mean: mu, the data-set mean of a token; zeros by default.
        scale: c, such that c |x - mu| is sqrt(d_in) on average over the data set.
        seed: of the random unit rows that W_dec starts with.
        token_norm: N.

    Raises:
        InputError: if the activation does not fit this many latents; of every method, if tokens have another width.
    """

    mean: Tensor
    scale: Tensor
    data_mean: Tensor | None
    """The mean of the data set's tokens, where mu is not: see `centre`."""
    origin: Origin
    """Which tokens it was trained on: known of what infoscope trains and loads; of others, what one says."""
    uses_tf32: bool = False
    """Whether the encoder's product is rounded to TF32 on CUDA: ten bits of mantissa, eight times as fast."""
    trained_in_bf16: bool = False
    """Whether its file says that it was trained with products in bfloat16; float32, or not said, if not."""
    prefix_sizes: Sequence[int] = ()
    """Latents in each prefix of a Matryoshka SAE, ascending to d_sae, as its file says; empty: none, or not said."""

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        activation: Activation,
        mean: Float[Tensor, " d_in"] | None = None,
        scale: float = 1.0,
        seed: int = 0,
        token_norm: TokenNorm = TokenNorm.none,
    ) -> None:
        super().__init__()
        rows = F.normalize(torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed)), dim=1)
        # A transposed view: in memory a latent's encoder column is contiguous, like its decoder row, so that a sparse
        # gradient writes whole rows.
        weights = rows.clone().T, torch.zeros(d_sae), rows, torch.zeros(d_in)
        self._hold(*weights, activation, None if mean is None else mean.detach().clone().float(), scale, token_norm)

    @classmethod
    def of(
        cls,
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        activation: Activation,
        mean: Float[Tensor, " d_in"] | None = None,
        scale: float = 1.0,
        token_norm: TokenNorm = TokenNorm.none,
    ) -> SparseAutoencoder:
        """Return the SAE that has these tensors (float32, W_enc of any strides): themselves, not copies. In eval mode.

        Raises:
            InputError: if the activation does not fit this many latents.
        """
        sae = cls.__new__(cls)
        nn.Module.__init__(sae)
        sae._hold(W_enc, b_enc, W_dec, b_dec, activation, mean, scale, token_norm)
        return sae.eval()

    def _hold(
        self,
        W_enc: Tensor,
        b_enc: Tensor,
        W_dec: Tensor,
        b_dec: Tensor,
        activation: Activation,
        mean: Tensor | None,
        scale: float,
        token_norm: TokenNorm,
    ) -> None:
        self.d_sae, self.d_in = W_dec.shape
        assert W_enc.shape == (self.d_in, self.d_sae), (W_enc.shape, W_dec.shape)
        assert (b_enc.shape, b_dec.shape) == ((self.d_sae,), (self.d_in,)), (b_enc.shape, b_dec.shape)
        assert mean is None or mean.shape == (self.d_in,), mean.shape
        activation.check(self.d_sae)
        self.activation, self.token_norm, self.origin = activation, token_norm, Origin()
        self.W_dec, self.W_enc = nn.Parameter(W_dec), nn.Parameter(W_enc)
        self.b_enc, self.b_dec = nn.Parameter(b_enc), nn.Parameter(b_dec)
        self.register_buffer("mean", torch.zeros(self.d_in) if mean is None else mean)
        self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("data_mean", None)

    def extra_repr(self) -> str:
        norm = "" if self.token_norm is TokenNorm.none else f", token_norm={self.token_norm.name}"
        block = "" if self.origin.layer is None else f", of block {self.origin.layer}"
        return f"d_in={self.d_in}, d_sae={self.d_sae}{norm}{block}"

    def _repr_html_(self) -> str:
        from infoscope.sae.describing import describe  # which describes this class

        size = f"{self.d_sae:,} latents of tokens of width {self.d_in:,}"
        facts = {heading: words for heading, words in describe(self).items() if heading != "size"}
        return notebook.join(notebook.write_title("SparseAutoencoder", size), notebook.write_facts(facts))

    @property
    def centre(self) -> Float[Tensor, " d_in"]:
        """What deviations of tokens are counted from: the mean of the data set, which is mu but of imported SAEs."""
        return self.mean if self.data_mean is None else self.data_mean

    def normalise(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        """Return x_n = N(c (x - mu)) of raw tokens, in the precision of the weights. A token norm makes 0 of 0."""
        y = self._scaled(x)
        stats = self._measure(y)
        if stats is None:
            return y
        is_layer = self.token_norm is TokenNorm.layer_norm
        tiny = torch.finfo(y.dtype).tiny
        return (y - stats.shift) / (stats.factor + LAYER_NORM_EPS if is_layer else stats.factor.clamp_min(tiny))

    def denormalise(
        self, x_n: Float[Tensor, "... d_in"], x: Float[Tensor, "... d_in"] | None = None
    ) -> Float[Tensor, "... d_in"]:
        """Return mu + N^-1(x_n) / c.

        Args:
            x: the raw tokens, which are read where the SAE has a token norm.

        Raises:
            InputError: it has one, and there is no x.
        """
        if self.token_norm is TokenNorm.none:
            return self.mean + x_n / self.scale
        if x is None:
            raise InputError(
                f"This SAE normalises each token by itself ({self.token_norm.value}), which decoding undoes: give the"
                " tokens too, as decode(z, x) or sae(x)."
            )
        stats = self.token_stats(x)
        assert stats is not None
        return self.mean + (x_n * stats.factor + stats.shift) / self.scale

    def token_stats(self, x: Float[Tensor, "... d_in"]) -> TokenStats | None:
        """Return what the token norm undoes of raw tokens; None without a token norm."""
        return None if self.token_norm is TokenNorm.none else self._measure(self._scaled(x))

    def token_factor(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... 1"] | None:
        """Return how far a unit of z W_dec reaches on each raw token, in units of c (x - mu); None: 1 everywhere.

        Latent j writes z_j factor W_dec[j] / c into a raw token.
        """
        stats = self.token_stats(x)
        return None if stats is None else stats.factor

    def written(self, acts: SparseActs, x: Float[Tensor, "... d_in"]) -> SparseActs:
        """Return latent activations of raw tokens times `token_factor`: what is linear in the tokens is linear in them.

        Without a token norm they are the activations themselves.
        """
        factor = self.token_factor(x)
        return acts if factor is None else SparseActs(acts.values * factor.reshape(-1, 1), acts.indices)

    def _scaled(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_in"]:
        self._check_width(x)
        return (x.to(self.mean.dtype) - self.mean) * self.scale

    def _measure(self, y: Float[Tensor, "... d_in"]) -> TokenStats | None:
        match self.token_norm:
            case TokenNorm.none:
                return None
            case TokenNorm.layer_norm:
                return TokenStats(y.mean(-1, keepdim=True), y.std(-1, keepdim=True))
            case TokenNorm.constant_norm:
                norm = y.norm(dim=-1, keepdim=True)
                return TokenStats(torch.zeros_like(norm), norm / self.d_in**0.5)

    def pre_acts(
        self, x: Float[Tensor, "n d_in"], latents: Int64[Tensor, " n_latents"] | None = None
    ) -> Float[Tensor, "n n_latents"]:
        """Return a = (x_n - b_dec) W_enc + b_enc of raw tokens, of all latents by default."""
        W_enc, b_enc = (self.W_enc, self.b_enc) if latents is None else (self.W_enc.T[latents].T, self.b_enc[latents])
        with tf32_products(self.uses_tf32):
            return torch.addmm(b_enc, self.normalise(x) - self.b_dec, W_enc)

    def encode(self, x: Float[Tensor, "... d_in"]) -> Float[Tensor, "... d_sae"]:
        """Return the latent activations z of raw tokens."""
        self._check_width(x)
        with spent_on(Kind.encoder):
            acts = self.activation.dense(self.pre_acts(x.reshape(-1, self.d_in)))
        return acts.view(*x.shape[:-1], self.d_sae)

    def encode_sparse(self, x: Float[Tensor, "n d_in"]) -> SparseActs:
        """Return the latent activations of raw tokens as entries: k per token for TopK, the batch's largest L0 else."""
        self._check_width(x)
        parts = x.split(max(1, MAX_PRE_ACTS // self.d_sae))
        with spent_on(Kind.encoder):
            acts = [self.activation.sparse(self.pre_acts(part)) for part in parts]
            return acts[0] if len(acts) == 1 else join_acts(acts)

    def encode_entries(self, x: Float[Tensor, "n d_in"]) -> Entries:
        """Return the latent activations of raw tokens that are not 0, one after the other: those of `encode`.

        Dense ones [n, d_sae] are never made, and pre-activations of some tokens at a time (`MAX_PRE_ACTS`). NaN, of
        which backbones give none, may be left out.

        Raises:
            InputError: if the tokens have another width, or are no matrix.
        """
        self._check_width(x)
        if x.ndim != 2:
            raise InputError(f"Expected tokens [n, {self.d_in}], got {list(x.shape)}: give x.reshape(-1, {self.d_in}).")
        with spent_on(Kind.encoder):
            if self.activation.max_active is not None:
                return list_entries(self.encode_sparse(x))  # the device is waited for once, not part by part
            parts = x.split(max(1, MAX_PRE_ACTS // self.d_sae))
            return join_entries([self.activation.entries(self.pre_acts(part)) for part in parts], map(len, parts))

    def encode_latents(
        self, x: Float[Tensor, "n d_in"], latents: Int64[Tensor, " n_latents"]
    ) -> Float[Tensor, "n n_latents"]:
        """Return the activations of some latents, where the activation `is_pointwise`: no others are computed.

        They are those of `encode` but for the rounding of a product of other sizes.
        """
        self._check_width(x)
        with spent_on(Kind.encoder):
            return self.activation.of_latents(self.pre_acts(x, latents), latents)

    def decode(
        self, latent_acts: Float[Tensor, "... d_sae"], x: Float[Tensor, "... d_in"] | None = None
    ) -> Float[Tensor, "... d_in"]:
        """Return the reconstruction x_hat in raw units; of an SAE with a token norm, of the tokens x alone."""
        return self.denormalise(latent_acts @ self.W_dec + self.b_dec, x)

    def decode_sparse(self, acts: SparseActs, x: Float[Tensor, "n d_in"] | None = None) -> Float[Tensor, "n d_in"]:
        """Return the same reconstruction from entries."""
        return self.denormalise(sum_decoder_rows(acts, self.W_dec) + self.b_dec, x)

    def forward(self, x: Float[Tensor, "... d_in"]) -> SAEOutput:
        latent_acts = self.encode(x)
        return SAEOutput(self.decode(latent_acts, x), latent_acts)

    def _check_width(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InputError(f"Expected tokens as a torch.Tensor, got {name_type(x)}: give torch.as_tensor(x).")
        if x.shape[-1:] != (self.d_in,):
            raise InputError(
                f"This SAE reads tokens of width {self.d_in}, got a tensor {list(x.shape)}: give tokens of the"
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
