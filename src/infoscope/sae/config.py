"""What an SAE is and how it is trained, or where it lies. Plain Python: composing a configuration imports no torch.

Each kind that is trained has a dataclass of its own, which conf/sae/*.yaml extend as `/sae_<kind>`. A new kind is a
dataclass and its place in `KINDS` here, an activation and its place in `ACTIVATIONS` (`sae/activations.py`), its loss
in `OBJECTIVES` (`sae/losses.py`), and a file in conf/sae.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from enum import Enum
from itertools import pairwise
from typing import Annotated, Any

from infoscope.runtime.bounds import Batch, Bounds, Count, CountOrNone, Few, Items, NotNegative, Positive, Share, check
from infoscope.runtime.errors import InputError


class LevelWeights(Enum):
    """How much each nested code counts: all the same, or n, n-1, ..., 1 from the smallest k to the largest."""

    uniform = "uniform"
    decreasing = "decreasing"


class TokenChoice(Enum):
    """Which tokens an SAE is trained on: the patches, every token, or CLS (the first prefix token) alone."""

    patch = "patch"
    all = "all"
    cls = "cls"

    def count_read(self, n_patches: int, n_prefix: int) -> int:
        """Return how many tokens of an image an SAE of this choice reads, see `take_tokens`."""
        return n_patches * (self is not TokenChoice.cls) + n_prefix * (self is not TokenChoice.patch)


class TokenNorm(Enum):
    """How each token is normalised by itself before it is encoded; decoding undoes it.

    layer_norm: to mean 0 and variance 1 over its components. constant_norm: to the norm sqrt(d_in).
    """

    none = "none"
    layer_norm = "layer_norm"
    constant_norm = "constant_norm"


def check_k(k: int, d_sae: int) -> None:
    """Refuse more active latents than there are.

    Raises:
        InputError: so many, or none.
    """
    if not 1 <= k <= d_sae:
        raise InputError(f"Expected sae.k in 1..{d_sae} (the number of latents), got {k}.")


@dataclass
class SAEConfig:
    """Settings of every SAE."""

    kind: str = "none"
    """Its name, which the command line and a checkpoint write: that of the dataclass, which alone may set it."""

    @property
    def words(self) -> str:
        """What it is called in tables that join configurations."""
        return self.kind


@dataclass
class TrainedConfig(SAEConfig):
    """Settings of every kind of SAE that is trained here. It is determined by these, its tokens and its seed."""

    expansion_factor: Few = 8
    """d_sae / d_in."""
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
    lr: Positive | None = None
    """Adam's learning rate after warm-up; null: by the number of latents, see `choose_lr`."""
    warmup_steps: CountOrNone = 50
    """Steps of linear warm-up."""
    decay_share: Share = 0.2
    """Share of the steps, at the end, over which the learning rate falls linearly to 0."""
    eval_tokens: Count = 65_536
    """Held-out tokens for the final metrics; at most a tenth of the images is kept from training for them."""
    dead_after_tokens: Count = 250_000
    """A latent counts as dead in training when it has not fired for this many tokens."""
    log_every_n_steps: Count = 10
    """Steps between logged metrics."""
    checkpoint_every_n_steps: Count = 500
    """Steps between checkpoints to resume from."""

    def __post_init__(self) -> None:
        check(self, "sae")
        if KINDS.get(self.kind) is not type(self):
            raise InputError(
                f"Expected sae.kind to come with the settings of its kind, got {self.kind!r} alone: choose one by"
                f" sae={', '.join(KINDS)}, or begin a file of your own with one, `defaults: [topk, _self_]`."
            )

    @property
    def words(self) -> str:
        return f"{self.kind}, expansion {self.expansion_factor}"

    @property
    def n_steps(self) -> int:
        """Steps that show `n_tokens` tokens, or a little more."""
        return math.ceil(self.n_tokens / self.batch_tokens)

    def choose_lr(self, d_sae: int) -> float:
        """Return the learning rate for so many latents: `lr`, or 0.001 * sqrt(2^14 / d_sae).

        That the best rate falls with the root of the number of latents is from Gao et al. (2024), who have 2e-4 at
        2^14; the constant is ours, measured on two models (experiments/README.md).
        """
        return 1e-3 * math.sqrt(2**14 / d_sae) if self.lr is None else self.lr

    def check_width(self, d_sae: int) -> None:
        """Refuse a dictionary of another width than these settings need.

        Raises:
            InputError: more active latents than there are, or prefixes that add none.
        """

    def activation_settings(self, d_sae: int) -> dict[str, Any]:
        """Return the arguments with which the kind's activation is made, for so many latents."""
        return {}

    def loss_settings(self, d_in: int) -> dict[str, Any]:
        """Return the arguments with which the kind's loss is made, for tokens of this width."""
        return {}

    def cache_key_fields(self) -> dict[str, Any]:
        """Return what decides the weights, as plain JSON values: not how often to log or which latents to call dead."""
        ignored = {"dead_after_tokens", "log_every_n_steps", "checkpoint_every_n_steps"}
        fields = {name: value for name, value in asdict(self).items() if name not in ignored}
        return {name: value.name if isinstance(value, Enum) else value for name, value in fields.items()}


