"""Contrastive training of a small CLIP: images and captions of one scene meet, others part (Radford et al., 2021)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Int64
from safetensors.torch import load_file, save_file
from torch import Tensor

from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.forks import map_ahead
from infoscope.runtime.lightning import LastCheckpoint, place_trainer, quiet_lightning
from infoscope.runtime.profile import Kind, spent_on
from infoscope.vision.config import ContrastiveConfig
from infoscope.vision.open_clip.tokenizer import WordTokenizer
from infoscope.vision.open_clip.weights import LOCAL_WEIGHTS, SHIPPED_FOLDER
from infoscope.vision.weights.towers import get_shapes

CHECKPOINT_EVERY_N_STEPS = 200

CLIP_MEAN, CLIP_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
"""RGB normalisation of the CLIPs trained here."""


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


class CaptionedImages(Protocol):
    """Pictures and what is said of them; pickled without the pixels, for workers."""

    @property
    def images(self) -> np.ndarray:
        """All pictures: uint8 [n, S, S, 3], S at least the model's side."""
        ...

    def caption(self, index: int, rng: np.random.Generator | None = None) -> str:
        """Return the caption of a picture: whole, or with clauses left out by the generator."""
        ...


class CaptionedBatches:
    """Batches of (uint8 images [b, 3, s, s], token ids [b, context]); batch t is a function of (seed, t).

    Half of the batches are random crops of side `image_px` (so positions vary as under shifted
    context cropping), half are whole images, to be squashed to that side; every batch is mirrored at random.

    Args:
        first_step: step to begin at, for resumed training.
        n_helpers: processes that make batches ahead.
        rows: of the scenes that are shown; None: all.
    """

    def __init__(
        self,
        scenes: CaptionedImages,
        tokenizer: WordTokenizer,
        config: ContrastiveConfig,
        first_step: int = 0,
        n_helpers: int = 0,
        rows: Int64[np.ndarray, " n"] | None = None,
    ) -> None:
        self.scenes, self.tokenizer, self.config, self.rows = scenes, tokenizer, config, rows
        self.first_step, self.n_helpers = first_step, n_helpers

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        steps = range(self.first_step, self.config.n_steps)
        return map_ahead(self.batch, steps, self.n_helpers, "leave it more memory")

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return batch `step`; each epoch is a fresh permutation, its incomplete last batch filled from the next."""
        n = len(self.scenes.images) if self.rows is None else len(self.rows)
        size, px = self.config.batch_size, self.config.image_px
        positions = np.arange(step * size, (step + 1) * size)
        index = np.empty(size, dtype=np.int64)
        for epoch in np.unique(positions // n):
            order = np.random.default_rng([self.config.seed, 1, int(epoch)]).permutation(n)
            mine = positions // n == epoch
            index[mine] = order[positions[mine] % n]
        index = index if self.rows is None else self.rows[index]
        rng = np.random.default_rng([self.config.seed, 2, step])
        ids = self.tokenizer([self.scenes.caption(int(i), rng) for i in index])
        images = torch.from_numpy(self.scenes.images[index]).permute(0, 3, 1, 2)
        spare = images.shape[-1] - px
        if spare > 0 and rng.random() < 0.5:
            top, left = rng.integers(spare + 1, size=2)
            images = images[..., top : top + px, left : left + px]
        if rng.random() < 0.5:
            images = images.flip(-1)
        return images.contiguous(), ids


def squash(images: Tensor, size_px: int) -> Tensor:
    """Resize images [b, 3, h, w], 0..255, to float32 [b, 3, size_px, size_px] (either side alone, bicubic)."""
    images = images.float()
    if images.shape[-2:] == (size_px, size_px):
        return images
    return F.interpolate(images, (size_px, size_px), mode="bicubic", antialias=True).clamp(0, 255)


class ContrastiveModule(L.LightningModule):
    """Trains an open_clip CLIP with the symmetric contrastive loss, AdamW, linear warm-up and cosine decay.

    Images whose texts are the same are positives of one another (UniCL: Yang et al., 2022). Logs `loss`,
    `in_batch_top1` (share of images whose highest score is their own text) and `lr`.
    """

    def __init__(self, clip: open_clip.CLIP, config: ContrastiveConfig, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.clip, self.config = clip, config
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1) * 255, persistent=False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, ids = batch
        torch.manual_seed(self.config.seed + self.global_step)  # which patches are left out, after a stop as without
        if self.global_step >= (1 - self.config.full_share) * self.config.n_steps:
            visual: Any = self.clip.visual
            visual.patch_dropout.prob = 0.0
        images = squash(images, self.config.image_px)
        image = self.clip.encode_image((images - self.mean) / self.std, normalize=True)
        texts, of_image = ids.unique(dim=0, return_inverse=True)
        text = self.clip.encode_text(texts, normalize=True)[of_image]
        positives = (of_image[:, None] == of_image).float()
        scale = self.clip.logit_scale.exp().clamp(max=100)
        logits = scale * image.float() @ text.float().T
        target = positives / positives.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        if not torch.isfinite(loss):
            raise InputError(f"The contrastive loss became {loss.item()} at step {self.global_step}: lower clip.lr.")
        self.log("loss", loss, prog_bar=True)
        self.log("in_batch_top1", positives.gather(1, logits.argmax(1, keepdim=True)).mean(), prog_bar=True)
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


def train_clip(
    config: ContrastiveConfig,
    scenes: CaptionedImages,
    words: Sequence[str],
    folder: Path,
    progress_folder: Path,
    trainer_options: dict[str, Any] | None = None,
    rows: Int64[np.ndarray, " n"] | None = None,
) -> open_clip.CLIP:
    """Train a CLIP and write it into `folder` in open_clip's `local-dir` form, with its vocabulary.

    Args:
        scenes: pictures of side config.image_px or more, and their captions.
        words: the vocabulary.
        progress_folder: holds `last.ckpt`, from which an interrupted training goes on.
        trainer_options: accelerator, callbacks, logger and progress bar of Lightning's Trainer.
        rows: of the scenes that it is trained on; None: all.

    Raises:
        InputError: if it is to begin with weights of other sizes or words, if the loss becomes NaN or infinite, or
            `last.ckpt` is damaged or of another run.
        KeyboardInterrupt: at Ctrl-C, after the step in hand, when the checkpoint is written.
    """
    tokenizer = WordTokenizer(words, config.context_length)
    L.seed_everything(config.seed, verbose=False)
    model_cfg = make_clip_config(config, tokenizer.vocab_size)
    clip = open_clip.CLIP(**model_cfg)
    if config.init == "shipped":
        _load_shipped(clip, words)
    module = ContrastiveModule(clip, config, CLIP_MEAN, CLIP_STD)
    checkpoint = LastCheckpoint(progress_folder, {"config": config.cache_key_fields()}, CHECKPOINT_EVERY_N_STEPS)
    options = {**place_trainer(), **(trainer_options or {})}
    last = checkpoint.find()
    first_step = torch.load(last, weights_only=True)["global_step"] if last else 0
    n_helpers = min(8, max(1, processes.count_cores() // 2))
    batches = CaptionedBatches(scenes, tokenizer, config, first_step, n_helpers, rows)
    with quiet_lightning():
        trainer = L.Trainer(
            max_steps=config.n_steps,
            gradient_clip_val=1.0,
            precision=config.precision,  # pyright: ignore[reportArgumentType]
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=progress_folder,
            callbacks=[*options.pop("callbacks", []), checkpoint],
            **options,
        )
        with spent_on(Kind.training):
            checkpoint.fit(trainer, module, train_dataloaders=batches)
    save_clip(clip.eval(), model_cfg, words, config, folder)
    return clip


def _load_shipped(clip: open_clip.CLIP, words: Sequence[str]) -> None:
    """Load the weights of scenes_clip; words behind those that it knows keep the vectors that they have.

    Raises:
        InputError: this CLIP has other sizes, or other words.
    """
    state = load_file(SHIPPED_FOLDER / LOCAL_WEIGHTS[0])
    known = json.loads((SHIPPED_FOLDER / "vocabulary.json").read_text(encoding="utf-8"))["words"]
    table, mine = state["token_embedding.weight"], clip.state_dict()["token_embedding.weight"]
    if table.shape[1] == mine.shape[1]:
        state["token_embedding.weight"] = torch.cat([table[:-1], mine[len(table) - 1 : -1], table[-1:]])  # the end mark
    if get_shapes(state) != get_shapes(clip.state_dict()) or known != list(words[: len(known)]):
        raise InputError(
            "clip.init=shipped begins with the weights of scenes_clip, and these settings are of a CLIP of another"
            " size: drop clip.width, clip.layers and the other sizes, or clip.init."
        )
    clip.load_state_dict(state)


def save_clip(
    clip: open_clip.CLIP, model_cfg: dict[str, Any], words: Sequence[str], config: ContrastiveConfig, folder: Path
) -> None:
    """Write `open_clip_config.json`, `open_clip_model.safetensors` and `vocabulary.json` into an existing folder."""
    vision_cfg = {name: value for name, value in model_cfg["vision_cfg"].items() if name != "patch_dropout"}
    content = {
        "model_cfg": {**model_cfg, "vision_cfg": vision_cfg},
        "preprocess_cfg": {"mean": CLIP_MEAN, "std": CLIP_STD, "size": [config.image_px] * 2, "resize_mode": "squash"},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    vocabulary = {"context_length": config.context_length, "words": list(words)}
    (folder / "vocabulary.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    tensors = {name: value.contiguous() for name, value in clip.state_dict().items()}
    save_file(tensors, folder / "open_clip_model.safetensors")


@torch.inference_mode()
def compute_retrieval(
    clip: open_clip.CLIP, images: np.ndarray, captions: Sequence[str], tokenizer: WordTokenizer, batch_size: int = 128
) -> dict[str, float]:
    """Return the shares 0..1 of images that find their own caption, and captions that find their image, first.

    The choice is among `batch_size` of them, as in training; the last incomplete batch is left out because chance
    would differ there. Images are uint8 [n, S, S, 3] and are squashed to the model's size.
    """
    visual: Any = clip.visual
    size_px: int = visual.image_size[0]
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) * 255 for value in (CLIP_MEAN, CLIP_STD))
    hits = torch.zeros(2)
    n_batches = len(images) // batch_size
    for start in range(0, n_batches * batch_size, batch_size):
        pixels = squash(torch.from_numpy(np.array(images[start : start + batch_size])).permute(0, 3, 1, 2), size_px)
        image = clip.encode_image((pixels - mean) / std, normalize=True)
        text = clip.encode_text(tokenizer(captions[start : start + batch_size]), normalize=True)
        scores = image @ text.T
        target = torch.arange(batch_size)
        hits += torch.stack([(scores.argmax(1) == target).sum(), (scores.argmax(0) == target).sum()])
    image_to_text, text_to_image = (hits / max(1, n_batches * batch_size)).tolist()
    return {"image_to_text_top1": image_to_text, "text_to_image_top1": text_to_image, "among": float(batch_size)}
