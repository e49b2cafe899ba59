"""What the log of a run gets of an explorer: each group's extremes with pictures, and all latents."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infoscope.explorer.format import put, put_thumbnail, read, unpack_maps
from infoscope.explorer.tables import read_latents
from infoscope.stages.explore import extremes
from infoscope.stages.explore.extremes import choose_extremes, draw_pairs, log_latents
from infoscope.tracking.config import LoggerConfig, LoggerKind
from infoscope.tracking.names import RunName
from infoscope.tracking.tracker import JobTracking, Tracker
from tests.support.explorer_sample import EVIL, GRID, SHIFT, write_sample

SIDE_PX = (GRID + SHIFT) * extremes.CROP_PX // GRID
NAME = RunName("demo", "explore", "demo-explore", "0123")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explorer")
    write_sample(folder, d_sae=70, n_images=20)
    return folder


@pytest.fixture
def manifest(folder: Path) -> dict[str, Any]:
    """Its second view is another explorer's."""
    manifest = read(folder, "manifest")
    manifest["views"][1]["from"] = "ab" * 8
    return manifest


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_extremes_are_those_of_each_group(folder: Path, manifest: dict[str, Any]):
    latents = read_latents(folder, manifest["views"][0])
    chosen = choose_extremes(latents, 2)
    cds, groups = latents["cds"], latents["group"]
    for group in ("low", "high"):
        of = cds[groups == group]
        expected = [*np.sort(of)[:2], *np.sort(of)[-2:]]
        assert [cds[latent] for latent in chosen if groups[latent] == group] == expected
    assert len(chosen) == 8
    assert (
        choose_extremes(latents, 1000) == np.flatnonzero(np.isfinite(cds))[np.argsort(cds[np.isfinite(cds)])].tolist()
    )


def test_the_log_gets_both_tables(folder: Path, manifest: dict[str, Any], tmp_path: Path):
    with JobTracking(LoggerConfig(kind=LoggerKind.csv), NAME, {}, tmp_path, print) as tracking:
        log_latents(tracking.view("explore"), folder, manifest)
    (run,) = (tmp_path / "csv").glob("*/*")
    assert sorted(path.name for path in run.glob("explore_*.csv")) == [
        "explore_all_latents_seed0.csv",
        "explore_latents_seed0.csv",
    ]
    latents = read_latents(folder, manifest["views"][0])
    rows = read_csv(run / "explore_latents_seed0.csv")
    assert [int(row["latent"]) for row in rows] == choose_extremes(latents)
    for row in rows:
        assert row["images"] == f"explore_latents_seed0/latent_{row['latent']}.png"
        with Image.open(run / row["images"]) as picture:
            assert picture.height == extremes.CROP_PX
            assert picture.width == 8 * extremes.CROP_PX + 4 * 4 + 3 * 12
    every = read_csv(run / "explore_all_latents_seed0.csv")
    assert [float(row["cds"] or "nan") for row in every] == pytest.approx(latents["cds"], nan_ok=True, abs=0)
    assert every[3]["name"] == EVIL


def test_too_many_rows_are_left_out(folder: Path, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extremes, "MAX_ROWS", 69)
    logged: list[str] = []
    monkeypatch.setattr(Tracker, "log_table", lambda self, name, columns, rows: logged.append(name))
    log_latents(Tracker(lambda action: None, "explore"), folder, manifest)
    assert logged == ["latents_seed0"]


@pytest.mark.parametrize("diagonal", ["main", "anti"])
def test_crops_lie_where_the_score_cut_them(folder: Path, manifest: dict[str, Any], diagonal: str, tmp_path: Path):
    view = manifest["views"][0] | {"diagonal": diagonal}
    detail = read(folder, "seed0/latents/0")["5"]
    quarters = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    quarters[: SIDE_PX // 2, : SIDE_PX // 2] = 255  # the upper left is white
    put_thumbnail(tmp_path, "train", detail["ranks"]["images"][0], Image.fromarray(quarters))
    silent = {name: of for name, of in detail["ranks"]["maps"].items() if name != "values"}
    silent["values"] = detail["ranks"]["maps"]["values"] | {
        "base64": "A" * len(detail["ranks"]["maps"]["values"]["base64"].rstrip("="))
        + "=" * detail["ranks"]["maps"]["values"]["base64"].count("=")
    }
    put(tmp_path, "seed0/latents/0", {5: {"ranks": detail["ranks"] | {"maps": silent}}})
    picture = draw_pairs(tmp_path, view, 5)
    assert picture is not None
    pixels, size, patch_px = np.asarray(picture), extremes.CROP_PX, extremes.CROP_PX // GRID
    crops = [pixels[:, start : start + size].mean(axis=2) for start in (0, size + 4)]
    half = SIDE_PX // 2
    for number, crop in enumerate(crops):
        left = patch_px * (number if diagonal == "main" else 1 - number)
        is_white = crop > 200
        rows, columns = np.flatnonzero(is_white.any(axis=1)), np.flatnonzero(is_white.any(axis=0))
        assert abs(rows[-1] + 1 - (half - patch_px * number)) <= 2
        assert abs(columns[-1] + 1 - (half - left)) <= 2
    third = pixels[:, 2 * (size + 4) + 12 : 3 * size]  # of an image that is missing
    assert len(np.unique(third)) == 1


def test_heat_lies_on_active_patches(folder: Path, manifest: dict[str, Any]):
    view = manifest["views"][0]
    (maps,) = (unpack_maps(read(folder, "seed0/latents/0")["7"]["ranks"]["maps"], GRID),)
    picture = draw_pairs(folder, view, 7)
    assert picture is not None
    pixels, patch_px = np.asarray(picture).astype(float), extremes.CROP_PX // GRID
    crop = pixels[:, : extremes.CROP_PX].reshape(GRID, patch_px, GRID, patch_px, 3).mean(axis=(1, 3))
    redness = crop[..., 0] - crop[..., 2]
    scale = maps[:2].max()
    strong, silent = maps[0] > 0.6 * scale, maps[0] == 0
    assert redness[strong].min() > redness[silent].max()


def test_a_latent_without_images_has_no_picture(tmp_path: Path, manifest: dict[str, Any]):
    put(tmp_path, "seed0/latents/0", {0: {"near": {}}})
    assert draw_pairs(tmp_path, manifest["views"][0], 0) is None
