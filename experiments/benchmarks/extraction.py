"""Images per second of token extraction: ours with reading, copying and writing, against each of its limits alone.

Sides take turns in one run, so that a busy machine slows all. "Ours" is what stage train_sae waits for: images from a
reader, the backbone's tokens, their files on the disk. The "plain loop" does the same with one thing after the other:
it waits for each batch, writes it, and forces the files to the disk at the end. The limits:

- "bare": open_clip's own `visual.forward_intermediates` on one batch that lies on the device already, of the same
  weights, layer (with stop_early), batch size and threads;
- "reader": the images alone, as ours reads them, to the device;
- "disk": as many bytes as ours writes, from memory, forced to the disk.

Where all three go on at the same time, ours takes as long as the slowest of them; on a CPU that also reads images
(--workers 0) they share the cores. The plain loop and ours count reading too.

    python experiments/benchmarks/extraction.py                                       # scenes_clip on scenes
    python experiments/benchmarks/extraction.py --model ViT-B-16 --images 128         # random weights, 224 px
    python experiments/benchmarks/extraction.py --model ViT-B-16 --root PHOTOGRAPHS --save
    python experiments/benchmarks/extraction.py --device cuda --model ViT-L-14 --in-memory --images 4096 --workers 14 \
        --precision bfloat16 --cache-dtype float16 --compile --save
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from decoding import InMemory
from harness import make_parser, make_rows, print_rows, save, take_turns

from infoscope.data.config import RAISE, DataConfig
from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import ImageBatch, ImageSet
from infoscope.data.reader import iterate_images
from infoscope.data.scenes.scene_set import SceneSet, save_scenes
from infoscope.vision.config import ModelConfig
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.tokens.extract import compute_cache_bytes, extract_tokens
from infoscope.vision.tokens.shards import RowWriter
from infoscope.vision.tokens.source import ReadImages, choose_batch_images

COMPILED = ", compiled"


def make_backbone(options: argparse.Namespace) -> OpenClipBackbone:
    """Return the shipped CLIP, or any architecture of open_clip with random weights."""
    if options.model == "scenes_clip":
        config = ModelConfig(precision=options.precision)
    else:
        config = ModelConfig(options.model, arch=options.model, pretrained="random", precision=options.precision)
    backbone = load_backbone(config, progress=False)
    assert isinstance(backbone, OpenClipBackbone)
    backbone.to(options.device).cast_weights()
    return backbone


def make_images(options: argparse.Namespace, folder: Path, image_px: int) -> ImageSet:
    """Return a folder of photographs, pictures in memory, or scenes rendered into `folder`."""
    if options.root is not None:
        return ImageFolder(options.root, test_share=0.0)
    if options.in_memory:
        return InMemory(options.images, image_px)
    save_scenes(folder, 0, "train", options.images, DataConfig().size_px, n_workers=os.cpu_count() or 1)
    return SceneSet(folder)


def run_plain(
    backbone: OpenClipBackbone, read: ReadImages, n_images: int, layer: int, folder: Path, dtype: str, batch: int
) -> None:
    """Extract in a plain loop: each batch is waited for and written."""
    with (folder / "plain-prefix").open("wb") as prefix, (folder / "plain-patches").open("wb") as patches:
        for _, images in read(np.arange(n_images), batch):
            tokens = backbone.tokens(images, layer)
            for file, part in ((prefix, tokens.prefix), (patches, tokens.patches)):
                file.write(part.to(getattr(torch, dtype)).contiguous().cpu().numpy().data)
        for file in (prefix, patches):
            file.flush()
            os.fsync(file.fileno())


@torch.inference_mode()
def run_bare(backbone: OpenClipBackbone, n_images: int, pixels: torch.Tensor, layer: int) -> None:
    """Put as many images through open_clip's forward; `pixels` is one batch, used again and again."""
    for first in range(0, n_images, len(pixels)):
        with backbone._autocast():
            backbone.visual.forward_intermediates(
                pixels[: n_images - first],
                indices=[layer],
                stop_early=True,
                intermediates_only=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )


def run_reader(read: ReadImages, n_images: int, batch: int) -> None:
    """Read the images."""
    for _ in read(np.arange(n_images), batch):
        pass


