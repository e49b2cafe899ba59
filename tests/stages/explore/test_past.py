"""explore.of: an explorer of scores that exist, whatever became of their images: nothing anew, no wrong picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.config.past import find_scores, reopen
from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import plan_stage, run
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.stages.explore.past import advise_past
from infoscope.stages.explore.stage import Explore
from infoscope.stages.images import open_split
from infoscope.stages.rank import Rank
from infoscope.stages.tokens import Tokens
from tests.support.explorer_files import read_value
from tests.support.pipeline_samples import Recorder, copy_run, find_folder, make_tiny_config, run_tiny, save_noise

N_IMAGES, N_CLASSES = 36, 3
MADE = ["thumbnails", "explore"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run with its explorer while all images were there, and these."""
    base = tmp_path_factory.mktemp("past")
    for i in range(N_IMAGES):
        save_noise(base / f"photos/class{i % N_CLASSES}/{i:02d}.png", seed=i)
    settings = ["data=class_folders", f"data.root={base / 'photos'}", "explore.n_browsed=6"]
    Tokens.at(Context(make_tiny_config(base / "run", *settings), Recorder()), "test").get()
    run_tiny(base / "run", *settings, "stage=score")
    run_tiny(base / "run", *settings, "stage=explore")
    return base / "run", base / "photos"


