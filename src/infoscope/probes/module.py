"""The Lightning module that trains every (variant x learning rate) head of all its tasks in one loop."""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.trainer.states import TrainerStatus
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from infoscope.probes.config import DenseSchedule
from infoscope.probes.heads import LinearHeads, MapBatch, VectorBatch
from infoscope.probes.slices import SlicedBatch
from infoscope.runtime.lightning import quiet_lightning
from infoscope.runtime.parts import Checkpoint
from infoscope.runtime.profile import Kind, spent_on

Batches = Callable[[int], Iterator[VectorBatch | MapBatch | SlicedBatch]]
"""Given a step, yields the training batches from that step on; each is a function of (seed, step)."""


class ProbeModule(L.LightningModule):
    """Trains the heads of one or more tasks, every rate rising linearly in the warm-up and decaying to 0.

    The losses of all heads are added up: no head's gradient depends on another's. A head that diverges (rate too high)
    becomes NaN alone and loses the choice of the rate.

    Args:
        heads: by task.
        n_steps: length of the decay, warm-up included.
        make_optimizer: of groups of parameters, each with its rate.
        lr_scale: factor on every rate (classification: images per batch / 256).
        n_warmup_steps: steps in which every rate is multiplied by step / n_warmup_steps besides, 1-based.
        schedule: along what the rates decay.
    """

    def __init__(
        self,
        heads: Mapping[str, LinearHeads],
        n_steps: int,
        make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
        lr_scale: float = 1.0,
        n_warmup_steps: int = 0,
        schedule: DenseSchedule = DenseSchedule.cosine,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleDict(dict(heads))
        self.n_steps, self.make_optimizer, self.lr_scale = n_steps, make_optimizer, lr_scale
        self.n_warmup_steps, self.schedule = n_warmup_steps, schedule

    def training_step(self, batch: VectorBatch | MapBatch | SlicedBatch, batch_idx: int) -> Tensor:
        heads: list[Any] = list(self.heads.values())
        if isinstance(batch, SlicedBatch):
            return torch.stack([batch.losses(head).sum() for head in heads]).sum()
        return torch.stack([head.losses(batch).sum() for head in heads]).sum()

    def compute_rate_factor(self, step: int) -> float:
        """Return what every learning rate is multiplied by at a step, counted from 0."""
        share = min(step / self.n_steps, 1.0)
        factor = 0.5 * (1 + math.cos(math.pi * share)) if self.schedule is DenseSchedule.cosine else 1 - share
        return factor * min(1.0, (step + 1) / self.n_warmup_steps) if self.n_warmup_steps else factor

    def configure_optimizers(self) -> dict[str, Any]:
        groups = []
        for head in self.heads.values():
            assert isinstance(head, LinearHeads)
            groups += [{**group, "lr": group["lr"] * self.lr_scale} for group in head.parameter_groups()]
        optimizer = self.make_optimizer(groups)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.compute_rate_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit_heads(
    module: ProbeModule, batches: Batches, device: torch.device, checkpoint: Checkpoint | None = None
) -> None:
    """Train a module on batches that lie on `device`, one pass over them, and leave it there.

    Args:
        checkpoint: where the state is kept now and then; where there is one, training goes on from it, and ends as if
            it had never stopped.

    Raises:
        KeyboardInterrupt: on Ctrl-C; Lightning itself would end the process and deafen it to Ctrl-C.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    on_interrupt = signal.getsignal(signal.SIGINT)
    keeper = _StateKeeper(checkpoint or Checkpoint(None), signal.getsignal(signal.SIGTERM))
    with quiet_lightning():
        trainer = L.Trainer(
            max_epochs=1,
            accelerator="gpu" if device.type == "cuda" else device.type,
            devices=1 if device.index is None else [device.index],
            plugins=[LightningEnvironment()],
            logger=False,
            callbacks=[keeper],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            with spent_on(Kind.training):
                trainer.fit(module, DataLoader(_Stream(batches, keeper.first_step), batch_size=None))
        except SystemExit as error:
            is_interrupted = trainer.state.status == TrainerStatus.INTERRUPTED
            if not is_interrupted or not isinstance(error.__context__, KeyboardInterrupt):
                raise
            raise KeyboardInterrupt from None
        finally:
            if in_main_thread:
                signal.signal(signal.SIGINT, on_interrupt)
    module.to(device)


class _StateKeeper(L.Callback):
    """Goes on from a checkpoint's state, and keeps the state of heads, optimiser and schedule when it is time."""

    def __init__(self, checkpoint: Checkpoint, on_terminate: Any) -> None:
        self.checkpoint, self.state = checkpoint, checkpoint.load()
        self.on_terminate = on_terminate
        self.first_step: int = self.state["step"] if self.state else 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # Lightning would end the process; a job that Slurm preempts must live until it is killed and queued again.
            signal.signal(signal.SIGTERM, self.on_terminate)
        if self.state:
            pl_module.load_state_dict(self.state["module"])
            trainer.optimizers[0].load_state_dict(self.state["optimizer"])
            trainer.lr_scheduler_configs[0].scheduler.load_state_dict(self.state["schedule"])
            self.state = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        # before a step, since the schedule moves after on_train_batch_end
        if self.checkpoint.is_due() and trainer.global_step > 0:
            self.checkpoint.save(
                {
                    "step": self.first_step + trainer.global_step,
                    "module": pl_module.state_dict(),
                    "optimizer": trainer.optimizers[0].state_dict(),
                    "schedule": trainer.lr_scheduler_configs[0].scheduler.state_dict(),
                }
            )


class _Stream(IterableDataset):
    """Ready-made batches, as Lightning wants them: it takes a list for several loaders."""

    def __init__(self, batches: Batches, first_step: int) -> None:
        self.batches, self.first_step = batches, first_step

    def __iter__(self) -> Iterator:
        return self.batches(self.first_step)
