"""explore.beside: views of other explorers in this one, matched with its own, their images shared where they are the
same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from infoscope.explorer.format import put, read, unpack
from infoscope.explorer.tables import read_latents
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import check
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import FORMAT_VERSION, read_manifest
from infoscope.stages.explore.beside import Beside, read_besides, read_matchables, refuse_itself, take_views
from infoscope.stages.explore.stage import Explore
from tests.support.explorer_sample import write_sample
from tests.support.pipeline_samples import Recorder, copy_run, finish_tiny_run, make_tiny_config, run_tiny

STAGE = "stage=explore"
SMALL = ("explore.n_browsed=2", "explore.n_images=2")


class Made:
    """An explorer of the tiny run with two others beside it: another threshold, and another SAE."""

    def __init__(self, output_dir: Path) -> None:
        self.output_dir = output_dir
        self.threshold = self.make("partition.gamma=0.2")
        self.sae = self.make("sae.k=3")
        self.beside = f"explore.beside=[{self.threshold},{self.sae}]"
        self.folder = self.make(self.beside)
        self.manifest = read(self.folder, "manifest")
        self.views = {view["id"]: view for view in self.manifest["views"]}

    def make(self, *overrides: str) -> Path:
        run_tiny(self.output_dir, STAGE, *SMALL, *overrides)
        return self.context(*overrides)

    def context(self, *overrides: str) -> Path:
        return Explore.at(Context(make_tiny_config(self.output_dir, STAGE, *SMALL, *overrides), Recorder())).folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    copied = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path_factory.mktemp("beside"), but=("report",))
    return Made(copied)


def test_views_are_named_by_what_differs(made: Made) -> None:
    own, threshold, sae = made.views.values()
    hashes = [folder.name[-16:-8] for folder in (made.threshold, made.sae)]
    assert list(made.views) == ["seed0", f"gamma0.2-{hashes[0]}-seed0", f"k3-{hashes[1]}-seed0"]
    assert [view["title"] for view in (threshold, sae)] == [f"{own['title']} (gamma 0.2)", f"{own['title']} (k 3)"]
    assert [view.get("from") for view in (own, threshold, sae)] == [
        None,
        made.threshold.name[-16:],
        made.sae.name[-16:],
    ]


def test_of_one_sae_a_latent_is_itself(made: Made) -> None:
    own, threshold, _ = made.views
    for one, other in ((own, threshold), (threshold, own)):
        found = read(made.folder, f"{one}/columns/match_{other}")
        np.testing.assert_array_equal(unpack(found["latents"]), np.arange(made.views[one]["d_sae"]))
        assert made.views[one]["matched_by"][other] == "the same SAE: each latent is itself"


def test_latents_of_another_sae_are_matched_by_their_decoder_rows(made: Made) -> None:
    own, _, sae = made.views
    forth, back = (read(made.folder, f"{one}/columns/match_{other}") for one, other in ((own, sae), (sae, own)))
    latents, values = unpack(forth["latents"]), unpack(forth["values"])
    assert (latents >= 0).any()
    assert made.views[sae]["matched_by"][own].startswith("largest cosine of decoder rows")
    returned = dict(enumerate(unpack(back["latents"])))
    best = int(np.nanargmax(values))
    assert returned[int(latents[best])] == best


def test_details_name_matches_in_every_other_view(made: Made) -> None:
    for view in made.views:
        found = read(made.folder, f"{view}/latents/0")
        matches = {other: read(made.folder, f"{view}/columns/match_{other}") for other in made.views if other != view}
        for latent, detail in found.items():
            told = {one["view"]: one["latent"] for one in detail["elsewhere"]}
            expected = {other: int(unpack(of["latents"])[int(latent)]) for other, of in matches.items()}
            assert told == {other: of for other, of in expected.items() if of >= 0}


def test_numbers_and_pictures_are_those_of_the_other(made: Made) -> None:
    for view, folder in zip(list(made.views)[1:], (made.threshold, made.sae), strict=True):
        there = read(folder, "manifest")["views"][0]
        here, expected = read_latents(made.folder, made.views[view]), read_latents(folder, there)
        assert [column.name for column in here] == [column.name for column in expected]
        for column in here:
            np.testing.assert_array_equal(column.values, expected[column.name])
        assert made.views[view]["images"] == there["images"]
        for split, images in there["images"].items():
            key = f"images/{split}-{images[0]}"
            assert read(made.folder, f"{view}/{key}") == read(folder, f"{there['id']}/{key}")
        ranks = [read(at, f"{of}/latents/0")["0"]["ranks"] for at, of in ((made.folder, view), (folder, "seed0"))]
        assert ranks[0] == ranks[1]
        assert (made.folder / f"latents_{view}.csv").is_file()


def test_images_are_shared(made: Made) -> None:
    assert list(made.manifest["sets"]) == list(read(made.sae, "manifest")["sets"])
    shown = set[int]()
    for folder in (made.folder, made.threshold, made.sae):
        found = {int(path.stem) for path in (folder / "data/images/train").rglob("*.js")}
        assert len(found) == read(folder, "manifest")["sets"]["train"]["n_shown"]
        shown |= found
    assert len(shown) == made.manifest["sets"]["train"]["n_shown"]
    assert {int(image) for image in read(made.folder, "sets/train/names/0")} == shown


def test_what_stands_beside_is_part_of_the_key(made: Made) -> None:
    about = read_manifest(made.folder)
    assert about is not None
    assert about["key"]["beside"] == [folder.name[-16:] for folder in (made.threshold, made.sae)]
    assert made.context(f"explore.beside=[{made.sae}]") != made.folder
    moved = shutil.copytree(made.sae, made.output_dir / "elsewhere")
    assert made.context(f"explore.beside=[{made.threshold},{moved}]") == made.folder


def test_views_that_it_has_taken_are_not_taken_again(made: Made) -> None:
    ctx = Context(make_tiny_config(made.output_dir, STAGE, f"explore.beside=[{made.folder}]"), Recorder())
    (beside,) = read_besides(ctx)
    assert [view["id"] for view in beside.views] == ["seed0"]


def refuse(made: Made, *folders: Path | str) -> str:
    overrides = (STAGE, *SMALL, f"explore.beside=[{','.join(map(str, folders))}]")
    with pytest.raises(InputError) as caught:
        check(Context(make_tiny_config(made.output_dir, *overrides), Recorder()))
    return str(caught.value)


def test_what_is_no_explorer_is_refused(made: Made, tmp_path: Path) -> None:
    assert "found nothing: make an explorer with stage=explore" in refuse(made, tmp_path / "nothing")
    assert refuse(made, tmp_path).startswith("Expected in explore.beside= the folders of explorers, got ")
    assert refuse(made, made.sae, made.sae / "index.html") == (
        f"explore.beside= names the explorer {made.sae.name} twice: name it once."
    )
    assert refuse(made, made.output_dir).startswith(f"{made.output_dir} holds explorers of ")


def test_broken_ones_are_refused(made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made.sae, tmp_path / "copy")
    put(copy, "manifest", read(copy, "manifest") | {"format": 99})
    assert "has format 99, and this infoscope knows 1" in refuse(made, copy)
    (copy / "data/manifest.js").unlink()
    assert "is not whole, data/manifest.js cannot be read" in refuse(made, copy)
    (copy / "manifest.json").unlink()
    assert refuse(made, copy).startswith(f"The explorer in {copy} lacks its manifest.json")


def test_names_that_lead_elsewhere_are_refused(made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made.sae, tmp_path / "copy")
    whole, about = read(copy, "manifest"), json.loads((copy / "manifest.json").read_text())
    for name, value in {"name": "../../../x", "fingerprint": "../../x"}.items():
        sets = {split: of | {name: value} for split, of in whole["sets"].items()}
        put(copy, "manifest", whole | {"sets": sets})
        assert "has names that lead elsewhere" in refuse(made, copy)
    put(copy, "manifest", whole)
    (copy / "manifest.json").write_text(json.dumps(about | {"hash": "../../.."}))
    assert "lacks its manifest.json, or has that of something else" in refuse(made, copy)


@pytest.mark.parametrize(
    ("name", "value"), [("d_sae", "many"), ("block_size", 0), ("title", None), ("set", "none"), ("images", {"x": [1]})]
)
def test_a_manifest_that_lacks_something_is_refused(made: Made, tmp_path: Path, name: str, value: Any) -> None:
    copy = shutil.copytree(made.sae, tmp_path / "copy")
    whole = read(copy, "manifest")
    put(copy, "manifest", whole | {"views": [{**whole["views"][0], name: value}]})
    assert "is missing or none: make it again with stage=explore" in refuse(made, copy)


def test_an_explorer_beside_itself_is_refused(made: Made) -> None:
    plain = made.make()
    with pytest.raises(InputError, match="is the explorer of these same settings: give one of another layer"):
        made.context(f"explore.beside=[{plain}]")


# -- explorers of other images -----------------------------------------------------------------------------------------


def write_other(folder: Path, made_from: dict[str, str], fingerprint: str | None, n_views: int = 2) -> Beside:
    """Write an explorer of invented latents, as an artifact of stage=explore."""
    write_sample(folder, d_sae=70, n_images=20, n_views=n_views)
    manifest = read(folder, "manifest")
    manifest["sets"]["train"] |= {"fingerprint": fingerprint, "n_shown": 20}
    for number, view in enumerate(manifest["views"]):
        view["seed"] = number
    put(folder, "manifest", manifest)
    about = {"format_version": FORMAT_VERSION, "stage": "explore", "hash": "ab" * 8, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(about | {"key": {"made_from": made_from}}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"layer": 5}}))
    return Beside(folder, "ab" * 8, made_from, manifest, {"model.layer": 5, "data.root": "/my photos <b>"})


def take(folder: Path, beside: Beside, sets: dict[str, Any]) -> list[dict[str, Any]]:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    matchable = {
        "seed0": "It has no SAE.",
        **{beside.name_view(of["id"]): "It is gone." for of in beside.views},
    }
    return take_views(folder, beside, sets, matchable)


def test_other_images_are_a_set_of_their_own(tmp_path: Path) -> None:
    beside = write_other(tmp_path / "other", {}, "0123456789abcdef")
    sets: dict[str, Any] = {"train": {"name": "train", "fingerprint": "f" * 16, "n_shown": 3, "block_size": 1024}}
    views = take(tmp_path / "here", beside, sets)
    assert list(sets) == ["train", "train-01234567"]
    assert sets["train"]["n_shown"] == 3
    assert sets["train-01234567"]["n_shown"] == 20
    assert [view["set"] for view in views] == ["train-01234567"] * 2
    assert [view["id"] for view in views] == [f"layer5-my_photos_b-abababab-seed{n}" for n in range(2)]
    (picture,) = (tmp_path / "here/data/images/train-01234567").rglob("0000007.js")
    assert read(tmp_path / "here", "images/train-01234567/0000/0000007") == read(
        tmp_path / "other", "images/train/0000/0000007"
    )
    assert picture.stat().st_nlink == 1
    image = read(tmp_path / "here", f"{views[0]['id']}/images/train-01234567-1")
    assert image == read(tmp_path / "other", "seed0/images/train-1")
    assert views[0]["images"] == {"train-01234567": [0, 1, 2]}


def test_views_of_one_explorer_stay_matched_and_the_others_say_why_not(tmp_path: Path) -> None:
    beside = write_other(tmp_path / "other", {}, None)
    views = take(tmp_path / "here", beside, {})
    one, two = (view["id"] for view in views)
    assert views[0]["matched_by"] == {two: beside.views[0]["matched_by"]["seed1"]}
    assert views[0]["unmatched"] == {"seed0": "It is gone."}
    assert read(tmp_path / "here", f"{one}/columns/match_{two}") == read(
        tmp_path / "other", "seed0/columns/match_seed1"
    )
    for block in (0, 1):
        for detail in read(tmp_path / "here", f"{one}/latents/{block}").values():
            assert {found["view"] for found in detail["elsewhere"]} <= {two}


def test_same_images_are_there_once(tmp_path: Path) -> None:
    beside = write_other(tmp_path / "other", {}, "f" * 16)
    here = tmp_path / "here"
    put(here, "sets/train/names/0", {0: {"id": "mine", "label": 1}, 3: {"id": "lost", "label": 2, "is_missing": True}})
    put(here, "images/train/0000/0000000", "data:mine")
    sets = {"train": {"name": "train", "fingerprint": "f" * 16, "n_shown": 2, "block_size": 1024, "classes": ["a"]}}
    views = take(here, beside, sets)
    assert [view["set"] for view in views] == ["train"] * 2
    assert sets["train"] | {"classes": None} == beside.manifest["sets"]["train"] | {"classes": None}
    assert sets["train"]["classes"] == ["a"]
    assert read(here, "images/train/0000/0000000") == "data:mine"
    names = read(here, "sets/train/names/0")
    assert (len(names), names["0"]["id"], names["3"]["id"]) == (20, "mine", "photo_003.jpg")
    there = tmp_path / "other/data/images/train/0000/0000003.js"
    assert (here / "data/images/train/0000/0000003.js").samefile(there)


def test_an_explorer_that_has_lost_its_artifacts_says_which(tmp_path: Path) -> None:
    beside = write_other(
        tmp_path / "out/artifacts/explore/other", {"tokens": "0" * 16, "levels_seed0": "../.."}, None, 1
    )
    ctx = Context(make_tiny_config(tmp_path, STAGE), Recorder())
    assert read_matchables(ctx, [beside]) == {
        beside.name_view("seed0"): "What the explorer beside was made from (levels_seed0) is not in its"
        " output folder any more."
    }


def test_the_same_sources_are_the_same_explorer(tmp_path: Path) -> None:
    beside = write_other(tmp_path / "other", {"tokens": "0" * 16}, None, 1)
    refuse_itself([beside], {"tokens": "1" * 16})
    with pytest.raises(InputError, match="these same settings"):
        refuse_itself([beside], {"tokens": "0" * 16})


def test_a_script_of_somebody_else_is_no_data_and_not_taken(tmp_path: Path) -> None:
    beside = write_other(tmp_path / "other", {}, "f" * 16)
    (tmp_path / "other/data/images/train/0000/0000019.js").write_text("location = 'http://example.org'")
    sets: dict[str, Any] = {"train": {"name": "train", "fingerprint": "f" * 16, "n_shown": 3, "block_size": 1024}}
    with pytest.raises(InputError, match=r"0000019\.js cannot be read"):
        take(tmp_path / "here", beside, sets)
    assert not (tmp_path / "here/data/images/train/0000/0000019.js").exists()


def test_details_of_another_shape_are_refused(tmp_path: Path) -> None:
    beside = write_other(tmp_path / "other", {}, None)
    put(tmp_path / "other", "seed0/latents/0", {"0": {"elsewhere": [3]}})
    with pytest.raises(InputError, match=r"are damaged \(TypeError"):
        take(tmp_path / "here", beside, {})
