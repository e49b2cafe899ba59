"""Photographs per second and core: what an image set's `load` does, and other decoders of JPEGs beside it.

Everything runs on one core, in turns over the same files, so that a busy machine slows all; medians are printed.
"Plain Pillow" is the full decode and a bicubic resize with nothing else: a ceiling for `load`, which also mends
orientation and colour modes. "Draft" is Pillow at 1/2 to 1/8 of the size, no smaller than twice the target.
Differences are against `load`, in levels of 255, over the images at the target size. Files are read once beforehand,
so the disk is not measured; pictures that EXIF tags turn are left out, because only `load` turns them. Without
--root, rendered scenes are saved as JPEGs: smoother and smaller than photographs.

    python experiments/benchmarks/decoding.py --root PHOTOGRAPHS
    python experiments/benchmarks/decoding.py --root PHOTOGRAPHS --size 224 --repeats 5 --save
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image, features
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import resize

from infoscope.data.image_folder import ImageFolder
from infoscope.data.photographs import load_rgb
from infoscope.data.scenes.render import render_split_part
from infoscope.runtime.environment import describe_environment

RESULTS = Path(__file__).parent / "results"
SCENE_PX = 320


def decode_pillow(file: Path, size_px: int) -> np.ndarray:
    with Image.open(file) as image:
        return np.array(image.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC))


def decode_draft(file: Path, size_px: int) -> np.ndarray:
    with Image.open(file) as image:
        image.draft("RGB", (2 * size_px, 2 * size_px))
        return np.array(image.convert("RGB").resize((size_px, size_px), Image.Resampling.BICUBIC))


def decode_to_tensor(file: Path) -> torch.Tensor:
    pixels = decode_jpeg(read_file(str(file)), mode=ImageReadMode.RGB)
    assert isinstance(pixels, torch.Tensor)  # a list only for a list of files
    return pixels


def decode_torchvision(file: Path, size_px: int) -> np.ndarray:
    """torchvision's decoder, then Pillow's resize."""
    pixels = decode_to_tensor(file).permute(1, 2, 0).numpy()
    return np.array(Image.fromarray(pixels).resize((size_px, size_px), Image.Resampling.BICUBIC))


def resize_tensors(file: Path, size_px: int) -> np.ndarray:
    """`load_rgb`, then torchvision's antialiased bicubic resize of uint8 tensors."""
    pixels = torch.from_numpy(np.array(load_rgb(file))).permute(2, 0, 1)
    return resize(pixels, [size_px, size_px], InterpolationMode.BICUBIC).permute(1, 2, 0).numpy()


def decode_tensors(file: Path, size_px: int) -> np.ndarray:
    """torchvision's decoder and its antialiased bicubic resize of uint8 tensors."""
    return resize(decode_to_tensor(file), [size_px, size_px], InterpolationMode.BICUBIC).permute(1, 2, 0).numpy()


def decode_only(file: Path, size_px: int) -> np.ndarray:
    """`load_rgb` without the resize: what decoding alone takes."""
    return np.asarray(load_rgb(file))


def find_photographs(root: Path, n_images: int) -> ImageFolder:
    """Return the JPEGs of a folder that every method reads as `load` does: colour and grey, upright as stored."""
    images = ImageFolder(root, test_share=0.0)
    kept = []
    for name in images.image_ids:
        with Image.open(images.folder / name) as image:
            if image.format == "JPEG" and image.mode in ("RGB", "L") and image.getexif().get(0x0112, 1) <= 1:
                kept.append(name)
    images.image_ids = kept[:n_images]
    return images


def save_scenes(folder: Path, n_images: int) -> None:
    """Write rendered scenes as JPEGs."""
    for index, scene in enumerate(render_split_part(0, "test", 0, n_images, SCENE_PX)):
        Image.fromarray(scene.image).save(folder / f"{index}.jpg")


def measure(options: argparse.Namespace, root: Path) -> dict:
    """Time all methods in turns, after one pass that does not count but compares the pictures."""
    images = find_photographs(root, options.images)
    files = [images.folder / name for name in images.image_ids]
    methods: dict[str, Callable[[int], np.ndarray]] = {"load": lambda i: images.load(i, options.size)}
    for name, decode in (
        ("plain Pillow", decode_pillow),
        ("Pillow, draft", decode_draft),
        ("torchvision decode, Pillow resize", decode_torchvision),
        ("load_rgb, torchvision resize", resize_tensors),
        ("torchvision decode and resize", decode_tensors),
        ("load_rgb, no resize", decode_only),
    ):
        methods[name] = lambda i, decode=decode: decode(files[i], options.size)
    differences: dict[str, list[tuple[float, float]]] = {name: [] for name in methods}
    for i in range(len(files)):
        expected = methods["load"](i).astype(np.int16)
        for name, method in methods.items():
            found = method(i)
            if found.shape == expected.shape:
                difference = np.abs(found.astype(np.int16) - expected)
                differences[name].append((float(difference.max()), float(difference.mean())))
    seconds: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(options.repeats):
        for name, method in methods.items():
            start = time.perf_counter()
            for i in range(len(files)):
                method(i)
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for name, values in seconds.items():
        largest, mean = zip(*differences[name], strict=True) if len(differences[name]) == len(files) else ([], [])
        rows.append(
            {
                "method": name,
                "images_per_s": len(files) / statistics.median(values),
                "best_images_per_s": len(files) / min(values),
                "max_difference": max(largest) if largest else None,
                "mean_difference": statistics.fmean(mean) if mean else None,
            }
        )
    sizes = [file.stat().st_size for file in files]
    return {"rows": rows, "n_images": len(files), "mean_bytes": statistics.fmean(sizes)}


def print_table(options: argparse.Namespace, result: dict) -> None:
    """Print one line per method."""
    print(f"{result['n_images']} JPEGs of {result['mean_bytes'] / 1e3:.0f} kB at {options.size} px, one core")
    print(f"{'method':34} {'images/s':>9} {'best':>7} {'max diff.':>10} {'mean diff.':>11}")
    for row in result["rows"]:
        exact = row["max_difference"] is not None
        differences = f"{row['max_difference']:10.0f} {row['mean_difference']:11.4f}" if exact else ""
        print(f"{row['method']:34} {row['images_per_s']:9.1f} {row['best_images_per_s']:7.1f} {differences}".rstrip())


def save(options: argparse.Namespace, result: dict) -> Path:
    """Write the numbers, the settings, hardware and date to results/."""
    content = {
        "settings": {name: value for name, value in vars(options).items() if name not in ("save", "root")},
        "pillow": {"jpeg": features.version("libjpeg_turbo") or features.version("jpg")},
        **describe_environment(),
        "platform": platform.system(),
        "date": datetime.date.today().isoformat(),
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"decoding-{options.size}-cpu.json"
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="a folder of photographs; without it, scenes are rendered")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", action="store_true", help="write the figures and the hardware to results/")
    parser.add_argument("--tiny", action="store_true", help="take a second, and tell no more than that it runs")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(images=4, repeats=1, size=32)
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with TemporaryDirectory() as scratch:
        if options.root is None:
            save_scenes(Path(scratch), options.images)
        result = measure(options, Path(options.root or scratch))
    print_table(options, result)
    if options.save:
        print(f"saved to {save(options, result)}")


if __name__ == "__main__":
    main()
