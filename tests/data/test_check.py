"""stage=check_data reads everything, stops at nothing, and refuses what is wrong in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from infoscope.data import check as check_module
from infoscope.data.photographs import PhotographFiles
from infoscope.runtime import parts
from infoscope.runtime.errors import InputError
from tests.support.pipeline_samples import run_tiny


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(6):
        Image.effect_noise((60, 40), 50).convert("RGB").save(folder / f"{i}.jpg")
    return folder


def check(tmp_path: Path, root: Path, *more: str) -> str:
    return run_tiny(tmp_path, "stage=check_data", "data=image_folder", f"data.root={root}", *more).text


def test_what_is_found_is_printed_and_written(tmp_path: Path, pictures: Path) -> None:
    text = check(tmp_path, pictures, "data.test_share=0.4", "model=scenes_clip")
    assert "image_folder-train" in text
    assert "runs with" not in text  # no model is run
    written = [
        json.loads((tmp_path / "check_data" / f"data-image_folder-{s}.json").read_text()) for s in ("train", "test")
    ]
    assert sum(split["n_images"] for split in written) == 6
    assert not any(split["errors"] for split in written)
    assert not (tmp_path / "artifacts").exists()


def test_what_is_left_out_is_counted_and_named(tmp_path: Path, pictures: Path) -> None:
    for name in ("a.heic", "b.heic", "Thumbs.db", ".hidden.jpg"):
        (pictures / name).touch()
    text = check(tmp_path, pictures, "data.test_share=0")
    assert "4 of 10 files" in text
    assert "2 .heic: a.heic, b.heic" in text
    written = json.loads((tmp_path / "check_data" / "data-image_folder-train.json").read_text())
    assert written["left_out"]["counts"] == {".heic": 2, ".db": 1, "hidden": 1}
    assert written["left_out"]["first"]["hidden"] == [".hidden.jpg"]
    said = f"{pictures}: left out 4 of 10 files: 2 .heic (a.heic, b.heic), 1 .db (Thumbs.db), 1 hidden (.hidden.jpg)"
    assert " ".join(text.split()).count(said) == 1  # as any run says it, once for both splits


def test_everything_wrong_is_listed_and_the_first_is_said(tmp_path: Path, pictures: Path) -> None:
    for name in ("2.jpg", "4.jpg"):
        whole = (pictures / name).read_bytes()
        (pictures / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"Found 2 wrong, all listed in .*check_data; the first in .*2\.jpg"):
        check(tmp_path, pictures, "data.test_share=0")
    errors = json.loads((tmp_path / "check_data" / "data-image_folder-train.json").read_text())["errors"]
    assert errors.keys() == {"2.jpg", "4.jpg"}


@pytest.mark.long
def test_the_data_of_probes_are_read_too(tmp_path: Path) -> None:
    other = "probe_data.depth={kind: scenes, seed: 5, n_train: 3, n_test: 2}"
    run_tiny(tmp_path, "stage=check_data", "data.n_train=4", "data.n_test=2", other)
    written = {path.name for path in (tmp_path / "check_data").iterdir()}
    both = {f"{use}-scenes-{split}.json" for use in ("data", "depth") for split in ("train", "test")}
    assert written == both


@pytest.mark.long
def test_a_set_that_is_not_whole_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for split, part in (("training", "train"), ("validation", "val")):
        for kind, mode in (("images", "RGB"), ("annotations", "L")):
            (root / kind / split).mkdir(parents=True)
            name = f"ADE_{part}_00000001" + (".jpg" if kind == "images" else ".png")
            Image.new(mode, (30, 20), 3 if mode == "L" else (9, 9, 9)).save(root / kind / split / name)
    options = ["stage=check_data", "data=ade20k", f"data.root={root}", "probe.tasks=[segmentation]"]
    with pytest.raises(InputError, match=r"Found 2 wrong.*expected the 20,210 images that were published, found 1;"):
        run_tiny(tmp_path, *options)
    assert "1 of 2,000 published" in run_tiny(tmp_path, *options, "data.subset=true").text


@pytest.mark.long
def test_an_interrupted_check_goes_on_and_reads_what_was_wrong_again(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_module, "_AHEAD", 1)
    monkeypatch.setattr(parts, "SHARE_OF_SAVING", 0)
    read, check_image = [], PhotographFiles.check_image

    def give_up(self: PhotographFiles, index: int) -> dict[str, str]:
        read.append(index)
        if len(read) == 2:
            raise InputError("The disk of 1.jpg is away for a moment.")
        if len(read) == 5:
            raise KeyboardInterrupt
        return check_image(self, index)

    monkeypatch.setattr(PhotographFiles, "check_image", give_up)
    with pytest.raises(KeyboardInterrupt):
        check(tmp_path, pictures, "data.test_share=0", "trainer.save_every_s=0")
    check(tmp_path, pictures, "data.test_share=0")
    assert read == [0, 1, 2, 3, 4, 1, 4, 5]
    (written,) = (tmp_path / "check_data").glob("*train*")
    found = json.loads(written.read_text())
    assert found["errors"] == {}
    assert found["facts"]["mode"] == {"RGB": 6}

    (pictures / "5.jpg").write_bytes(b"other contents")
    with pytest.raises(InputError, match=r"Found 1 wrong.*5\.jpg"):
        check(tmp_path, pictures, "data.test_share=0")
    assert not list((tmp_path / "check_data").glob("*.pt"))
