"""Running the training: Lightning's trainer, checkpoints to resume from, metrics on held-out tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import lightning as L
import numpy as np
import torch
from jaxtyping import Float, Int
from lightning.pytorch.callbacks import Callback, ProgressBar
from torch import Tensor

from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.lightning import LastCheckpoint, place_trainer, quiet_lightning
from infoscope.sae.config import TokenChoice, TrainedConfig
from infoscope.sae.metrics import compute_sae_metrics
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.module import SAEModule, make_sae
from infoscope.sae.origin import Origin
from infoscope.sae.stream import TokenStream
from infoscope.sae.token_sets import TokenSet, make_token_set
from infoscope.vision.tokens.extract import TokenCache
from infoscope.vision.tokens.source import LiveTokens

Value = TypeVar("Value")
_ROUNDING = 1e-6
"""Share of a token's size below which float32 tells tokens apart by rounding alone."""


def train_sae(
    tokens: TokenCache | LiveTokens,
    config: TrainedConfig,
    seed: int,
    progress_folder: Path | str,
    *,
    held_out: TokenCache | LiveTokens | None = None,
    buffer_device: torch.device | str = "cpu",
    accelerator: str = "cpu",
    precision: Any = "32-true",
    callbacks: Sequence[Callback] = (),
    logger: Any = False,
) -> tuple[SparseAutoencoder, dict[str, float]]:
    """Return a trained SAE (on the CPU) and its metrics on held-out tokens (see `compute_sae_metrics`).

    `last.ckpt` in `progress_folder` is written now and then, and at Ctrl-C after the step in hand; where it lies
    already, training goes on from it, and ends bit for bit as if it had never stopped (same machine and threads, as
    many processes). The caller deletes the folder when the result is safe.

    Collective: all processes of a job call it, and each returns the same: each has its part of every batch, and but for
    rounding the result is that of one process. They may go on from a checkpoint of fewer or more processes.

    Args:
        held_out: tokens for the metrics; by default some of the images are kept from training for them.
        buffer_device: where tokens that are not stored are held until they are used (see `LiveTokenSet`).
        precision: Lightning's: "32-true", or "bf16-mixed" for products in bfloat16; weights, loss and Adam are float32.
        accelerator, callbacks, logger: Lightning's.

    Raises:
        InputError: if tokens or loss are not finite, the processes do not divide the batch, or `last.ckpt` is damaged
            or of another run.
        KeyboardInterrupt: at Ctrl-C, when the checkpoint is written.
    """
    folder = Path(progress_folder)
    folder.mkdir(parents=True, exist_ok=True)
    training, evaluation = split_tokens(tokens, config, held_out, buffer_device)
    mean, scale = _by_main(lambda: make_normalisation(tokens, training, config.tokens, config.batch_tokens))
    module = SAEModule(make_sae(config, mean, scale, seed), config)
    run = {"config": config.cache_key_fields(), "seed": seed, "n_tokens": training.n_tokens}
    run |= {} if precision == "32-true" else {"precision": precision}  # older checkpoints name none
    checkpoint = LastCheckpoint(folder, run, config.checkpoint_every_n_steps)
    with quiet_lightning():
        trainer = L.Trainer(
            **place_trainer(),
            max_steps=config.n_steps,
            max_epochs=-1,
            accelerator=accelerator,
            precision=precision,
            callbacks=[*callbacks, checkpoint],
            logger=logger,
            log_every_n_steps=config.log_every_n_steps,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        )
        checkpoint.fit(trainer, module, datamodule=TokenData(training, config, seed))
    sae = module.sae.cpu().eval()
    sae.origin = Origin.of_tokens(tokens, config.tokens)
    return sae, _by_main(lambda: compute_sae_metrics(sae, evaluation.iterate(config.batch_tokens, config.eval_tokens)))


