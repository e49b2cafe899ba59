"""Photographs per second: one core that decodes, processes that read ahead, and what hands pictures over.

Three tables; in each, sides take turns over the same files, and files are read once beforehand, so that the disk is not
measured. Without --root, rendered scenes are saved as JPEGs: smoother and smaller than photographs.

- One core: `load` of an image set by each `data.decoder` against a decode and a resize with nothing else, by Pillow and
  by torchvision: ceilings, as `load` also mends orientation and colour modes. "Draft" is Pillow at 1/2 to 1/8 of the
  size, no smaller than twice the target. Differences are against Pillow's `load`, in levels of 255; pictures that EXIF
  tags turn are left out, because only `load` turns them.
- Processes that read ahead: `open_images`, whose helpers stay, against torch's DataLoader with workers that stay, each
  calling `load`. On CUDA images come to the device, by nvJPEG too. Whoever takes them copies them once.
- The same of pictures that lie in memory at the right size, so that handing them over is all there is to do; the limit
  is a copy of each batch into fresh memory.

    python experiments/benchmarks/decoding.py --root PHOTOGRAPHS
    python experiments/benchmarks/decoding.py --root PHOTOGRAPHS --workers 14 --batch 256 --save
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import make_parser, make_rows, print_rows, save, take_turns
from PIL import Image, features
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from infoscope.data import decoding
from infoscope.data.config import Decoder, Resize
from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import ImageSet
from infoscope.data.reader import open_images
from infoscope.data.scenes.render import render_split_part

SCENE_PX = 320
Side = Callable[[], object]


class InMemory(ImageSet):
    """Random pictures of the right size, the same 64 again and again."""

    def __init__(self, n_images: int, size_px: int) -> None:
        super().__init__("test", [f"{i:09d}" for i in range(n_images)])
        self.pictures = np.random.default_rng(0).integers(0, 256, (64, size_px, size_px, 3), dtype=np.uint8)

    @property
    def fingerprint(self) -> dict[str, Any]:
        return {}

    def load(self, index: int, size_px: int) -> np.ndarray:
        return self.pictures[index % len(self.pictures)]


class Loaded(Dataset[Tensor]):
    """An image set as torch's loader reads it."""

    def __init__(self, images: ImageSet, size_px: int) -> None:
        self.images, self.size_px = images, size_px

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.images.load(index, self.size_px).transpose(2, 0, 1)))


def decode_pillow(file: Path, size_px: int) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC))


def decode_draft(file: Path, size_px: int) -> np.ndarray:
    with Image.open(file) as image:
        image.draft("RGB", (2 * size_px, 2 * size_px))
        return np.array(image.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC))


def decode_torchvision(file: Path, size_px: int) -> np.ndarray:
    (pixels,) = decoding.decode_plain([file.read_bytes()], torch.device("cpu"))
    assert pixels is not None
    return decoding.resize_pixels(pixels, size_px, Resize.squash).permute(1, 2, 0).numpy()


def open_folders(root: Path, n_images: int) -> dict[Decoder, ImageFolder]:
    """Return the JPEGs of a folder that every method reads as `load` does, colour and grey, upright as stored."""
    found = {decoder: ImageFolder(root, test_share=0.0, decoder=decoder) for decoder in Decoder}
    kept = []
    for name in found[Decoder.pillow].image_ids:
        with Image.open(root / name) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L") and image.getexif().get(0x0112, 1) <= 1:
                kept.append(name)
    for images in found.values():
        images.image_ids = kept[:n_images]
    return found


def save_scenes(folder: Path, n_images: int) -> None:
    """Write rendered scenes as JPEGs."""
    for index, scene in enumerate(render_split_part(0, "test", 0, n_images, SCENE_PX)):
        Image.fromarray(scene.image).save(folder / f"{index}.jpg")


@contextmanager
def one_core() -> Iterator[None]:
    """Work with one core, where the system knows how."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def measure_core(folders: Mapping[Decoder, ImageFolder], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time decoders on one core, after comparing their pictures."""
    pillow = folders[Decoder.pillow]
    files = [pillow.folder / name for name in pillow.image_ids]
    methods: dict[str, Callable[[int], np.ndarray]] = {
        f"load, {decoder.name}": lambda i, decoder=decoder: folders[decoder].load(i, options.size)
        for decoder in (Decoder.pillow, Decoder.torchvision)
    }
    for name, decode in (
        ("plain Pillow", decode_pillow),
        ("plain torchvision", decode_torchvision),
        ("Pillow, draft", decode_draft),
    ):
        methods[name] = lambda i, decode=decode: decode(files[i], options.size)
    with one_core():
        sides = {name: lambda load=load: [load(i) for i in range(len(files))] for name, load in methods.items()}
        rows = make_rows(take_turns(sides, options.repeats), len(files), "images")
    for row in rows:
        load = methods[row["side"]]
        differences = [np.abs(load(i).astype(int) - pillow.load(i, options.size)) for i in range(len(files))]
        row["max_difference"] = float(max(map(np.max, differences)))
        row["mean_difference"] = float(np.mean(differences))
    return rows