@pytest.fixture
def moved(made: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A copy of that run without its explorer, and of the images, which lie elsewhere."""
    shutil.copytree(made[1], tmp_path / "elsewhere")
    return copy_run(made[0], tmp_path / "copy", but=tuple(MADE)), tmp_path / "elsewhere"


def give(output_dir: Path, *more: str, of: Path | None = None) -> list[str]:
    scores = find_folder(output_dir, "score") if of is None else of
    own = ("logger=none", "trainer.progress=false", "trainer.device=cpu", "explore.n_browsed=6")
    return ["stage=explore", f"explore.of={scores}", *own, *more]


def explore(output_dir: Path, *more: str, of: Path | None = None) -> tuple[Recorder, Path]:
    """Run the command; return what was said, and the explorer."""
    said, given = Recorder(), give(output_dir, *more, of=of)
    run(compose(given), said, Job(overrides=tuple(given)))
    (page,) = (line.split()[1] for line in said.text.splitlines() if line.startswith("explorer "))
    return said, Path(page).parent


def find_image(folder: Path, split: str, image: int) -> Path:
    return folder / f"data/images/{split}/{image // 1000:04d}/{image:07d}.js"


def read_names(folder: Path) -> dict[int, dict[str, Any]]:
    return {int(image): about for image, about in read_value(folder, "sets/train/names/0").items()}


def list_files(output_dir: Path) -> dict[str, int]:
    """All files of artifacts, and when they were written."""
    root = output_dir / "artifacts"
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def list_ids(made: tuple[Path, Path]) -> list[str]:
    config = make_tiny_config(made[0], "data=class_folders", f"data.root={made[1]}")
    return open_split(Context(config, Recorder()), "train").image_ids


@pytest.fixture
def known(made: tuple[Path, Path]) -> Path:
    return find_folder(made[0], "explore")


def test_what_is_gone_is_grey_and_all_else_is_what_it_was(
    made: tuple[Path, Path], moved: tuple[Path, Path], known: Path
) -> None:
    (output_dir, photos), ids, before = moved, list_ids(made), list_files(moved[0])
    deleted, renamed, swapped, broken = 1, 5, 9, 12
    (photos / ids[deleted]).unlink()
    (photos / ids[renamed]).rename(photos / ids[renamed].replace(".png", "_new.png"))
    shutil.copy(photos / ids[swapped + 1], photos / ids[swapped])
    (photos / ids[broken]).write_bytes(b"no picture")
    gone = {deleted, renamed, swapped, broken}
    said, folder = explore(output_dir, f"explore.root={photos}")
    assert said.stages("built") == MADE
    assert list_files(output_dir).items() >= before.items()  # nothing else is written anew
    assert f"4 of {len(ids)} train images gone, or not what they were" in said.text
    assert "4 images cannot be read any more; a grey tile stands for each." in said.text
    manifest, names, then = read_value(folder, "manifest"), read_names(folder), read_names(known)
    assert {image: {"id": of["id"], "label": of["label"]} for image, of in names.items()} == then
    assert {image for image, of in names.items() if of.get("is_missing")} == gone
    for image in names:
        own = find_image(folder, "train", image)
        assert own.exists() == (image not in gone)
        assert image in gone or own.read_bytes() == find_image(known, "train", image).read_bytes()
    about, before_about = manifest["sets"]["train"], read_value(known, "manifest")["sets"]["train"]
    assert about == before_about | {"n_missing": 4}
    assert not gone & set(manifest["views"][0]["images"]["train"])
    assert manifest["facts"]["missing images"].startswith("4 of ")
    assert "<dd>4 of " in (folder / "tables.html").read_text()
    assert (folder / "latents_seed0.csv").read_bytes() == (known / "latents_seed0.csv").read_bytes()
    for detail, of in zip(*(read_value(where, "seed0/latents/0").values() for where in (folder, known)), strict=True):
        assert detail == of
    test_images = manifest["views"][0]["images"]["test"]
    assert test_images == read_value(known, "manifest")["views"][0]["images"]["test"] != []
    assert read_value(folder, f"seed0/images/test-{test_images[0]}") == read_value(
        known, f"seed0/images/test-{test_images[0]}"
    )


def test_all_of_them_may_be_gone_and_come_back(made: tuple[Path, Path], moved: tuple[Path, Path], known: Path) -> None:
    output_dir, photos = moved
    photos.rename(photos.with_name("away"))
    said, folder = explore(output_dir, f"explore.root={photos}")
    assert said.stages("built") == MADE
    assert "check explore.root" in said.text
    names, manifest = read_names(folder), read_value(folder, "manifest")
    assert all(of["is_missing"] for of in names.values())
    assert {image: of["id"] for image, of in names.items()} == {i: of["id"] for i, of in read_names(known).items()}
    assert not (folder / "data/images").exists()
    assert manifest["views"][0]["images"] == {}
    photos.with_name("away").rename(photos)
    again, whole = explore(output_dir, f"explore.root={photos}")
    assert again.stages("built") == MADE
    assert whole.name == known.name  # as without explore.of
    assert "cannot be read" not in again.text


def test_a_run_may_be_named_and_a_finished_explorer_is_found(made: tuple[Path, Path], known: Path) -> None:
    scores, record = find_folder(made[0], "score"), made[0] / "runs/one"
    record.mkdir(parents=True)
    (record / "artifacts.json").write_text(json.dumps({"artifacts": {scores.name[-16:]: "score/any"}}))
    assert find_scores(record) == scores
    said, folder = explore(made[0], of=record)
    assert said.stages("built") == []
    assert folder == known


def test_other_groups_and_seeds_may_be_asked_for(made: tuple[Path, Path]) -> None:
    given = give(made[0], "partition.gamma=0.3", "seeds=[0]", "trainer.n_threads=1")
    config = reopen(compose(given), given)
    assert (config.partition.gamma, config.seeds, config.trainer.n_threads) == (0.3, [0], 1)
    assert (config.data.root, config.sae.kind, config.output_dir) == (str(made[1]), "topk", str(made[0]))
    assert reopen(config, given) == config
    ctx = Context(config, Recorder())
    assert [step.what for step in plan_stage(ctx) if step.n_built] == ["latents, seed 0", "explore, 32 latents"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["scope.k_cds=3"], "drop scope.k_cds; where their images lie now is explore.root"),
        (["stage=score"], "explore.of is read by stage=explore alone"),
        (["explore.of=nowhere"], "Expected in explore.of= the folder of scores"),
        (["seeds=[0,7]"], "makes nothing before them anew"),
    ],
)
def test_what_it_cannot_do_is_said_in_a_sentence(made: tuple[Path, Path], more: list[str], words: str) -> None:
    before = list_files(made[0])
    given = [*give(made[0]), *more]
    given = list({override.partition("=")[0]: override for override in given}.values())
    with pytest.raises(InputError, match=words):
        run(compose(given), Recorder(), Job(overrides=tuple(given)))
    assert list_files(made[0]) == before


def test_without_its_sae_nothing_is_trained(moved: tuple[Path, Path]) -> None:
    shutil.rmtree(moved[0] / "artifacts/train_sae")
    before = list_files(moved[0])
    with pytest.raises(InputError, match="what belongs to them"):
        explore(moved[0], f"explore.root={moved[1]}")
    assert list_files(moved[0]) == before


def test_without_it_other_images_are_other_data_and_that_is_said(
    moved: tuple[Path, Path], made: tuple[Path, Path]
) -> None:
    output_dir, photos = moved
    config = make_tiny_config(output_dir, "stage=explore", "data=class_folders", f"data.root={photos}")
    quiet = Recorder()
    advise_past(Context(config, quiet))
    (photos / list_ids(made)[1]).unlink()
    said = Recorder()
    advise_past(Context(config, said))
    assert "explore.of" not in quiet.text
    assert f"explore.of={find_folder(output_dir, 'score')}" in " ".join(said.text.split())
    shutil.rmtree(photos)
    with pytest.raises(InputError, match=r"explore\.of=OUTPUT_DIR/artifacts/score/NAME shows"):
        open_split(Context(config, Recorder()), "train")


def test_tokens_of_earlier_versions_show_all_or_nothing(moved: tuple[Path, Path], made: tuple[Path, Path]) -> None:
    output_dir, photos = moved
    for tokens in (output_dir / "artifacts/tokens").glob("[!.]*"):
        manifest = json.loads((tokens / "manifest.json").read_text())
        del manifest["files"]["images.parquet"]
        (tokens / "manifest.json").write_text(json.dumps(manifest))
        (tokens / "images.parquet").unlink()
    said, folder = explore(output_dir, f"explore.root={photos}")
    assert read_value(folder, "manifest")["sets"]["train"]["n_missing"] == 0
    (photos / list_ids(made)[1]).unlink()
    said, folder = explore(output_dir, f"explore.root={photos}")
    assert "do not say what they were called" in said.text
    about = read_value(folder, "manifest")["sets"]["train"]
    assert about["n_missing"] == about["n_shown"] > 0


def test_what_would_need_all_images_is_left_out(made: tuple[Path, Path], tmp_path: Path) -> None:
    settings = ["data=class_folders", f"data.root={made[1]}", "data.store_tokens=false", "data.test_share=0"]
    run_tiny(tmp_path, *settings, "stage=score")
    said, folder = explore(tmp_path, f"explore.root={tmp_path / 'gone'}")
    assert said.stages("built") == ["latents", *MADE]
    (view,) = read_value(folder, "manifest")["views"]
    assert "levels_of" not in view
    assert "random images is left out" in said.text
    details = read_value(folder, "seed0/latents/0")
    assert {"ranks", "near", "elsewhere"} == set(details["0"])
    assert set(details["0"]["near"]) == {"decoder"}
    ranking = Rank.at(Context(reopen(compose(give(tmp_path))), Recorder()), 0).load()
    shown = np.unique(ranking.top_images)
    assert sorted(read_names(folder)) == shown[shown >= 0].tolist()
    assert Explore.at(Context(reopen(compose(give(tmp_path))), Recorder())).folder != folder  # all are there again