def _by_main(compute: Callable[[], Value]) -> Value:
    """Return what the main process computes, in every process."""
    return cast(Value, processes.broadcast(compute() if processes.current().rank == 0 else None))


def split_tokens(
    tokens: TokenCache | LiveTokens,
    config: TrainedConfig,
    held_out: TokenCache | LiveTokens | None = None,
    buffer_device: torch.device | str = "cpu",
) -> tuple[TokenSet, TokenSet]:
    """Return the tokens to train on and those to measure on, which never share an image.

    Raises:
        InputError: if there are fewer than two images and no held-out ones, or the chosen tokens do not exist.
    """
    everything = make_token_set(tokens, config.tokens, buffer_device=buffer_device)
    if held_out is not None:
        return everything, make_token_set(held_out, config.tokens)
    n = everything.n_images
    if n < 2:
        raise InputError(f"Expected tokens of at least 2 images, one of them held out, got {n}.")
    held = choose_held_out(everything, config.eval_tokens)
    parts = np.setdiff1d(np.arange(n), held), held
    training, evaluation = (make_token_set(tokens, config.tokens, part, buffer_device) for part in parts)
    return training, evaluation


def choose_held_out(tokens: TokenSet, eval_tokens: int) -> Int[np.ndarray, " n_held_out"]:
    """Return the images on which an SAE is measured: at most a tenth, evenly spread, as sets are often sorted by class.

    Args:
        eval_tokens: how many tokens they should hold.
    """
    n = tokens.n_images
    n_held_out = max(1, min(n // 10, math.ceil(eval_tokens / tokens.tokens_per_image)))
    return np.arange(n_held_out) * n // n_held_out


def make_normalisation(
    tokens: TokenCache | LiveTokens, training: TokenSet, choice: TokenChoice, batch_tokens: int
) -> tuple[Float[Tensor, " d_in"], float]:
    """Return mu and c of the chosen tokens: the source's own for patches, else measured on the training tokens.

    Raises:
        InputError: if the tokens are not finite, or all the same.
    """
    if choice is TokenChoice.patch:
        mean, scale = torch.as_tensor(np.asarray(tokens.mean), dtype=torch.float32), float(tokens.scale)
        _check_differ(mean, training.d_in**0.5 / scale if scale else math.inf)
        return mean, scale
    measured = training.thin_for_statistics()
    batches = partial(measured.iterate, batch_tokens)
    mean = sum(x.double().sum(0) for x in batches()) / measured.n_tokens
    assert isinstance(mean, Tensor)
    mean_norm = sum((x - mean).norm(dim=1).sum().item() for x in batches()) / measured.n_tokens
    _check_differ(mean, mean_norm)
    return mean.float(), training.d_in**0.5 / mean_norm


def _check_differ(mean: Float[Tensor, " d_in"], mean_norm: float) -> None:
    """Refuse tokens whose mean distance from their mean is none, or rounding alone."""
    if not _ROUNDING * mean.norm().item() < mean_norm < math.inf:
        raise InputError(
            f"Expected finite tokens that differ, got a mean distance of {mean_norm:.3g} from their mean: give images"
            " or texts that are not all alike."
        )


class TokenData(L.LightningDataModule):
    """Feeds the trainer from the token stream, at the step that the trainer has reached."""

    def __init__(self, source: TokenSet, config: TrainedConfig, seed: int) -> None:
        super().__init__()
        self.source, self.config, self.seed = source, config, seed

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        return batch.float()  # where it is used, for that is faster there

    def train_dataloader(self) -> TokenStream:
        # The stream itself, not a DataLoader: batches come ready-made, and nothing is left to collate.
        assert self.trainer is not None
        return TokenStream(
            self.source,
            self.config.batch_tokens,
            self.config.n_steps,
            self.seed,
            first_step=self.trainer.global_step,
            pool_images=self.config.pool_images,
            tokens_per_image=self.config.tokens_per_image,
            pin_memory=self.trainer.strategy.root_device.type == "cuda",
        )