def run_disk(block: np.ndarray, n_images: int, folder: Path) -> None:
    """Write one batch of tokens again and again, and force it to the disk."""
    writer = RowWriter(folder / "disk.npy", block.shape[1:], block.dtype.name)
    for first in range(0, n_images, len(block)):
        writer.append(block[: n_images - first])
    writer.close()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time all sides."""
    plain, batch = make_backbone(options), choose_batch_images(options.device)
    backbones = {"": plain}
    if options.compile:
        backbones[COMPILED] = copy.deepcopy(plain)
        backbones[COMPILED].compile_blocks(batch)
    layer, image_px, device = plain.check_layer(options.layer), plain.image_px, torch.device(options.device)
    generator = torch.Generator().manual_seed(0)
    n_values = (plain.grid**2 + plain.n_prefix_tokens, plain.d_in)
    with TemporaryDirectory(dir=options.tmp) as scratch:
        (Path(scratch) / "scenes").mkdir()
        images = make_images(options, Path(scratch) / "scenes", image_px)
        n_images = min(options.images, len(images))
        pixels = torch.randn(min(batch, n_images), 3, image_px, image_px, generator=generator).to(device)
        block = torch.randn(len(pixels), *n_values, generator=generator).numpy().astype(options.cache_dtype)

        def read(positions: np.ndarray, batch_images: int) -> Iterator[ImageBatch]:
            return iterate_images(images, image_px, batch_images, positions, RAISE, options.workers, device)

        sides: dict[str, Callable[[], object]] = {}
        for words, one in backbones.items():
            sides[f"ours{words}"] = partial(
                extract_tokens, one, read, n_images, layer, Path(scratch), options.cache_dtype
            )
            sides[f"bare{words}"] = partial(run_bare, one, n_images, pixels, layer)
        if not options.only_limits:
            sides["plain loop"] = partial(
                run_plain, plain, read, n_images, layer, Path(scratch), options.cache_dtype, batch
            )
        sides["reader"] = partial(run_reader, read, n_images, batch)
        sides["disk"] = partial(run_disk, block, n_images, Path(scratch))
        rows = make_rows(take_turns(sides, options.repeats), n_images, "images")
    rates = {row["side"]: row["images_per_s"] for row in rows}
    limits = {words: min((f"bare{words}", "reader", "disk"), key=rates.__getitem__) for words in backbones}
    return {
        "rows": rows,
        "slowest": {f"ours{words}": limit for words, limit in limits.items()},
        "of_slowest": {f"ours{words}": rates[f"ours{words}"] / rates[limit] for words, limit in limits.items()},
        "batch": batch,
        "n_images": n_images,
        "image_px": image_px,
        "layer": layer,
        "cache_bytes": compute_cache_bytes(plain, n_images, options.cache_dtype),
    }


def name_source(options: argparse.Namespace) -> str:
    """Return where the images come from, in a word."""
    return "photographs" if options.root else "memory" if options.in_memory else "scenes"


def print_table(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print one line per side, and how near ours comes to the slowest limit."""
    images = f"{result['n_images']} {name_source(options)} at {result['image_px']} px"
    work = f"batches of {result['batch']}, {options.threads} threads, {options.workers} readers"
    print_rows(result["rows"], f"{options.model}, block {result['layer']}, {images}, {work}")
    for side, limit in result["slowest"].items():
        print(f"{side} reaches {result['of_slowest'][side]:.0%} of {limit}, the slowest of its limits")
    print(f"{result['cache_bytes'] / 1e6:.1f} MB of tokens on disk")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--model", default="scenes_clip", help="scenes_clip, or an architecture for random weights")
    parser.add_argument("--root", help="a folder of photographs; without it, scenes are rendered")
    parser.add_argument("--in-memory", action="store_true", help="random pictures of the right size, in memory")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--layer", type=int, default=-2)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--cache-dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for all sides")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images ahead")
    parser.add_argument("--compile", action="store_true", help="ours and bare also with compiled blocks")
    parser.add_argument("--only-limits", action="store_true", help="without the plain loop")
    parser.add_argument("--tmp", help="folder for the cache; default: the system's")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(images=4, repeats=1)
    torch.set_num_threads(options.threads)
    result = measure(options)
    print_table(options, result)
    if options.save:
        name = f"extraction-{options.model}-{name_source(options)}"
        for place in ("root", "tmp"):
            vars(options).pop(place)
        save(name, options, torch_threads=torch.get_num_threads(), **result)


if __name__ == "__main__":
    main()
