"""Images per second of token extraction: ours with reading, preprocessing and writing, against the bare backbone.

Ours is what stage train_sae waits for: `iterate_images` from a scene set or a folder of photographs, the backbone's
tokens, the cache on disk. Bare is open_clip's own `visual.forward_intermediates` on random tensors that lie in memory
already: same weights, layer (with stop_early), batch size and threads. The two take turns in one run, so that a busy
machine slows both; medians are printed. Bare leaves out what no real run can leave out, so it is a ceiling.

    python experiments/benchmarks/extraction.py                                       # scenes_clip on scenes
    python experiments/benchmarks/extraction.py --model ViT-B-16 --images 128         # random weights, 224 px
    python experiments/benchmarks/extraction.py --model ViT-B-16 --root PHOTOGRAPHS --save
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from infoscope.data.config import DataConfig
from infoscope.data.image_folder import ImageFolder
from infoscope.data.images import ImageBatch, ImageSet
from infoscope.data.reader import iterate_images
from infoscope.data.scenes.scene_set import SceneSet, save_scenes
from infoscope.runtime.environment import describe_environment
from infoscope.vision.config import ModelConfig
from infoscope.vision.load import load_backbone
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.tokens.extract import compute_cache_bytes, extract_tokens

RESULTS = Path(__file__).parent / "results"


def make_backbone(options: argparse.Namespace) -> OpenClipBackbone:
    """Return the shipped CLIP, or any architecture of open_clip with random weights."""
    if options.model == "scenes_clip":
        config = ModelConfig(precision=options.precision)
    else:
        config = ModelConfig(options.model, arch=options.model, pretrained="random", precision=options.precision)
    backbone = load_backbone(config)
    assert isinstance(backbone, OpenClipBackbone)
    return backbone.to(options.device)


def make_images(options: argparse.Namespace, folder: Path) -> ImageSet:
    """Return a folder of photographs, or scenes rendered into `folder`."""
    if options.root is not None:
        return ImageFolder(options.root, test_share=0.0)
    save_scenes(folder, 0, "train", options.images, DataConfig().size_px, n_workers=os.cpu_count() or 1)
    return SceneSet(folder)


def time_ours(backbone: OpenClipBackbone, images: ImageSet, options: argparse.Namespace, folder: Path) -> float:
    """Return the seconds of one extraction, cache files included."""

    def read(positions: np.ndarray, batch_images: int) -> Iterator[ImageBatch]:
        return iterate_images(images, backbone.image_px, batch_images, positions, n_workers=options.workers)

    n_images, dtype = min(options.images, len(images)), options.cache_dtype
    start = time.perf_counter()
    extract_tokens(backbone, read, n_images, options.layer, folder, dtype, batch_images=options.batch)
    return time.perf_counter() - start


@torch.inference_mode()
def time_bare(backbone: OpenClipBackbone, n_images: int, pixels: torch.Tensor, layer: int) -> float:
    """Return the seconds of open_clip's forward over as many images; `pixels` is one batch, used again and again."""
    start = time.perf_counter()
    for first in range(0, n_images, len(pixels)):
        with backbone._autocast():
            out = backbone.visual.forward_intermediates(
                pixels[: n_images - first],
                indices=[layer],
                stop_early=True,
                intermediates_only=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
        out["image_intermediates"][0][0, 0, 0].item()  # waits for the device
    return time.perf_counter() - start


def measure(options: argparse.Namespace) -> dict:
    """Time both sides in turns, after one of each that does not count."""
    backbone = make_backbone(options)
    layer = backbone.check_layer(options.layer)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(options.batch, 3, backbone.image_px, backbone.image_px, generator=generator)
    pixels = pixels.to(options.device)
    seconds: dict[str, list[float]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory(dir=options.tmp) as scratch:
        scenes_folder, cache_folder = Path(scratch) / "scenes", Path(scratch) / "cache"
        scenes_folder.mkdir()
        cache_folder.mkdir()
        images = make_images(options, scenes_folder)
        n_images = min(options.images, len(images))
        for _ in range(options.repeats + 1):
            seconds["ours"].append(time_ours(backbone, images, options, cache_folder))
            seconds["bare"].append(time_bare(backbone, n_images, pixels, layer))
    n_tokens = backbone.grid**2 + backbone.n_prefix_tokens
    rows = []
    for name, values in seconds.items():
        median = statistics.median(values[1:])
        rows.append(
            {
                "side": name,
                "median_s": median,
                "best_s": min(values[1:]),
                "images_per_s": n_images / median,
                "tokens_per_s": n_images * n_tokens / median,
            }
        )
    return {
        "rows": rows,
        "ours_of_bare": rows[1]["median_s"] / rows[0]["median_s"],
        "n_images": n_images,
        "image_px": backbone.image_px,
        "layer": layer,
        "cache_bytes": compute_cache_bytes(backbone, n_images, options.cache_dtype),
    }


def print_table(options: argparse.Namespace, result: dict) -> None:
    """Print one line per side."""
    images = f"{result['n_images']} {'photographs' if options.root else 'scenes'} at {result['image_px']} px"
    print(f"{options.model}, block {result['layer']}, {images}, batch {options.batch}, {options.threads} threads")
    print(f"{'side':6} {'median s':>10} {'best s':>10} {'images/s':>10} {'tokens/s':>10}")
    for row in result["rows"]:
        times = f"{row['median_s']:10.3f} {row['best_s']:10.3f}"
        print(f"{row['side']:6} {times} {row['images_per_s']:10.1f} {row['tokens_per_s']:10.0f}")
    print(f"ours reaches {result['ours_of_bare']:.0%} of bare; {result['cache_bytes'] / 1e6:.1f} MB of tokens on disk")


def save(options: argparse.Namespace, result: dict) -> Path:
    """Write the numbers, the settings, hardware and date to results/."""
    settings = {name: value for name, value in vars(options).items() if name not in ("save", "tmp", "root")}
    source = "photographs" if options.root else "scenes"
    content = {
        "settings": {**settings, "source": source, "torch_threads": torch.get_num_threads()},
        **describe_environment(),
        "platform": platform.system(),
        "date": datetime.date.today().isoformat(),
        **result,
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"extraction-{options.model}-{source}-{options.device}.json"
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="scenes_clip", help="scenes_clip, or an architecture for random weights")
    parser.add_argument("--root", help="a folder of photographs; without it, scenes are rendered")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--layer", type=int, default=-2)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--cache-dtype", choices=["float32", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=2, help="of torch, for both sides")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images ahead")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tmp", help="folder for the cache; default: the system's")
    parser.add_argument("--save", action="store_true", help="write the figures and the hardware to results/")
    parser.add_argument("--tiny", action="store_true", help="take a second, and tell no more than that it runs")
    options = parser.parse_args()
    if options.tiny:
        vars(options).update(images=4, batch=2, repeats=1)
    torch.set_num_threads(options.threads)
    result = measure(options)
    print_table(options, result)
    if options.save:
        print(f"saved to {save(options, result)}")


if __name__ == "__main__":
    main()
