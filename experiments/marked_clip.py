"""A trained model that knows broad facts: scenes_clip, tuned to tell what is so of scenes with marks.

    python experiments/marked_clip.py FOLDER       # some 4 minutes of one core
    python experiments/scope_measures.py           # makes one of its own, and measures on it
    infoscope stage=extent data.planted=marks model.pretrained=local-dir:FOLDER

No small window of such a scene tells its facts (`data/scenes/marks.py`), so that features which know one must look
broadly. Linear heads learn every target of the scenes and the colour of each mark, half of the loss from the image
embedding and half from the mean patch token after the penultimate block, where SAEs read by default; the image tower
learns with them, and they are dropped. Contrastive training with captions that say the facts (`stage=train_clip`) does
not get as far in minutes. The text tower stays as it was, and no longer fits.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from infoscope.data.config import Planted
from infoscope.data.scenes.scene_set import MarkedScenes, save_scenes
from infoscope.runtime.files import atomic_write
from infoscope.vision.config import ModelConfig
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip.weights import LOCAL_WEIGHTS, SHIPPED_FOLDER

SIDE_PX = 104
WARMUP_STEPS = 20
FACT_WEIGHT = 3
"""Of a broad fact's part of the loss, that of any other target being 1."""
MARKS = ("upper left", "upper right", "lower left", "lower right")


def list_targets(scenes: MarkedScenes) -> dict[str, Tensor]:
    """Return the label of each scene by target, the colour of each mark among them: int64 [n_scenes]."""
    labels = {target: torch.from_numpy(scenes.labels(target)) for target in scenes.targets}
    colours = torch.tensor([scenes.marks(i) for i in range(len(scenes))]).long()
    return labels | dict(zip(MARKS, colours.T, strict=True))


def tune_clip(scenes: MarkedScenes, folder: Path, n_steps: int, batch_size: int, lr: float) -> None:
    """Tune scenes_clip on scenes of 104 px and write it into `folder`, as `local-dir:` reads it."""
    torch.manual_seed(0)
    rng = np.random.default_rng([0, 40])
    backbone = load_backbone(ModelConfig())
    clip: Any = backbone.get_submodule("clip")
    tower = clip.visual.requires_grad_(True).train()
    labels = list_targets(scenes)
    widths = tower.output_dim, backbone.d_in
    heads = nn.ModuleList(nn.ModuleList(nn.Linear(d, int(of.max()) + 1) for of in labels.values()) for d in widths)
    seen: dict[str, Tensor] = {}
    hook = tower.transformer.resblocks[-2].register_forward_hook(lambda block, given, out: seen.update(tokens=out))
    learnt = [*tower.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(learnt, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    mean, std = (getattr(backbone, name).view(1, 3, 1, 1) for name in ("mean", "std"))
    losses: list[float] = []
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = lr * min(1, (step + 1) / WARMUP_STEPS)
        index = rng.integers(len(scenes), size=batch_size)
        top, left = rng.integers(SIDE_PX - backbone.image_px + 1, size=2)
        images = torch.from_numpy(scenes.images[index]).permute(0, 3, 1, 2)
        images = images[..., top : top + backbone.image_px, left : left + backbone.image_px].float() / 255
        pooled = F.normalize(tower((images - mean) / std), dim=-1) * 8
        vectors = pooled, F.layer_norm(seen["tokens"][:, 1:].mean(1), (backbone.d_in,))
        told = [
            F.cross_entropy(head(vector), of[index]) * (FACT_WEIGHT if name in scenes.broad_facts else 1)
            for vector, those in zip(vectors, heads, strict=True)
            for head, (name, of) in zip(those.children(), labels.items(), strict=True)
        ]
        loss = torch.stack(told).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % 25 == 24:
            print(f"step {step + 1} of {n_steps}: loss {np.mean(losses[-25:]):.3f}", flush=True)
    hook.remove()
    folder.mkdir(parents=True, exist_ok=True)
    for file in SHIPPED_FOLDER.glob("*.json"):
        shutil.copy(file, folder)
    with atomic_write(folder / LOCAL_WEIGHTS[0]) as file:  # the last one: who finds it takes the model for whole
        save_file({name: value.contiguous() for name, value in clip.state_dict().items()}, file)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--n-images", type=int, default=8000)
    parser.add_argument("--n-steps", type=int, default=400)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        save_scenes(Path(place), 0, "clip_train", given.n_images, SIDE_PX, planted=Planted.marks)
        tune_clip(MarkedScenes(place), given.folder, given.n_steps, given.batch_size, given.lr)
    print(f"model.pretrained=local-dir:{given.folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
