"""What tests of SAEs share: a step on random tokens, and trainings that take a second and stop where they are told."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, fields
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from infoscope.sae.activations import TopK
from infoscope.sae.config import KINDS, TopKConfig, TrainedConfig
from infoscope.sae.model import SparseAutoencoder

N, D_IN, D_SAE, K, AUX_K = 50, 12, 40, 4, 5
PARAMETERS = ("W_enc", "b_enc", "W_dec", "b_dec")
CONFIG = TopKConfig(
    expansion_factor=4,
    k=3,
    n_tokens=20 * 64,
    batch_tokens=64,
    warmup_steps=4,
    lr=3e-3,
    dead_after_tokens=128,
    eval_tokens=100,
    log_every_n_steps=5,
    checkpoint_every_n_steps=6,
)


def make_case(dtype: torch.dtype = torch.float64) -> tuple[SparseAutoencoder, Tensor, Tensor]:
    """Return an SAE, normalised tokens [N, D_IN] and which latents count as dead [D_SAE]."""
    generator = torch.Generator().manual_seed(0)
    sae = SparseAutoencoder(D_IN, D_SAE, TopK(K), seed=2).to(dtype)
    with torch.no_grad():
        sae.W_enc.add_(0.1 * torch.randn(D_IN, D_SAE, generator=generator, dtype=dtype))
        sae.b_enc.add_(0.2 * torch.randn(D_SAE, generator=generator, dtype=dtype))
        sae.b_dec.add_(0.2 * torch.randn(D_IN, generator=generator, dtype=dtype))
        dead = torch.arange(D_SAE) % 3 == 0
        sae.b_enc[dead] -= 1.0
    return sae, torch.randn(N, D_IN, generator=generator, dtype=dtype), dead


def compute_grads(sae: SparseAutoencoder, loss: Tensor) -> list[Tensor]:
    """Return the gradients of `PARAMETERS`."""
    return list(torch.autograd.grad(loss, [getattr(sae, name) for name in PARAMETERS]))


class RecordShapes(TorchDispatchMode):
    """Collects the shape of every tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.shapes.add(tuple(tensor.shape))
        return out


def as_kind(config: TrainedConfig, kind: str, **changes: Any) -> Any:
    """Return a configuration of another kind, which shares with this one what both read."""
    shared = {one.name: getattr(config, one.name) for one in fields(KINDS[kind]) if hasattr(config, one.name)}
    return KINDS[kind](**{**shared, **changes, "kind": kind})


@dataclass
class Tokens:
    """What `train_sae` reads of tokens that are stored."""

    patches: np.ndarray
    prefix: np.ndarray
    mean: np.ndarray
    scale: float


class Stop(Callback):
    """Interrupts at a step, in one of the ways that happen; else only remembers how training ended."""

    def __init__(self, step: int | None = None, how: str = "signal") -> None:
        self.step, self.how = step, how
        self.end: dict = {}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if self.how == "raise_before" and trainer.global_step == self.step:
            raise KeyboardInterrupt
        if self.how == "bug" and trainer.global_step == self.step:
            raise ValueError("a bug")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if trainer.global_step == self.step and self.how == "signal":
            os.kill(os.getpid(), signal.SIGINT)
        if trainer.global_step == self.step and self.how == "raise_after":
            raise KeyboardInterrupt
        if trainer.global_step == self.step and self.how in ("SIGTERM", "SIGUSR2"):
            os.kill(os.getpid(), signal.Signals[self.how])

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        optimizer = trainer.optimizers[0].state_dict()["state"]
        moments = {f"{i}.{name}": value for i, state in optimizer.items() for name, value in state.items()}
        self.end = {name: tensor.clone() for name, tensor in (pl_module.state_dict() | moments).items()}


def assert_same(ours: dict, theirs: dict) -> None:
    """Assert that two state dicts hold the same tensors, to the last bit."""
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
