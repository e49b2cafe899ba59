"""Contrastive training of a small CLIP: images and captions of one scene meet, others part (Radford et al., 2021)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from infoscope.vision.tokenizer import WordTokenizer


@dataclass
class ContrastiveConfig:
    """How `stage=train_clip` trains a CLIP on captioned scenes."""

    n_images: int = 30_000
    """Training pictures, rendered from a stream of their own (never the ones the SAE or the probes see)."""
    n_test_images: int = 1_000
    n_steps: int = 2_400
    batch_size: int = 128
    lr: float = 1.0e-3
    weight_decay: float = 0.1
    warmup_steps: int = 100
    patch_dropout: float = 0.5
    """Share of patch tokens left out while training, until `full_share` of the steps is left (Li et al., 2023)."""
    full_share: float = 0.25
    seed: int = 0
    precision: str = "32-true"
    """Lightning's precision of the training run."""
    width: int = 128
    layers: int = 4
    text_layers: int = 2
    embed_dim: int = 128
    patch_px: int = 8
    grid: int = 12
    context_length: int = 32

    def __post_init__(self) -> None:
        for name in ("n_images", "n_test_images", "n_steps", "batch_size", "width", "layers", "text_layers", "grid"):
            if getattr(self, name) < 1:
                raise ValueError(f"Expected clip.{name} to be at least 1, got {getattr(self, name)}.")
        if self.batch_size > self.n_images:
            raise ValueError(
                f"Expected clip.batch_size to be at most clip.n_images ({self.n_images}), got {self.batch_size}."
            )

    @property
    def image_px(self) -> int:
        """Side of the model's input in pixels."""
        return self.grid * self.patch_px


def make_clip_config(config: ContrastiveConfig, vocab_size: int) -> dict[str, Any]:
    """Return the open_clip model configuration of a small CLIP with a CLS-pooled vision tower."""
    head_width = 32
    return {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "image_size": config.image_px,
            "layers": config.layers,
            "width": config.width,
            "head_width": head_width,
            "patch_size": config.patch_px,
            "patch_dropout": config.patch_dropout,
        },
        "text_cfg": {
            "context_length": config.context_length,
            "vocab_size": vocab_size,
            "width": config.width,
            "heads": config.width // head_width,
            "layers": config.text_layers,
        },
    }


class CaptionedBatches(IterableDataset):
    """Batches of (uint8 images [b, 3, s, s], token ids [b, context]); batch t is a function of (seed, t).

    Half of the batches are random crops of side `image_px` (so positions vary as under shifted context cropping), half
    are whole images, squashed to that side; every batch is mirrored at random.

    Args:
        images: uint8 [n, S, S, 3], S >= image_px.
        make_caption: gives the caption of image i, words left out by the generator.
        first_step: step to begin at, for resumed training.
    """

    def __init__(
        self,
        images: np.ndarray,
        make_caption: Callable[[int, np.random.Generator], str],
        tokenizer: WordTokenizer,
        config: ContrastiveConfig,
        first_step: int = 0,
    ) -> None:
        self.images, self.make_caption, self.tokenizer, self.config = images, make_caption, tokenizer, config
        self.first_step = first_step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.first_step, self.config.n_steps):
            yield self.batch(step)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return batch `step`; each epoch is a fresh permutation, its incomplete last batch filled from the next."""
        n, size, px = len(self.images), self.config.batch_size, self.config.image_px
        positions = np.arange(step * size, (step + 1) * size)
        index = np.empty(size, dtype=np.int64)
        for epoch in np.unique(positions // n):
            order = np.random.default_rng([self.config.seed, 1, int(epoch)]).permutation(n)
            mine = positions // n == epoch
            index[mine] = order[positions[mine] % n]
        rng = np.random.default_rng([self.config.seed, 2, step])
        ids = self.tokenizer([self.make_caption(int(i), rng) for i in index])
        images = torch.from_numpy(self.images[index]).permute(0, 3, 1, 2)
        spare = images.shape[-1] - px
        if spare == 0 or rng.random() < 0.5:
            images = squash(images, px)
        else:
            top, left = rng.integers(spare + 1, size=2)
            images = images[..., top : top + px, left : left + px]
        if rng.random() < 0.5:
            images = images.flip(-1)
        return images.contiguous(), ids


def squash(images: Tensor, size_px: int) -> Tensor:
    """Resize uint8 images [b, 3, h, w] to [b, 3, size_px, size_px], both sides on their own (antialiased bicubic)."""
    if images.shape[-2:] == (size_px, size_px):
        return images
    return F.interpolate(images, (size_px, size_px), mode="bicubic", antialias=True)


class ContrastiveModule(L.LightningModule):
    """Trains an open_clip CLIP with the symmetric contrastive loss, AdamW, linear warm-up and cosine decay.

    Logs `loss`, `in_batch_top1` (share of images whose own caption scores highest within the batch) and `lr`.
    """

    def __init__(self, clip: open_clip.CLIP, config: ContrastiveConfig, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.clip, self.config = clip, config
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, ids = batch
        if self.global_step >= (1 - self.config.full_share) * self.config.n_steps:
            self.clip.visual.patch_dropout.prob = 0.0
        image = self.clip.encode_image((images - self.mean) / self.std, normalize=True)
        text = self.clip.encode_text(ids, normalize=True)
        scale = self.clip.logit_scale.exp().clamp(max=100)
        logits = scale * image.float() @ text.float().T
        target = torch.arange(len(logits), device=logits.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        if not torch.isfinite(loss):
            raise ValueError(f"The contrastive loss became {loss.item()} at step {self.global_step}: lower clip.lr.")
        self.log("loss", loss, prog_bar=True)
        self.log("in_batch_top1", (logits.argmax(1) == target).float().mean(), prog_bar=True)
        self.log("lr", self.optimizers().param_groups[0]["lr"])  # pyright: ignore[reportAttributeAccessIssue]
        return loss

    def configure_optimizers(self) -> dict[str, Any]:
        decayed = [p for p in self.clip.parameters() if p.ndim >= 2]
        plain = [p for p in self.clip.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": self.config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=self.config.lr, betas=(0.9, 0.98))

        def factor(step: int) -> float:
            if step < self.config.warmup_steps:
                return (step + 1) / self.config.warmup_steps
            done = (step - self.config.warmup_steps) / max(1, self.config.n_steps - self.config.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def make_caption_loader(dataset: CaptionedBatches) -> DataLoader:
    """Return the loader of ready-made batches, one worker preparing them ahead."""
    return DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4)
