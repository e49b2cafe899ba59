"""What an SAE is and how it is trained. Plain Python, so that composing a configuration does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Annotated, Any

from infoscope.runtime.bounds import Batch, Bounds, Count, CountOrNone, Few, Items, NotNegative, Positive, Share, check
from infoscope.runtime.errors import InputError


class Kind(Enum):
    """Which activation an SAE has; the names are what the command line and a checkpoint write."""

    topk = "topk"
    relu = "relu"
    batchtopk = "batchtopk"
    jumprelu = "jumprelu"
    matryoshka_k = "matryoshka_k"
    matryoshka_prefix = "matryoshka_prefix"


_TOPK_LIKE = {Kind.topk, Kind.batchtopk, Kind.matryoshka_k, Kind.matryoshka_prefix}
_READ_BY = {
    "k": _TOPK_LIKE,
    "aux_k": _TOPK_LIKE,
    "aux_coef": _TOPK_LIKE,
    "dead_after_tokens": _TOPK_LIKE,
    "l1": {Kind.relu},
    "l0_coef": {Kind.jumprelu},
    "bandwidth": {Kind.jumprelu},
    "initial_threshold": {Kind.jumprelu},
    "k_levels": {Kind.matryoshka_k},
    "level_weights": {Kind.matryoshka_k},
    "prefixes": {Kind.matryoshka_prefix},
}
"""The kinds that read a setting, where that is not all of them."""


class LevelWeights(Enum):
    """How much each nested code counts: all the same, or n, n-1, ..., 1 from the smallest k to the largest."""

    uniform = "uniform"
    decreasing = "decreasing"


class TokenChoice(Enum):
    """Which tokens an SAE is trained on: the patches, every token, or CLS (the first prefix token) alone."""

    patch = "patch"
    all = "all"
    cls = "cls"


def check_k(k: int, d_sae: int) -> None:
    """Refuse more active latents than there are.

    Raises:
        InputError: so many, or none.
    """
    if not 1 <= k <= d_sae:
        raise InputError(f"Expected sae.k in 1..{d_sae} (the number of latents), got {k}.")


@dataclass
class SAEConfig:
    """What determines an SAE, beside its tokens and its seed."""

    kind: Kind = Kind.topk
    """topk: k active latents per token (Gao et al., 2024). relu: ReLU with an L1 penalty. batchtopk: k per token on
    average over a batch, one threshold for all afterwards (Bussmann et al., 2024). jumprelu: a learnt threshold per
    latent with an L0 penalty (Rajamanoharan et al., 2024). matryoshka_k: TopK whose first few entries reconstruct too
    (MSAE, Zaigrajew et al., 2025). matryoshka_prefix: BatchTopK whose first latents reconstruct too (Bussmann et al.,
    2025)."""
    expansion_factor: Few = 8
    """d_sae / d_in."""
    k: Count = 16
    """Active latents per token (topk, matryoshka_k), or their average (batchtopk, matryoshka_prefix)."""
    l1: NotNegative = 0.1
    """Weight of the mean sum of latent activations, in units of a token's mean norm, beside FVU (relu; ours)."""
    aux_k: CountOrNone | None = None
    """Dead latents per token that AuxK trains on the residual (all kinds with k); null is d_in / 2, 0 is none."""
    aux_coef: NotNegative = 1 / 32
    """Weight of AuxK's loss (Gao et al., 2024)."""
    dead_after_tokens: Count = 250_000
    """A latent counts as dead in training when it has not fired for this many tokens."""
    tokens: TokenChoice = TokenChoice.patch
    """Which tokens it is trained on."""
    n_tokens: Count = 2_000_000
    """Tokens to train on, rounded up to whole batches; may exceed the data set (several epochs)."""
    batch_tokens: Batch = 4096
    """Tokens per step."""
    pool_images: Count = 4096
    """Tokens are shuffled among this many images at a time (the images are shuffled first): bounds random reads, and
    memory where tokens are not stored (see `LiveTokenSet`)."""
    tokens_per_image: Count | None = None
    """Tokens taken from an image each time it is read, drawn at random; null: all. Few of them make a pool of many
    images cheap to hold, and a training of many images cheap to shuffle; what an image costs to encode stays."""
    lr: Positive = 1e-3
    """Adam's learning rate after warm-up."""
    warmup_steps: CountOrNone = 50
    """Steps of linear warm-up."""
    decay_share: Share = 0.2
    """Share of the steps, at the end, over which the learning rate falls linearly to 0."""
    eval_tokens: Count = 65_536
    """Held-out tokens for the final figures; at most a tenth of the images is kept from training for them."""
    log_every_n_steps: Count = 10
    """Steps between logged figures."""
    checkpoint_every_n_steps: Count = 500
    """Steps between checkpoints to resume from."""
    l0_coef: NotNegative = 0.003
    """Weight of the mean number of active latents per token, beside FVU (jumprelu; ours)."""
    bandwidth: Positive = 0.1
    """Width of the window around a threshold in which activations teach it (jumprelu; ours, normalised units)."""
    initial_threshold: Positive = 1.0
    """What every threshold starts at (jumprelu; ours). Pre-activations start with a standard deviation of about 1."""
    k_levels: Annotated[list[Count], Items(ascending=True)] | None = None
    """Active latents of the nested codes, ascending up to k (matryoshka_k); null is 1, 2, 4, ... up to k."""
    level_weights: LevelWeights = LevelWeights.uniform
    """How much each nested code counts (matryoshka_k)."""
    prefixes: Annotated[list[Annotated[float, Bounds(above=0, most=1)]], Items(ascending=True)] = field(
        default_factory=lambda: [0.0625, 0.125, 0.25, 0.5, 1.0]
    )
    """Shares of the dictionary whose first latents reconstruct alone, ascending up to 1 (matryoshka_prefix)."""

    def __post_init__(self) -> None:
        check(self, "sae")
        if self.kind is Kind.matryoshka_k and self.all_k_levels[-1] != self.k:
            raise InputError(
                f"Expected sae.k to be the largest of sae.k_levels, {self.all_k_levels[-1]}, got {self.k}: change"
                " either, or leave out sae.k_levels."
            )
        if self.prefixes[-1] != 1:
            raise InputError(f"Expected sae.prefixes to ascend to 1, such as [0.25,0.5,1], got {self.prefixes}.")

    @property
    def n_steps(self) -> int:
        """Steps that show `n_tokens` tokens, or a little more."""
        return math.ceil(self.n_tokens / self.batch_tokens)

    @property
    def all_k_levels(self) -> list[int]:
        """`k_levels`, with null resolved."""
        if self.k_levels is not None:
            return list(self.k_levels)
        return [2**i for i in range((self.k - 1).bit_length())] + [self.k]

    def compute_level_weights(self) -> list[int]:
        """Return how much each of the nested codes counts; the scale does not matter."""
        n = len(self.all_k_levels)
        return [1] * n if self.level_weights is LevelWeights.uniform else list(range(n, 0, -1))

    def compute_prefix_sizes(self, d_sae: int) -> list[int]:
        """Return the latents in each prefix of a dictionary, ascending up to d_sae.

        Raises:
            InputError: if one would be empty or like the one before.
        """
        sizes = [round(share * d_sae) for share in self.prefixes]
        if not _ascends([0, *sizes]):
            raise InputError(
                f"Expected sae.prefixes to add latents each, got {sizes} of {d_sae}: use fewer, or a larger"
                " sae.expansion_factor."
            )
        return sizes

    def check_width(self, d_sae: int) -> None:
        """Refuse a dictionary of another width than these settings need.

        Raises:
            InputError: more active latents than there are, or prefixes that add none.
        """
        if self.kind in _TOPK_LIKE:
            check_k(self.k, d_sae)
        if self.kind is Kind.matryoshka_prefix:
            self.compute_prefix_sizes(d_sae)

    def determining(self) -> dict[str, Any]:
        """Return what decides the weights, as plain JSON values: not how often to log, not what another kind reads."""
        ignored = {"log_every_n_steps", "checkpoint_every_n_steps"}
        ignored |= {name for name, kinds in _READ_BY.items() if self.kind not in kinds}
        fields = {**asdict(self), "k_levels": self.all_k_levels}
        fields = {name: value for name, value in fields.items() if name not in ignored}
        return {name: value.name if isinstance(value, Enum) else value for name, value in fields.items()}


def _ascends(values: Sequence[float]) -> bool:
    """Whether there are values and each exceeds the one before; False with a NaN."""
    return len(values) > 0 and all(low < high for low, high in pairwise([-math.inf, *values]))