@dataclass
class ReLUConfig(TrainedConfig):
    """ReLU with an L1 penalty."""

    kind: str = "relu"
    l1: NotNegative = 0.1
    """Weight, where FVU has 1, of the mean sum of latent activations, in units of a token's mean norm (ours)."""

    def loss_settings(self, d_in: int) -> dict[str, Any]:
        return {"l1": self.l1}


@dataclass
class JumpReLUConfig(TrainedConfig):
    """A learnt threshold per latent with an L0 penalty (Rajamanoharan et al., 2024)."""

    kind: str = "jumprelu"
    l0_coef: NotNegative = 0.003
    """Weight, where FVU has 1, of the mean number of active latents per token (ours)."""
    bandwidth: Positive = 0.1
    """Width of the window around a threshold in which activations teach it (ours, normalised units)."""
    initial_threshold: Positive = 1.0
    """What every threshold starts at (ours). Pre-activations start with a standard deviation of about 1."""

    def activation_settings(self, d_sae: int) -> dict[str, Any]:
        return {"d_sae": d_sae, "threshold": self.initial_threshold}

    def loss_settings(self, d_in: int) -> dict[str, Any]:
        return {"l0_coef": self.l0_coef, "bandwidth": self.bandwidth}


@dataclass
class TopKConfig(TrainedConfig):
    """k active latents per token (Gao et al., 2024)."""

    kind: str = "topk"
    k: Count = 16
    """Active latents per token; with batchtopk and matryoshka_prefix their average."""
    aux_k: CountOrNone | None = None
    """Dead latents per token that AuxK trains on the residual; null is d_in / 2, 0 is none."""
    aux_coef: NotNegative = 1 / 32
    """Weight of AuxK's loss (Gao et al., 2024)."""

    def count_active(self, d_sae: int) -> int:
        """Return k, of so many latents."""
        return self.k

    def check_width(self, d_sae: int) -> None:
        check_k(self.count_active(d_sae), d_sae)

    def activation_settings(self, d_sae: int) -> dict[str, Any]:
        return {"k": self.count_active(d_sae)}

    def loss_settings(self, d_in: int) -> dict[str, Any]:
        return {"k": self.k, **self.aux_settings(d_in)}

    def aux_settings(self, d_in: int) -> dict[str, Any]:
        """Return what AuxK adds to the arguments of the loss."""
        return {"aux_k": d_in // 2 if self.aux_k is None else self.aux_k, "aux_coef": self.aux_coef}

    @property
    def unread(self) -> dict[str, str]:
        """The settings that are not read, and in words what would read them."""
        return {} if self.aux_k != 0 else {"aux_coef": "by AuxK alone: drop it, or drop sae.aux_k=0"}

    def cache_key_fields(self) -> dict[str, Any]:
        return super().cache_key_fields() | {"dead_after_tokens": self.dead_after_tokens}  # AuxK trains those


@dataclass
class BatchTopKConfig(TopKConfig):
    """k per token on average over a batch, one threshold for all afterwards (Bussmann et al., 2024)."""

    kind: str = "batchtopk"


@dataclass
class MatryoshkaKConfig(TopKConfig):
    """TopK whose first few entries reconstruct too (MSAE, Zaigrajew et al., 2025)."""

    kind: str = "matryoshka_k"
    k: Count | None = 16  # pyright: ignore[reportIncompatibleVariableOverride]
    """Active latents per token; null: all of them that are above 0, as MSAE has it."""
    k_levels: Annotated[list[Count], Items(ascending=True)] | None = None
    """Active latents of the nested codes, ascending up to k; null is 1, 2, 4, ... up to k."""
    level_weights: LevelWeights = LevelWeights.uniform
    """How much each nested code counts. MSAE calls uniform UW and decreasing, the smallest k counting most, RW."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k is not None:
            self._check_levels(self.k)

    def _check_levels(self, k: int) -> None:
        if (last := self.choose_k_levels(k)[-1]) != k:
            which = "" if self.k is not None else " (the number of latents, for sae.k is null)"
            raise InputError(
                f"Expected sae.k to be the largest of sae.k_levels, {last}, got {k}{which}: change either, or leave out"
                " sae.k_levels."
            )

    def count_active(self, d_sae: int) -> int:
        return d_sae if self.k is None else self.k

    def choose_k_levels(self, k: int) -> list[int]:
        """Return `k_levels` up to this k, with null resolved."""
        if self.k_levels is not None:
            return list(self.k_levels)
        return [2**i for i in range((k - 1).bit_length())] + [k]

    def compute_level_weights(self, n: int) -> list[int]:
        """Return how much each of n nested codes counts; the scale does not matter."""
        return [1] * n if self.level_weights is LevelWeights.uniform else list(range(n, 0, -1))

    def check_width(self, d_sae: int) -> None:
        super().check_width(d_sae)
        self._check_levels(self.count_active(d_sae))

    def loss_settings(self, d_in: int) -> dict[str, Any]:
        k_levels = self.choose_k_levels(self.count_active(d_in * self.expansion_factor))
        weights = self.compute_level_weights(len(k_levels))
        return {"k_levels": k_levels, "level_weights": weights, **self.aux_settings(d_in)}

    def cache_key_fields(self) -> dict[str, Any]:
        k_levels = self.k_levels if self.k is None else self.choose_k_levels(self.k)
        return super().cache_key_fields() | {"k_levels": k_levels}


@dataclass
class MatryoshkaPrefixConfig(BatchTopKConfig):
    """BatchTopK whose first latents reconstruct too (Bussmann et al., 2025)."""

    kind: str = "matryoshka_prefix"
    prefixes: Annotated[list[Annotated[float, Bounds(above=0, most=1)]], Items(ascending=True)] = field(
        default_factory=lambda: [0.0625, 0.125, 0.25, 0.5, 1.0]
    )
    """Shares of the dictionary whose first latents reconstruct alone, ascending up to 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prefixes[-1] != 1:
            raise InputError(f"Expected sae.prefixes to ascend to 1, such as [0.25,0.5,1], got {self.prefixes}.")

    def compute_prefix_sizes(self, d_sae: int) -> list[int]:
        """Return the latents in each prefix of a dictionary, ascending up to d_sae.

        Raises:
            InputError: if one would be empty or like the one before.
        """
        sizes = [round(share * d_sae) for share in self.prefixes]
        if any(low >= high for low, high in pairwise([0, *sizes])):
            raise InputError(
                f"Expected sae.prefixes to add latents each, got {sizes} of {d_sae}: use fewer, or a larger"
                " sae.expansion_factor."
            )
        return sizes

    def check_width(self, d_sae: int) -> None:
        super().check_width(d_sae)
        self.compute_prefix_sizes(d_sae)

    def loss_settings(self, d_in: int) -> dict[str, Any]:
        sizes = self.compute_prefix_sizes(d_in * self.expansion_factor)
        return super().loss_settings(d_in) | {"prefix_sizes": sizes}


KINDS: dict[str, type[TrainedConfig]] = {
    config.kind: config
    for config in (TopKConfig, ReLUConfig, BatchTopKConfig, JumpReLUConfig, MatryoshkaKConfig, MatryoshkaPrefixConfig)
}
"""The settings of each kind that is trained, by its name."""
