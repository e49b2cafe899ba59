"""What an SAE is and how it is trained. Plain Python, so that composing a configuration does not import torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from infoscope.errors import InputError


class Kind(Enum):
    """Which activation an SAE has; the names are what the command line and a checkpoint write."""

    topk = "topk"
    relu = "relu"


class TokenChoice(Enum):
    """Which tokens an SAE is trained on: the patches, every token, or CLS (the first prefix token) alone."""

    patch = "patch"
    all = "all"
    cls = "cls"


@dataclass
class SAEConfig:
    """What determines an SAE, beside its tokens and its seed."""

    kind: Kind = Kind.topk
    """topk: k active latents per token (Gao et al., 2024). relu: ReLU with an L1 penalty."""
    expansion_factor: int = 8
    """d_sae / d_in."""
    k: int = 16
    """Active latents per token (topk)."""
    l1: float = 0.1
    """Weight of the mean sum of latent activations, in units of a token's mean norm, beside FVU (relu; ours)."""
    aux_k: int | None = None
    """Dead latents per token that AuxK trains on the residual (topk); null is d_in / 2, 0 is none."""
    aux_coef: float = 1 / 32
    """Weight of AuxK's loss (Gao et al., 2024)."""
    dead_after_tokens: int = 250_000
    """A latent counts as dead in training when it has not fired for this many tokens."""
    tokens: TokenChoice = TokenChoice.patch
    """Which tokens it is trained on."""
    n_tokens: int = 2_000_000
    """Tokens to train on, rounded up to whole batches; may exceed the data set (several epochs)."""
    batch_tokens: int = 4096
    """Tokens per step."""
    pool_images: int = 4096
    """Tokens are shuffled among this many images at a time (the images are shuffled first): bounds random reads."""
    lr: float = 1e-3
    """Adam's learning rate after warm-up."""
    warmup_steps: int = 50
    """Steps of linear warm-up."""
    decay_share: float = 0.2
    """Share of the steps, at the end, over which the learning rate falls linearly to 0."""
    eval_tokens: int = 65_536
    """Held-out tokens for the final figures; at most a tenth of the images is kept from training for them."""
    log_every_n_steps: int = 10
    """Steps between logged figures."""
    checkpoint_every_n_steps: int = 500
    """Steps between checkpoints to resume from."""

    def __post_init__(self) -> None:
        at_least_one = ("expansion_factor", "k", "dead_after_tokens", "n_tokens", "batch_tokens", "pool_images")
        at_least_one += ("eval_tokens", "log_every_n_steps", "checkpoint_every_n_steps")
        for name in at_least_one:
            if getattr(self, name) < 1:
                raise InputError(f"Expected sae.{name} to be at least 1, got {getattr(self, name)}.")
        for name in ("l1", "aux_coef", "warmup_steps", "aux_k"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"Expected sae.{name} to be 0 or more, got {value}.")
        if not 0 < self.lr < math.inf:
            raise InputError(f"Expected sae.lr above 0, got {self.lr}.")
        if not 0 <= self.decay_share <= 1:
            raise InputError(f"Expected sae.decay_share in 0..1, got {self.decay_share}.")

    @property
    def n_steps(self) -> int:
        """Steps that show `n_tokens` tokens, or a little more."""
        return math.ceil(self.n_tokens / self.batch_tokens)

    def determining(self) -> dict[str, Any]:
        """Return what decides the weights, as plain JSON values: not how often to log, not what another kind reads."""
        ignored = {"log_every_n_steps", "checkpoint_every_n_steps"}
        ignored |= {"l1"} if self.kind is Kind.topk else {"k", "aux_k", "aux_coef", "dead_after_tokens"}
        fields = {name: value for name, value in asdict(self).items() if name not in ignored}
        return {name: value.name if isinstance(value, Enum) else value for name, value in fields.items()}