def take(batches: Iterator[Tensor], into: Tensor) -> None:
    """Copy batches as whoever reads them does."""
    for images in batches:
        into[: len(images)].copy_(images, non_blocking=True)


def load_batches(loader: DataLoader[Tensor], device: torch.device) -> Iterator[Tensor]:
    for images in loader:
        yield images.to(device, non_blocking=True)


def copy_batches(batch: Tensor, n_images: int) -> Iterator[Tensor]:
    """What the memory allows: copies of a batch that is there."""
    for start in range(0, n_images, len(batch)):
        yield batch[: n_images - start].clone()


def make_readers(
    sets: Mapping[str, ImageSet], options: argparse.Namespace, stack: ExitStack
) -> dict[str, Callable[[], Iterator[Tensor]]]:
    """Return what reads each set: our helpers, and torch's; they are there until the stack ends."""
    device, readers = torch.device(options.device), {}
    for name, images in sets.items():
        reader = stack.enter_context(open_images(images, options.size, n_workers=options.workers, device=device))
        readers[f"open_images, {name}"] = lambda reader=reader, images=images: (
            batch.images for batch in reader.read(range(len(images)), options.batch)
        )
        if images.decoder is Decoder.nvjpeg:
            continue  # a worker of torch's has no GPU
        loader = DataLoader(
            Loaded(images, options.size),
            options.batch,
            num_workers=options.workers,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
        )
        readers[f"DataLoader, {name}"] = lambda loader=loader: load_batches(loader, device)
    return readers


def measure_readers(
    sets: Mapping[str, ImageSet],
    options: argparse.Namespace,
    others: Mapping[str, Callable[[], Iterator[Tensor]]] | None = None,
) -> list[dict[str, Any]]:
    """Time readers of sets of equally many images, and others that yield batches of as many."""
    n_images = len(next(iter(sets.values())))
    shape = (options.batch, 3, options.size, options.size)
    into = torch.zeros(shape, dtype=torch.uint8, device=options.device)
    with ExitStack() as stack:
        readers = {**make_readers(sets, options, stack), **(others or {})}
        sides: dict[str, Side] = {name: lambda read=read: take(read(), into) for name, read in readers.items()}
        return make_rows(take_turns(sides, options.repeats), n_images, "images")


def measure(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    """Return the rows of the three tables, and what the files are."""
    folders = open_folders(root, options.images)
    files = [root / name for name in folders[Decoder.pillow].image_ids]
    sizes = [file.stat().st_size for file in files]
    decoders = [decoder for decoder in Decoder if decoder is not Decoder.nvjpeg or options.device == "cuda"]
    batch = torch.randint(0, 256, (options.batch, 3, options.size, options.size), dtype=torch.uint8)
    limit = {"limit: a copy": lambda: copy_batches(batch, options.in_memory)}
    return {
        "n_images": len(files),
        "mean_bytes": statistics.fmean(sizes),
        "rows": measure_core(folders, options),
        "readers": measure_readers({decoder.name: folders[decoder] for decoder in decoders}, options),
        "handing_over": measure_readers({"in memory": InMemory(options.in_memory, options.size)}, options, limit),
    }


def print_tables(result: Mapping[str, Any], options: argparse.Namespace) -> None:
    files = f"{result['n_images']} JPEGs of {result['mean_bytes'] / 1e3:.0f} kB at {options.size} px"
    print_rows(result["rows"], f"{files}, one core")
    print_rows(result["readers"], f"\n{files}, {options.workers} processes, batches of {options.batch}")
    print_rows(result["handing_over"], f"\n{options.in_memory} pictures in memory, {options.workers} processes")


def parse() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--root", help="a folder of photographs; without it, scenes are rendered")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--in-memory", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=max(1, min(14, (os.cpu_count() or 1))))
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(images=4, in_memory=4, repeats=1, size=32, workers=1, batch=2)
    return options


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    with TemporaryDirectory() as scratch:
        if options.root is None:
            save_scenes(Path(scratch), options.images)
        result = measure(options, Path(options.root or scratch))
    print_tables(result, options)
    if options.save:
        vars(options).pop("root")
        jpeg = {"libjpeg": features.version("libjpeg_turbo") or features.version("jpg")}
        save(f"decoding-{options.size}", options, pillow=jpeg, **result)


if __name__ == "__main__":
    main()
