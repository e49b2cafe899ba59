"""An explorer of invented latents: what the pages are tested on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from infoscope.explorer.format import pack, pack_maps, pack_texts, put, put_thumbnail
from infoscope.explorer.page_files import write_page
from infoscope.scope.cds import compute_cds, compute_d_grid
from infoscope.scope.config import By
from infoscope.scope.crops import shared_region
from infoscope.scope.emd import compute_emd
from infoscope.scope.partition import ENDS

GRID, SHIFT, K_MAX, BLOCK = 8, 1, 16, 64
EVIL = "<img src=x onerror=\"document.title='run'\">.png"
"""What an image, a class and a latent are called in the sample: shown as it is, run by nobody."""


def write_sample(folder: Path, d_sae: int = 300, n_images: int = 40, n_views: int = 2, by: By = By.cds) -> Path:
    """Write an explorer into a folder and return its index.html.

    Args:
        n_views: SAEs, which are matched with each other.
        by: what the groups of the first one divide; of the others it is the CDS.
    """
    draw = np.random.default_rng(0)
    names = {i: {"id": f"photo_{i:03d}.jpg", "label": i % 4} for i in range(n_images)}
    names[0]["id"] = EVIL
    put(folder, "sets/train/names/0", names)
    for i in range(n_images):
        put_thumbnail(folder, "train", i, Image.fromarray(draw.integers(0, 256, (72, 72, 3), dtype=np.uint8)))
    views = [
        _write_view(folder, f"seed{n}", d_sae, n_images, n_views, draw, By.cds if n else by) for n in range(n_views)
    ]
    classes = ["bird", "boat", EVIL, "house"]
    sets = {"train": {"name": "train", "n_images": n_images, "block_size": 1024, "classes": classes, "n_missing": 0}}
    title = "scenes_clip on scenes <b>sample</b>"
    put(folder, "manifest", {"format": 1, "title": title, "facts": {}, "sets": sets, "views": views})
    write_page(folder, title)
    return folder / "index.html"


def _write_view(folder, view, d_sae, n_images, n_views, draw, by):
    maps = _draw_pairs(d_sae, draw)
    emd = _measure_pairs(maps)
    cds = compute_cds(emd, 8).values
    extent, mean_extent, context_effect = np.linspace([0, 0.1, 1], [1, 0.9, 0], d_sae).T
    measures = {"cds": cds, "extent": extent, "mean_extent": mean_extent, "context_effect": context_effect}
    if by is not By.cds:
        measures[by.name][:3] = np.nan
    measure, gamma = measures[by.name], 0.06 if by is By.cds else 0.3
    above, below = ENDS[by]
    group = np.where(np.isnan(measure), "unscored", np.where(measure > gamma, above, below))
    rate = 10 ** draw.uniform(-5, -0.5, d_sae)
    values = {
        "cds": (cds, "CDS over 8 ranks", "share of the largest distance"),
        "cds_low": (cds - 0.01, "CDS, lower end of its 95% interval", "share of the largest distance"),
        "cds_high": (cds + 0.01, "CDS, upper end of its 95% interval", "share of the largest distance"),
        "chance": (np.full(d_sae, 0.11), "CDS by chance", "share of the largest distance"),
        "cds_minus_chance": (cds - 0.11, "CDS - chance", "share of the largest distance"),
        "extent": (extent, "evidence extent", "share of the grid's side"),
        "mean_extent": (mean_extent, "mean extent", "share of the grid's side"),
        "context_effect": (context_effect, "context effect", "share of variance"),
        "group": (group, "group (at half of the mass)", ""),
        "undecided": (draw.random(d_sae) < 0.4, "its pairs leave its group open", ""),
        "firing_rate": (rate, "firing rate", "share of patch tokens"),
        "mass": (rate * draw.random(d_sae), "activation mass", "1"),
        "support": (draw.random(d_sae), "support", "share of the grid"),
        "label_entropy": (2 * draw.random(d_sae), "label entropy", "nats"),
        "ms": (draw.random(d_sae).astype(np.float32), "monosemanticity", "1"),
        "name": (np.where(np.arange(d_sae) == 3, EVIL, np.array([f"name {i % 50}" for i in range(d_sae)])), "name", ""),
        "outlier_share": (draw.random(d_sae), "activation on outlier tokens", "share"),
        "effect_cls_final": (draw.normal(0, 0.01, d_sae), "change of the loss without it, cls_final", "nats per image"),
        "effect_depth": (draw.normal(0, 0.01, d_sae), "change of the loss without it, depth", "m^2 per pixel"),
        "n_valid": ((~np.isnan(emd[:, :8])).sum(1).astype(np.int32), "pairs of crops that have a distance", "pairs"),
    }
    columns = []
    for name, (of, heading, unit) in values.items():
        put(folder, f"{view}/columns/{name}", pack_texts(of) if of.dtype.kind == "U" else pack(of))
        kind = {"U": "text", "b": "switch"}.get(of.dtype.kind, "number")
        columns.append(
            {"name": name, "heading": heading, "unit": unit, "source": "score", "kind": kind, "n_known": d_sae}
        )
    others = [f"seed{n}" for n in range(n_views) if f"seed{n}" != view]
    matches = {other: _draw_matches(d_sae, draw) for other in others}
    for other, (latents, cosines) in matches.items():
        put(folder, f"{view}/columns/match_{other}", {"latents": pack(latents), "values": pack(cosines)})
    for start in range(0, d_sae, BLOCK):
        block = range(start, min(start + BLOCK, d_sae))
        put(
            folder,
            f"{view}/latents/{start // BLOCK}",
            {i: _make_latent(i, emd[i], maps[i], d_sae, n_images, matches, draw) for i in block},
        )
    divided = {"by": {"name": by.name, "words": by.words, "above": above, "below": below}} if by is not By.cds else {}
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
        "groups": {"names": [below, above], "rule": "half of the mass", "gamma": gamma} | divided,
        "landmarks": [{"name": "chance", "value": 0.11}, {"name": "position-locked", "value": 0.14}],
        "columns": columns,
        "block_size": BLOCK,
        "images": {"train": shown},
        "matched_by": dict.fromkeys(others, "cosine of decoder rows"),
    }


def _draw_maps(n, draw):
    maps = draw.random((n, GRID, GRID)) * (draw.random((n, GRID, GRID)) < 0.15)
    maps[:, 3, 4] = 1.0
    return maps


def _silence(maps):
    maps[[0, 2]] = 0
    return maps


def _draw_pairs(n, draw):
    """Maps of both crops: latents differ in how much the second crop's differ; a tenth of them is silent."""
    square = draw.random((n, K_MAX, GRID + SHIFT, GRID + SHIFT)) * (draw.random((n, K_MAX, 9, 9)) < 0.15)
    square[:, :, 3, 4] = 1.0
    other = draw.random(square.shape) * (draw.random(square.shape) < 0.15)
    mixed = square + draw.beta(1, 2, (n, 1, 1, 1)) * (other - square)
    maps = np.stack([square[:, :, :GRID, :GRID], mixed[:, :, SHIFT:, SHIFT:]], axis=2)
    maps[draw.random((n, K_MAX, 2)) < np.where(draw.random(n) < 0.1, 0.5, 0.03)[:, None, None]] = 0
    maps[draw.random(maps.shape[:3]) < 0.01, 1:, 1:] = 0
    return maps


