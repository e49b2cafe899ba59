"""Running the training: Lightning's trainer, checkpoints to resume from, figures on held-out tokens."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import Callback, ProgressBar
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor

from infoscope.errors import InputError
from infoscope.quiet import quiet_lightning
from infoscope.sae.config import SAEConfig, TokenChoice
from infoscope.sae.metrics import compute_sae_metrics
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.module import SAEModule, make_sae
from infoscope.sae.stream import TokenSet, TokenStream, make_token_set
from infoscope.vision.extract import TokenCache
from infoscope.vision.live_tokens import LiveTokens

CHECKPOINT_NAME = "last.ckpt"
_OURS = "infoscope"


def train_sae(
    tokens: TokenCache | LiveTokens,
    config: SAEConfig,
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
    """Return a trained SAE (on the CPU) and its figures on held-out tokens (see `compute_sae_metrics`).

    `last.ckpt` in `progress_folder` is written now and then, and at Ctrl-C after the step in hand; where it lies
    already, training goes on from it, and ends bit for bit as if it had never stopped (same machine and threads). The
    caller deletes the folder when the result is safe.

    Args:
        held_out: tokens for the figures; by default some of the images are kept from training for them.
        buffer_device: where tokens that are not stored are held until they are used (see `LiveTokenSet`).
        accelerator, precision, callbacks, logger: Lightning's.

    Raises:
        InputError: if tokens or loss are not finite, or `last.ckpt` is damaged or of another run.
        KeyboardInterrupt: at Ctrl-C, when the checkpoint is written.
    """
    folder = Path(progress_folder)
    folder.mkdir(parents=True, exist_ok=True)
    training, evaluation = split_tokens(tokens, config, held_out, buffer_device)
    module = SAEModule(make_sae(config, *make_normalisation(tokens, training, config), seed), config)
    checkpoints = ResumeCheckpoint(folder, config, seed, training.n_tokens)
    with quiet_lightning():
        trainer = L.Trainer(
            max_steps=config.n_steps,
            max_epochs=-1,
            accelerator=accelerator,
            devices=1,
            precision=precision,
            callbacks=[*callbacks, checkpoints],
            logger=logger,
            log_every_n_steps=config.log_every_n_steps,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
        )
        _fit(trainer, module, TokenData(training, config, seed), checkpoints)
    sae = module.sae.cpu().eval()
    return sae, compute_sae_metrics(sae, evaluation.iterate(config.batch_tokens, config.eval_tokens))


def split_tokens(
    tokens: TokenCache | LiveTokens,
    config: SAEConfig,
    held_out: TokenCache | LiveTokens | None = None,
    buffer_device: torch.device | str = "cpu",
) -> tuple[TokenSet, TokenSet]:
    """Return the tokens to train on and those to measure on, which never share an image.

    The images held out are evenly spread: sets are often sorted by class.

    Raises:
        InputError: if there are fewer than two images and no held-out ones, or the chosen tokens do not exist.
    """
    everything = make_token_set(tokens, config.tokens, buffer_device=buffer_device)
    if held_out is not None:
        return everything, make_token_set(held_out, config.tokens)
    n = everything.n_images
    if n < 2:
        raise InputError(f"Expected tokens of at least 2 images, one of them held out, got {n}.")
    n_held_out = max(1, min(n // 10, math.ceil(config.eval_tokens / everything.tokens_per_image)))
    held = np.arange(n_held_out) * n // n_held_out
    parts = np.setdiff1d(np.arange(n), held), held
    training, evaluation = (make_token_set(tokens, config.tokens, part, buffer_device) for part in parts)
    return training, evaluation


def make_normalisation(
    tokens: TokenCache | LiveTokens, training: TokenSet, config: SAEConfig
) -> tuple[Float[Tensor, " d_in"], float]:
    """Return mu and c of the chosen tokens: the source's own for patches, else measured on the training tokens.

    Raises:
        InputError: if the tokens are not finite, or all the same.
    """
    if config.tokens is TokenChoice.patch:
        return torch.as_tensor(np.asarray(tokens.mean), dtype=torch.float32), float(tokens.scale)
    measured = training.thin_for_statistics()
    batches = partial(measured.iterate, config.batch_tokens)
    mean = sum(x.double().sum(0) for x in batches()) / measured.n_tokens
    assert isinstance(mean, Tensor)
    mean_norm = sum((x - mean).norm(dim=1).sum().item() for x in batches()) / measured.n_tokens
    if not 0 < mean_norm < math.inf:
        raise InputError(f"Expected finite tokens that differ, got a mean distance of {mean_norm} from their mean.")
    return mean.float(), training.d_in**0.5 / mean_norm


class TokenData(L.LightningDataModule):
    """Feeds the trainer from the token stream, at the step that the trainer has reached."""

    def __init__(self, source: TokenSet, config: SAEConfig, seed: int) -> None:
        super().__init__()
        self.source, self.config, self.seed = source, config, seed

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


class ResumeCheckpoint(Callback):
    """Keeps `last.ckpt`: every `checkpoint_every_n_steps` steps, and when Ctrl-C asks for the end of training.

    The first Ctrl-C lets the step in hand end, so that weights, optimiser and counters belong together; a second one
    ends at once, and the checkpoint of an earlier step remains.
    """

    def __init__(self, folder: Path, config: SAEConfig, seed: int, n_tokens: int) -> None:
        self.file = folder / CHECKPOINT_NAME
        self.every_n_steps = config.checkpoint_every_n_steps
        self.run = {"config": config.determining(), "seed": seed, "n_tokens": n_tokens}
        self.stop_asked = False

    def find(self) -> Path | None:
        """Return the checkpoint to go on from, or None.

        Raises:
            InputError: if it is damaged, or belongs to another run.
        """
        if not self.file.exists():
            return None
        try:
            run = torch.load(self.file, map_location="cpu", weights_only=True)[_OURS]
        except Exception:  # torch.load raises whatever its parts raise on a damaged file
            raise InputError(
                f"{self.file} is damaged or no checkpoint of infoscope: delete it to start anew."
            ) from None
        for name, ours in self.run.items():
            if run.get(name) != ours:
                raise InputError(f"{self.file} belongs to a run with another {name}: delete it to start anew.")
        return self.file

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[_OURS] = self.run

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._ask_to_stop)  # given back after the fit

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if self.stop_asked or trainer.global_step % self.every_n_steps == 0:
            self._save(trainer)
        if self.stop_asked:
            trainer.should_stop = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        assert isinstance(pl_module, SAEModule)
        if isinstance(exception, KeyboardInterrupt) and pl_module.at_step_boundary and trainer.global_step > 0:
            self._save(trainer)

    def _ask_to_stop(self, signum: int, frame: Any) -> None:
        if self.stop_asked:
            raise KeyboardInterrupt
        self.stop_asked = True

    def _save(self, trainer: L.Trainer) -> None:
        unfinished = self.file.with_suffix(".part")
        trainer.save_checkpoint(unfinished)
        os.replace(unfinished, self.file)


def _fit(trainer: L.Trainer, module: SAEModule, data: TokenData, checkpoints: ResumeCheckpoint) -> None:
    """Run the trainer; Ctrl-C comes out as KeyboardInterrupt, whichever way Lightning took it."""
    # Lightning has this option from 2.6 on.
    options: dict[str, Any] = {"weights_only": True} if "weights_only" in signature(trainer.fit).parameters else {}
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoints.find(), **options)
    except SystemExit:
        if trainer.state.status != TrainerStatus.INTERRUPTED:
            raise
        raise KeyboardInterrupt from None  # Lightning turns KeyboardInterrupt into exit(1), and leaves SIGINT ignored
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
    if checkpoints.stop_asked:
        raise KeyboardInterrupt
