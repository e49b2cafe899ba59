"""The folder of an explorer: its files say what the artifacts hold, each image is there once, losses are told."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infoscope.data.images import ImageError
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import check, plan_stage
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.places import World
from infoscope.scope.config import RankBy
from infoscope.stages.explore.latents import list_ranks
from infoscope.stages.explore.pictures import Thumbnails, write_thumbnails
from infoscope.stages.explore.stage import Explore, ExplorerFacts, say_explorer
from infoscope.stages.explore.views import name_view
from infoscope.stages.images import open_split
from infoscope.stages.latents import Latents
from infoscope.stages.rank import Rank
from infoscope.stages.report.stage import NO_EXPLORER, Report
from infoscope.stages.score.stage import scope_of
from infoscope.stages.tokens import Tokens, find_sizes
from tests.support.explorer_files import read_array, read_maps, read_value
from tests.support.pipeline_samples import Recorder, copy_run, find_folder, finish_tiny_run, make_tiny_config, run_tiny
from tests.support.quick_processes import quick_sharing

STAGE = "stage=explore"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """The output folder of the tiny run with its explorer, and what was said."""
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path_factory.mktemp("explored"), but=("report",))
    return output_dir, run_tiny(output_dir, STAGE)


@pytest.fixture(scope="module")
def ctx(made: tuple[Path, Recorder]) -> Context:
    return Context(make_tiny_config(made[0], STAGE), Recorder())


@pytest.fixture(scope="module")
def folder(ctx: Context) -> Path:
    return Explore.at(ctx).folder


def read_thumbnail(folder: Path, split: str, image: int) -> np.ndarray:
    url = read_value(folder, f"images/{split}/{image // 1000:04d}/{image:07d}")
    return np.array(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/webp;base64,")))))


def list_thumbnails(folder: Path, split: str) -> list[int]:
    return sorted(int(path.stem) for path in (folder / "data/images" / split).rglob("*.js"))


def lose(load: Callable[..., np.ndarray], lost: int, asked: list[int] | None = None) -> Callable[..., np.ndarray]:
    """Return what loads images but for one that is gone; `asked` gets all that are asked for."""

    def load_others(self: Any, index: int, size_px: int) -> np.ndarray:
        if asked is not None:
            asked.append(index)
        if index == lost:
            raise ImageError(f"{lost}.png", "gone")
        return load(self, index, size_px)

    return load_others


def test_the_manifest_says_what_is_there(ctx: Context, folder: Path) -> None:
    manifest = read_value(folder, "manifest")
    (view,) = manifest["views"]
    scope, table = scope_of(ctx, 0), Latents.at(ctx, 0).load()
    assert (view["id"], view["d_sae"], view["grid"], view["shift"]) == (
        name_view(0),
        len(table),
        scope.scores.grid,
        scope.scores.shift_patches,
    )
    assert (view["k_cds"], view["k_max"], view["set"], view["diagonal"]) == (2, 3, "train", "main")
    assert (view["ranked_by"], view["emd"]) == ("max", "exact")
    by = {"name": "cds", "words": "CDS", "above": "high", "below": "low"}
    assert view["groups"] == {"names": ["low", "high"], "rule": scope.rule, "gamma": scope.partition.gamma, "by": by}
    marks = {mark["name"]: mark["value"] for mark in view["landmarks"]}
    assert marks["position-locked feature"] == scope.locked
    assert marks["chance of two uniform patches"] == scope.uniform_chance
    assert manifest["sets"]["train"]["n_images"] == len(open_split(ctx, "train"))
    assert manifest["sets"]["train"]["classes"] == list(open_split(ctx, "train").class_names)
    assert manifest["bytes"]["total"] == manifest["bytes"]["images"] + manifest["bytes"]["data"] > 0
    assert (folder / "index.html").is_file()
    assert (folder / "page" / "main.js").is_file()


def test_columns_are_those_of_the_table_of_latents(ctx: Context, folder: Path) -> None:
    table = Latents.at(ctx, 0).load()
    (view,) = read_value(folder, "manifest")["views"]
    assert [column["name"] for column in view["columns"]] == [column.name for column in table]
    assert {"cds", "cds_low", "cds_high", "group", "label_entropy", "ms", "support"} <= {c.name for c in table}
    for said, column in zip(view["columns"], table, strict=True):
        packed = read_value(folder, f"{view['id']}/columns/{column.name}")
        if said["kind"] == "text":
            np.testing.assert_array_equal(np.array(packed["texts"])[read_array(packed["codes"])], column.values)
        else:
            np.testing.assert_array_equal(read_array(packed).astype(column.values.dtype), column.values)
            assert said["kind"] == ("switch" if column.values.dtype == bool else "number")
        assert (said["heading"], said["unit"], said["source"]) == (column.heading, column.unit, column.source)
        assert said["n_known"] == column.n_known


def test_ranks_are_those_of_the_artifacts(ctx: Context, folder: Path) -> None:
    scores, ranking = scope_of(ctx, 0).scores, Rank.at(ctx, 0).load()
    (view,) = read_value(folder, "manifest")["views"]
    n_seen = 0
    for block in range(-(-view["d_sae"] // view["block_size"])):
        for latent, about in read_value(folder, f"{view['id']}/latents/{block}").items():
            latent, ranks = int(latent), about["ranks"]
            known = np.flatnonzero(ranking.top_images[latent] >= 0)
            assert latent // view["block_size"] == block
            assert ranks["images"] == ranking.top_images[latent, known].tolist()
            assert ranks["activation"] == ranking.top_values[latent, known].tolist()
            emd = np.array(ranks["emd"], dtype=float)  # null: there is no distance
            np.testing.assert_array_equal(emd, scores.emd[latent, known])
            maps = np.asarray(scores.maps[latent, known]).reshape(-1, view["grid"], view["grid"])
            error = np.abs(read_maps(ranks["maps"], view["grid"]) - maps).max(initial=0)
            assert error <= 1e-5 * maps.max(initial=0)
            n_seen += 1
    assert n_seen == view["d_sae"]


@pytest.mark.parametrize(("by", "name"), [("max", "activation"), ("mean", "mean_activation"), ("drawn", None)])
def test_the_value_that_ranks_is_called_what_it_is(ctx: Context, by: str, name: str | None) -> None:
    scores, ranking = scope_of(ctx, 0).scores, replace(Rank.at(ctx, 0).load(), rank_by=RankBy[by])
    ranks = list_ranks(scores, ranking, range(4), 3)[2]["ranks"]
    assert set(ranks) == {"images", "emd", "maps", *([name] if name else [])}
    if name:
        np.testing.assert_array_equal(ranks[name], ranking.top_values[2, : len(ranks["images"])])


def test_each_image_that_is_shown_is_there_once(ctx: Context, folder: Path) -> None:
    shown = np.unique(Rank.at(ctx, 0).load().top_images)
    shown = shown[shown >= 0].tolist()
    assert set(shown) <= set(list_thumbnails(folder, "train"))
    about = read_value(folder, "manifest")["sets"]["train"]
    images, sizes = open_split(ctx, "train"), find_sizes(ctx)
    names = read_value(folder, "sets/train/names/0")
    assert sorted(map(int, names)) == list_thumbnails(folder, "train")
    assert len(names) == about["n_shown"]
    for image in shown[:4]:
        whole = images.load(image, (sizes.grid + 1) * sizes.patch_px)
        thumbnail = read_thumbnail(folder, "train", image)
        assert thumbnail.shape == (about["thumbnail_px"], about["thumbnail_px"], 3) == whole.shape  # never enlarged
        assert np.abs(thumbnail.astype(float) - whole).mean() < 12
        label = int(images.labels("class")[image])
        assert names[str(image)] == {"id": images.image_ids[image], "label": label}


def test_large_images_become_small_thumbnails(made: tuple[Path, Recorder], tmp_path: Path) -> None:
    ctx = Context(make_tiny_config(made[0], STAGE, "explore.thumbnail_px=24"), Recorder())
    assert write_thumbnails(ctx, tmp_path, {"train": np.array([1, 5])}) == {"train": []}
    assert read_thumbnail(tmp_path, "train", 5).shape == (24, 24, 3)


def test_what_was_written_is_not_written_again_and_what_is_lost_is_told(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infoscope.stages.explore.pictures.PART_IMAGES", 2)
    images, shown = open_split(ctx, "train"), np.array([0, 1, 2, 3, 4])
    asked: list[int] = []
    monkeypatch.setattr(type(images), "load", lose(type(images).load, 3, asked))
    monkeypatch.setattr(ctx.config.data, "n_workers", 0)
    assert write_thumbnails(ctx, tmp_path, {"train": shown}) == {"train": [3]}
    assert asked == shown.tolist()
    (tmp_path / "train-00002.json").unlink()  # as if it had been killed in the last part
    assert write_thumbnails(ctx, tmp_path, {"train": shown}) == {"train": [3]}
    assert asked == [*shown.tolist(), 4]
    assert list_thumbnails(tmp_path, "train") == [0, 1, 2, 4]


def test_the_end_says_what_to_open_how_large_it_is_and_what_is_lost(made: tuple[Path, Recorder], folder: Path) -> None:
    said, found = made[1].text, ExplorerFacts.load(folder)
    assert f"{folder / 'index.html'}" in said
    assert f"{found.n_latents:,} latents in 1 view" in said
    assert f"{found.n_images:,} images" in said
    assert found.n_missing == 0
    assert "cannot be read" not in said
    large = ExplorerFacts(1, 65536, 200_000, 3, 2 * 10**9, 10**9)
    told = " ".join(say_explorer(folder, large))
    assert "3 images cannot be read any more; a grey tile stands for each." in told
    assert f"infoscope view {folder}" in told


def test_a_lost_image_is_counted_and_named_on_the_page(
    made: tuple[Path, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(made[0], tmp_path, but=("explore", "thumbnails"))
    config = make_tiny_config(output_dir, STAGE, "data.n_workers=0")
    scenes = type(open_split(Context(config, Recorder()), "train"))
    lost = int(Rank.at(Context(config, Recorder()), 0).load().top_images.max())
    monkeypatch.setattr(scenes, "load", lose(scenes.load, lost))
    said = run_tiny(output_dir, STAGE, "data.n_workers=0")
    assert said.stages("built") == ["thumbnails", "explore"]
    assert "1 image cannot be read any more; a grey tile stands for it." in said.text
    folder = Explore.at(Context(config, Recorder())).folder
    thumbnails = find_folder(output_dir, "thumbnails")
    assert f"Once they can be read: delete {folder} and {thumbnails}," in " ".join(said.text.split())
    assert read_value(folder, "manifest")["sets"]["train"]["n_missing"] == 1
    assert read_value(folder, "sets/train/names/0")[str(lost)]["is_missing"] is True
    assert lost not in list_thumbnails(folder, "train")


def test_another_threshold_shows_the_same_files_of_images(made: tuple[Path, Recorder], folder: Path) -> None:
    said = run_tiny(made[0], STAGE, "partition.gamma=0.2")
    assert said.stages("built") == ["latents", "explore"]
    other = Explore.at(Context(make_tiny_config(made[0], STAGE, "partition.gamma=0.2"), Recorder())).folder
    assert read_value(other, "manifest")["views"][0]["groups"]["gamma"] == 0.2
    (first, *_), (second, *_) = (sorted((of / "data/images").rglob("*.js")) for of in (folder, other))
    assert first.samefile(second)


@pytest.mark.long  # starts a process
def test_two_processes_make_what_one_makes(made: tuple[Path, Recorder], folder: Path, tmp_path: Path) -> None:
    apart = ("latents", "levels", "thumbnails", "explore")
    output_dir = copy_run(made[0], tmp_path, but=apart)
    with quick_sharing():
        said = run_tiny(output_dir, STAGE, "trainer.n_processes=2")
    assert said.stages("built") == list(apart)
    files, others = (
        json.loads((of / "manifest.json").read_text())["files"] for of in (folder, find_folder(output_dir, "explore"))
    )
    assert {name for name in files if files[name] != others.get(name)} <= {"config.yaml"}


def test_the_report_links_it(made: tuple[Path, Recorder], folder: Path, tmp_path: Path) -> None:
    ctx = Context(make_tiny_config(made[0]), Recorder())
    page, key = Report().make_page(ctx), Report().report_key(ctx)
    assert page.explorer == folder / "index.html"
    assert key["explorer"] == Explore.at(ctx).hash
    assert NO_EXPLORER not in page.note
    alone = Context(make_tiny_config(copy_run(made[0], tmp_path, but=("explore",))), Recorder())
    assert Report().report_key(alone) == {name: of for name, of in key.items() if name != "explorer"}
    assert NO_EXPLORER in Report().make_page(alone).note


def test_a_second_run_reuses_it_and_a_setting_that_shows_other_things_does_not(
    made: tuple[Path, Recorder], ctx: Context
) -> None:
    assert "explore" in run_tiny(made[0], STAGE).stages("reused")
    for setting in ("explore.n_images=2", "explore.thumbnail_px=64", "explore.n_near=3", "explore.n_browsed=4"):
        other = Context(make_tiny_config(made[0], STAGE, setting), Recorder())
        assert Explore.at(other).hash != Explore.at(ctx).hash
        has_other_images = setting != "explore.n_near=3"
        assert (Thumbnails.at(other).hash != Thumbnails.at(ctx).hash) == has_other_images


def test_a_plan_counts_latents_images_and_bytes(made: tuple[Path, Recorder], ctx: Context, folder: Path) -> None:
    again = Context(make_tiny_config(made[0], STAGE, "explore.thumbnail_px=64"), Recorder())
    steps = {step.what: step for step in plan_stage(again) if step.n_built}
    found = ExplorerFacts.load(folder)
    images, latents = f"thumbnails, {found.n_images:,} images", f"explore, {found.n_latents:,} latents"
    assert list(steps) == [images, latents]
    assert not steps[images].is_bound
    assert 0.3 < steps[images].work.disk_bytes / found.image_bytes < 1.5  # theirs are larger
    assert 0.3 < steps[latents].work.disk_bytes / found.data_bytes < 3
    assert [step.what for step in plan_stage(ctx) if step.n_built] == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.site=pooled"], "no maps and no CDS: stage=describe shows such features"),
        (["data=captions", "data.root=captions.txt", "model.site=pooled"], "no maps and no CDS: stage=describe shows"),
        (["sae.tokens=cls"], "An SAE of CLS tokens has no activation maps"),
    ],
)
def test_features_without_a_place_in_the_picture_are_refused_early(
    tmp_path: Path, settings: list[str], said: str
) -> None:
    ctx = Context(make_tiny_config(tmp_path, STAGE, "model=scenes_clip", *settings), Recorder())
    with pytest.raises(InputError, match=said):
        check(ctx)
    assert not (tmp_path / "artifacts").exists()


def test_what_one_process_has_asked_alone_all_ask_together(
    made: tuple[Path, Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens.at(Context(make_tiny_config(made[0], STAGE), Recorder()), "train")
    together: list[bool] = []
    monkeypatch.setattr(processes, "_world", World(rank=0, size=2))
    monkeypatch.setattr(processes, "broadcast", lambda value: together.append(not processes.is_apart()) or value)
    with processes.alone():
        assert tokens.exists()
    assert tokens.exists()
    assert tokens.exists()
    assert together == [False, True]