def _measure_pairs(maps):
    shared = (
        shared_region(maps[:, :, crop - 1], SHIFT, crop).reshape(-1, GRID - SHIFT, GRID - SHIFT) for crop in (1, 2)
    )
    return compute_emd(*shared).reshape(-1, K_MAX) / compute_d_grid(GRID, SHIFT)


def _draw_matches(d_sae, draw):
    found = draw.random(d_sae) < 0.9
    cosines = np.where(found, draw.random(d_sae), np.nan).astype(np.float32)
    return np.where(found, draw.permutation(d_sae), -1).astype(np.int32), cosines


def _make_latent(latent, emd, maps, d_sae, n_images, matches, draw):
    images = draw.choice(n_images, K_MAX, replace=False)
    few = draw.choice(n_images, 5, replace=False)
    near = lambda: {"latents": draw.choice(d_sae, 6, replace=False), "values": np.sort(draw.random(6))[::-1]}  # noqa: E731
    return {
        "ranks": {
            "images": images,
            "emd": emd,
            "activation": np.sort(draw.random(K_MAX))[::-1],
            "maps": pack_maps(maps.reshape(-1, GRID, GRID)),
        },
        "levels": {
            "at": [0.95, 0.75, 0.5, 0.25, 0.05],
            "images": few,
            "activation": np.sort(draw.random(5))[::-1],
            "maps": pack_maps(_draw_maps(5, draw)),
        },
        "random": {"images": few[:4], "activation": [0, 0.4, 0, 1], "maps": pack_maps(_silence(_draw_maps(4, draw)))},
        "spread": {
            "edges": np.linspace(0, 1, 11),
            "counts": draw.integers(0, 9, 10),
            "n_firing": 30,
            "n_images": n_images,
        },
        "near": {"decoder": near(), "coactive": near()},
        "classes": {"classes": [2, 0, 1], "values": [0.5, 0.3, 0.2]},
        "elsewhere": [
            {"view": other, "latent": latents[latent], "value": cosines[latent]}
            for other, (latents, cosines) in matches.items()
            if latents[latent] >= 0
        ],
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
