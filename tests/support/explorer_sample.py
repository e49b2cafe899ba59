"""An explorer of invented latents, of any number: what the pages are tested and measured on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from infoscope.explorer.format import pack, pack_maps, pack_texts, put, put_thumbnail
from infoscope.explorer.page_files import write_page

GRID, SHIFT, K_MAX, BLOCK = 8, 1, 16, 64
EVIL = "<img src=x onerror=\"document.title='run'\">.png"
"""What an image, a class and a latent are called in the sample: shown as it is, run by nobody."""


def write_sample(
    folder: Path, d_sae: int = 300, n_images: int = 40, n_views: int = 2, n_detailed: int | None = None, seed: int = 0
) -> Path:
    """Write an explorer into a folder and return its index.html.

    Args:
        n_views: SAEs, which are matched with each other.
        n_detailed: latents that have pictures; None: all.
    """
    draw = np.random.default_rng(seed)
    names = {i: {"id": f"photo_{i:03d}.jpg", "label": i % 4} for i in range(n_images)}
    names[0]["id"] = EVIL
    put(folder, "sets/train/names/0", names)
    for i in range(n_images):
        put_thumbnail(folder, "train", i, Image.fromarray(draw.integers(0, 256, (72, 72, 3), dtype=np.uint8)))
    views = [
        _write_view(folder, f"seed{n}", d_sae, n_images, n_views, n_detailed or d_sae, draw) for n in range(n_views)
    ]
    classes = ["bird", "boat", EVIL, "house"]
    sets = {"train": {"name": "train", "n_images": n_images, "block_size": 1024, "classes": classes, "n_missing": 0}}
    title = "scenes_clip on scenes <b>sample</b>"
    put(folder, "manifest", {"format": 1, "title": title, "facts": {}, "sets": sets, "views": views})
    write_page(folder, title)
    return folder / "index.html"


def _write_view(folder, view, d_sae, n_images, n_views, n_detailed, draw):
    emd = draw.beta(1.2, 18, (d_sae, K_MAX))
    emd[draw.random((d_sae, K_MAX)) < 0.1] = np.nan
    cds = np.where(draw.random(d_sae) < 0.1, np.nan, np.nanmean(emd[:, :8], axis=1))
    group = np.where(np.isnan(cds), "unscored", np.where(cds > 0.06, "high", "low"))
    rate = 10 ** draw.uniform(-5, -0.5, d_sae)
    values = {
        "cds": (cds, "CDS over 8 ranks", "share of the largest distance"),
        "cds_low": (cds - 0.01, "CDS, lower end of its 95% interval", "share of the largest distance"),
        "cds_high": (cds + 0.01, "CDS, upper end of its 95% interval", "share of the largest distance"),
        "cds_minus_chance": (cds - 0.05, "CDS - chance", "share of the largest distance"),
        "group": (group, "group (at half of the mass)", ""),
        "undecided": (draw.random(d_sae) < 0.4, "its pairs leave its group open", ""),
        "firing_rate": (rate, "firing rate", "share of patch tokens"),
        "mass": (rate * draw.random(d_sae), "activation mass", "1"),
        "support": (draw.random(d_sae), "support", "share of the grid"),
        "label_entropy": (2 * draw.random(d_sae), "label entropy", "nats"),
        "ms": (draw.random(d_sae).astype(np.float32), "monosemanticity", "1"),
        "name": (np.where(np.arange(d_sae) == 3, EVIL, np.array([f"name {i % 50}" for i in range(d_sae)])), "name", ""),
        "outlier_share": (draw.random(d_sae), "activation on outlier tokens", "share"),
        "n_valid": ((~np.isnan(emd[:, :8])).sum(1).astype(np.int32), "pairs of crops that have a distance", "pairs"),
    }
    columns = []
    for name, (of, heading, unit) in values.items():
        put(folder, f"{view}/columns/{name}", pack_texts(of) if of.dtype.kind == "U" else pack(of))
        kind = {"U": "text", "b": "switch"}.get(of.dtype.kind, "number")
        columns.append(
            {"name": name, "heading": heading, "unit": unit, "source": "score", "kind": kind, "n_known": d_sae}
        )
    for start in range(0, n_detailed, BLOCK):
        block = range(start, min(start + BLOCK, n_detailed))
        put(
            folder,
            f"{view}/latents/{start // BLOCK}",
            {i: _make_latent(emd[i], d_sae, n_images, view, n_views, draw) for i in block},
        )
    shown = [0, 1, 2]
    for image in shown:
        put(folder, f"{view}/images/train-{image}", _make_image(d_sae, draw))
    return {
        "id": view,
        "title": f"TopK, SAE {view}",
        "facts": {"model": "scenes_clip, block 2", "SAE": "TopK, 512 latents, k 32"},
        "d_sae": d_sae,
        "grid": GRID,
        "shift": SHIFT,
        "diagonal": "main",
        "k_cds": 8,
        "k_max": K_MAX,
        "set": "train",
        "groups": {"names": ["low", "high"], "rule": "half of the mass", "gamma": 0.06},
        "landmarks": [{"name": "chance", "value": 0.11}, {"name": "position-locked", "value": 0.14}],
        "columns": columns,
        "block_size": BLOCK,
        "images": {"train": shown},
        "matched_by": {f"seed{n}": "decoder cosine" for n in range(n_views) if f"seed{n}" != view},
    }


def _draw_maps(n, draw):
    maps = draw.random((n, GRID, GRID)) * (draw.random((n, GRID, GRID)) < 0.15)
    maps[:, 3, 4] = 1.0
    return maps


def _make_latent(emd, d_sae, n_images, view, n_views, draw):
    images = draw.choice(n_images, K_MAX, replace=False)
    few = draw.choice(n_images, 5, replace=False)
    others = [f"seed{n}" for n in range(n_views) if f"seed{n}" != view]
    near = lambda: {"latents": draw.choice(d_sae, 6, replace=False), "values": np.sort(draw.random(6))[::-1]}  # noqa: E731
    return {
        "ranks": {
            "images": images,
            "emd": emd,
            "activation": np.sort(draw.random(K_MAX))[::-1],
            "maps": pack_maps(_draw_maps(2 * K_MAX, draw)),
        },
        "levels": {
            "at": [0.95, 0.75, 0.5, 0.25, 0.05],
            "images": few,
            "activation": np.sort(draw.random(5))[::-1],
            "maps": pack_maps(_draw_maps(5, draw)),
        },
        "random": {"images": few[:4], "activation": draw.random(4), "maps": pack_maps(_draw_maps(4, draw))},
        "spread": {
            "edges": np.linspace(0, 1, 11),
            "counts": draw.integers(0, 9, 10),
            "n_firing": 30,
            "n_images": n_images,
        },
        "near": {"decoder": near(), "coactive": near()},
        "classes": {"classes": [2, 0, 1], "values": [0.5, 0.3, 0.2]},
        "elsewhere": [{"view": other, "latent": int(draw.integers(d_sae)), "value": 0.9} for other in others],
    }


def _make_image(d_sae, draw):
    latents = np.sort(draw.choice(d_sae, 12, replace=False))
    crops = [{"latents": latents, "maps": pack_maps(_draw_maps(12, draw)), "n_left_out": 0} for _ in range(3)]
    before = np.array([0.7, 0.2, 0.06, 0.04])
    return {
        "crops": crops,
        "predictions": {
            "classes": [0, 1, 2, 3],
            "label": 0,
            "before": before,
            "groups": [{"name": "high", "probabilities": before[::-1]}, {"name": "low", "probabilities": before}],
            "latents": [{"latent": int(i), "probabilities": np.roll(before, n % 2)} for n, i in enumerate(latents[:5])],
        },
    }
