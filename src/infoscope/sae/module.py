"""One training step of an SAE as a Lightning module."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from infoscope.runtime import collective, processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.profile import Kind, spent_on
from infoscope.sae.activations import BatchTopK, make_activation
from infoscope.sae.choose_step import choose_step
from infoscope.sae.config import TrainedConfig
from infoscope.sae.fused_step import FusedStep
from infoscope.sae.losses import OBJECTIVES, LossOutput
from infoscope.sae.model import SparseAutoencoder


def make_sae(config: TrainedConfig, mean: Float[Tensor, " d_in"], scale: float, seed: int) -> SparseAutoencoder:
    """Return an untrained SAE for tokens with this mean and scale.

    Raises:
        InputError: if k exceeds the number of latents.
    """
    d_in = len(mean)
    d_sae = d_in * config.expansion_factor
    activation = make_activation(config.kind, config.activation_settings(d_sae))
    return SparseAutoencoder(d_in, d_sae, activation, mean, scale, seed)


class SAEModule(L.LightningModule):
    """Trains an SAE on raw tokens [n, d_in] with Adam; the optimiser is driven by hand to keep the decoder's rows unit.

    Each process of the job gets its part of every batch; all counts, checks and logs are of the whole batch.

    Logs, every `log_every_n_steps` (which the trainer must be given too): loss, fvu, l0, cosine (of the batch,
    normalised units), dead_share (share of latents that have not fired for `dead_after_tokens` tokens) and lr.
    """

    tokens_since_fired: Int64[Tensor, " d_sae"]

    def __init__(self, sae: SparseAutoencoder, config: TrainedConfig) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.sae, self.config, self.lr = sae, config, config.choose_lr(sae.d_sae)
        self.objective = OBJECTIVES[config.kind](**config.loss_settings(sae.d_in))
        self.register_buffer("tokens_since_fired", torch.zeros(sae.d_sae, dtype=torch.int64))
        self.at_step_boundary = True
        """Whether weights, optimiser and counters belong to the same step: only then may a checkpoint be written."""
        self._step: FusedStep | None = None
        """The step in kernels, where it is used; chosen at the first batch."""
        self._is_chosen = False
        self._tokens_until_dead = -1
        """So many tokens more, and surely no latent is dead; below 0: some may be."""
        self._unchecked: Tensor | None = None
        """The sum of the losses that were not looked at yet, as looking waits for the device; finite if they are."""

    def on_train_start(self) -> None:
        # Weights and counters may come from a checkpoint.
        self._is_chosen, self._tokens_until_dead, self._unchecked = False, -1, None

    def training_step(self, batch: Float[Tensor, "n d_in"], batch_idx: int) -> None:
        with spent_on(Kind.training):
            self._train(batch)

    def _train(self, batch: Float[Tensor, "n d_in"]) -> None:
        if not self._is_chosen:
            self._step, self._is_chosen = choose_step(self.sae, self.objective), True
        x_n = self.sae.normalise(batch)
        dead = self._dead() if self._tokens_until_dead < 0 else None
        out = self.objective(self.sae, x_n, dead) if self._step is None else self._step.compute(x_n, dead)
        batch_metrics = torch.stack([out.loss.detach().to(out.n_fired.dtype), out.fvu.to(out.n_fired.dtype)])
        n_fired, (loss, fvu) = collective.mean(torch.cat([out.n_fired, batch_metrics])).split([self.sae.d_sae, 2])
        self._unchecked = loss if self._unchecked is None else self._unchecked + loss
        is_logged = (self.global_step + 1) % self.config.log_every_n_steps == 0
        if is_logged or self.device.type == "cpu":
            self._check_finite()
        x_hat_n = None
        if is_logged:
            x_hat_n = out.x_hat_n if self._step is None else self._step.reconstruct()
        # Lightning's autocast covers the whole step; only the forward is meant to have low precision.
        with torch.autocast(self.device.type, enabled=False):
            if self._step is None:
                self.manual_backward(out.loss)
            self._update(out, n_fired, len(batch) * processes.current().size)
        if x_hat_n is not None:
            cosine = torch.cosine_similarity(x_n, x_hat_n, dim=-1).mean()
            self._log_metrics(loss=loss, fvu=fvu, l0=n_fired.sum() / len(batch), cosine=collective.mean(cosine))
            if self._tokens_until_dead < 0:
                self._tokens_until_dead = self.config.dead_after_tokens - int(self.tokens_since_fired.amax())

    def _check_finite(self) -> None:
        """Raise InputError if a loss was not finite."""
        if self._unchecked is not None and not torch.isfinite(self._unchecked):
            when = "" if self.device.type == "cpu" else " or shortly before"
            raise InputError(
                f"The SAE's loss became {self._unchecked.item()} at step {self.global_step}{when}: expected finite"
                " tokens and a stable loss; check the tokens, or lower sae.lr."
            )
        self._unchecked = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_finite()

    def on_train_end(self) -> None:
        self._check_finite()

    def _update(self, out: LossOutput, n_fired: Float[Tensor, " d_sae"], n_tokens: int) -> None:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        for group in optimizer.param_groups:
            group["lr"] = self.lr * compute_lr_factor(self.global_step, self.config)
        self.at_step_boundary = False
        if self._step is None:
            self.sae.project_decoder_grad()
            optimizer.step()
            optimizer.zero_grad()
            self.sae.normalise_decoder()
        else:
            self._step.update(optimizer)
        self._tokens_until_dead -= n_tokens
        self.tokens_since_fired.add_(n_tokens).masked_fill_(n_fired > 0, 0)
        if isinstance(self.sae.activation, BatchTopK) and out.smallest_act is not None:
            self.sae.activation.track(collective.least(out.smallest_act))
        self.at_step_boundary = True

    def _dead(self) -> Bool[Tensor, " d_sae"]:
        return self.tokens_since_fired > self.config.dead_after_tokens

    def _log_metrics(self, **metrics: Tensor) -> None:
        metrics["dead_share"] = self._dead().float().mean()
        self.log_dict(metrics, prog_bar=True)
        self.log("lr", self.optimizers().param_groups[0]["lr"])  # pyright: ignore[reportAttributeAccessIssue]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        fused = self.device.type in ("cpu", "cuda")
        # A small eps: the loss is a ratio, so the gradients of rare latents are far below Adam's default of 1e-8.
        return torch.optim.Adam(self.sae.parameters(), lr=self.lr, eps=6.25e-10, fused=fused)


def compute_lr_factor(step: int, config: TrainedConfig) -> float:
    """Return the share of the learning rate at a step counted from 0: linear warm-up, flat, linear decay."""
    warmup = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1.0
    n_decay = config.decay_share * config.n_steps
    decay = (config.n_steps - step) / n_decay if n_decay > 0 else 1.0
    return min(warmup, decay, 1.0)
