"""Waterbirds and CelebA through the chain, as trees that the tests write: what misleads, suppressed and swept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infoscope.analyses.suppression import SuppressionResult
from infoscope.pipeline.context import Context
from infoscope.runtime.errors import InputError
from infoscope.stages.images import open_split
from infoscope.stages.name.stage import Name
from infoscope.stages.name.vocabulary import SCENE_TARGETS
from infoscope.stages.steer.suppress import Suppress, name_spurious, spurious_of, tell_none
from tests.support.pipeline_samples import Recorder, draw_without_saving, make_tiny_config, run_tiny, save_noise

CLIP = ("model=scenes_clip", "sae.n_tokens=2000", "sae.batch_tokens=32")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_without_saving(monkeypatch)


def make_context(output_dir: Path, *overrides: str) -> Context:
    return Context(make_tiny_config(output_dir, *overrides), Recorder())


def make_found(spurious: str, class_names: tuple[str, str], *typical: int) -> SuppressionResult:
    nothing = np.zeros(0, dtype=np.int64)
    is_typical, correct = nothing.astype(bool), nothing.reshape(1, 0).astype(bool)
    return SuppressionResult(
        spurious, class_names, np.array(typical), nothing, nothing, nothing, is_typical, (), correct
    )


def test_what_misleads_is_called_by_what_it_is(tmp_path: Path) -> None:
    planted, kinds = make_context(tmp_path, "data.planted=text"), ("ball", "cube")
    said = name_spurious(planted, make_found("planted", kinds, 0, 0))
    assert said[:3] == ("the cards", "no card", "a card")
    assert name_spurious(planted, make_found("planted", kinds, 0, 1)).other == "another planted"  # of few scenes
    assert name_spurious(planted, make_found("texture", kinds, 0, 1)).typical == "the typical texture"


def write_waterbirds(root: Path, rng: np.random.Generator) -> None:
    """Write birds of which 5 in 6 training ones, and half of the others, are where one expects them."""
    lines = ["img_id,img_filename,y,split,place,place_filename"]
    for number in range(60):
        y, split = number % 2, (0, 0, 0, 1, 2)[number // 2 % 5]
        place = y if rng.random() < (5 / 6 if split == 0 else 0.5) else 1 - y
        name = f"{1 + y:03d}.Bird/{number}.jpg"
        save_noise(root / name, number)
        lines.append(f"{number},{name},{y},{split},{place},/o/ocean/{number}.jpg")
    (root / "metadata.csv").write_text("\n".join(lines) + "\n")


def test_worst_groups_of_waterbirds_are_those_of_bird_and_place(tmp_path: Path) -> None:
    root = tmp_path / "waterbirds_v1.0"
    write_waterbirds(root, np.random.default_rng(0))
    (tmp_path / "names.txt").write_text("ball\ncube\n")  # words that scenes_clip knows
    few = (*CLIP, "data=waterbirds", f"data.root={root}", f"predict.class_names={tmp_path / 'names.txt'}")
    few += ("stage=steer", "steer.n_latents=2", "steer.n_images=2", "steer.n_suppressed=[3]", "steer.n_draws=1")
    few += ("steer.min_group_images=2",)
    said = run_tiny(tmp_path / "out", *few)
    assert said.files is not None
    assert "suppression" in said.files.tables
    assert "another place" in said.text
    ctx = make_context(tmp_path / "out", *few)
    found, test = Suppress.at(ctx, 0).load(), open_split(ctx, "test")
    assert (found.spurious, found.typical.tolist()) == ("place", [0, 1])
    groups, image = test.labels("group")[found.image_index], found.image_index
    np.testing.assert_array_equal(groups, 2 * test.labels("class")[image] + test.labels("place")[image])
    sizes = np.bincount(groups, minlength=4)
    assert sizes.sum() == 12 > sizes.max()
    worst = [
        min(of[groups == group].mean() for group in range(4) if sizes[group] >= 2) for of in found.correct.astype(float)
    ]
    np.testing.assert_allclose(found.worst_group(2), worst)
    table = (said.files.page.parent / "tables" / "suppression.csv").read_text().splitlines()
    assert len(table) == 1 + 3  # nothing, chosen, random


def test_places_that_are_all_typical_are_no_class(tmp_path: Path) -> None:
    root = tmp_path / "waterbirds_v1.0"
    write_waterbirds(root, np.random.default_rng(0))
    rows = [line.split(",") for line in (root / "metadata.csv").read_text().splitlines()]
    typical = [rows[0], *([*row[:4], row[2], row[5]] for row in rows[1:])]
    (root / "metadata.csv").write_text("\n".join(map(",".join, typical)) + "\n")
    assert spurious_of(make_context(tmp_path / "out", *CLIP, "data=waterbirds", f"data.root={root}")) == "place"


def write_celeba(root: Path, names: list[str], rng: np.random.Generator) -> np.ndarray:
    """Write pictures of one colour each with 40 attributes, of which the first is how bright it is: [n, 40]."""
    values = rng.choice([-1, 1], (60, 40))
    (root / "img_align_celeba").mkdir(parents=True)
    lines = []
    for number, of in enumerate(values):
        level = rng.integers(150, 250) if of[0] > 0 else rng.integers(10, 100)
        file = f"{number + 1:06d}.jpg"
        Image.new("RGB", (178, 218), tuple(int(level * share) for share in rng.uniform(0.6, 1, 3))).save(
            root / "img_align_celeba" / file
        )
        lines.append(" ".join([file, *(f"{value:>2}" for value in of)]))
    (root / "list_attr_celeba.txt").write_text("\n".join(["60", " ".join(names) + " ", *lines]) + "\n")
    splits = [f"{number + 1:06d}.jpg {(0, 0, 1, 2, 2)[number % 5]}" for number in range(60)]
    (root / "list_eval_partition.txt").write_text("\n".join(splits) + "\n")
    return values


def test_an_attribute_classifier_of_celeba_is_swept(tmp_path: Path) -> None:
    words = [word for of in SCENE_TARGETS.values() for word in of]  # that scenes_clip knows
    names = [word.capitalize() for word in ["snow", *(word for word in words if word != "snow"), "tiny"]]
    values = write_celeba(tmp_path / "celeba", names, np.random.default_rng(1))
    few = (*CLIP, "data=celeba", f"data.root={tmp_path / 'celeba'}", "data.attribute=Snow", "model.site=pooled")
    few += ("probe=miniature", "probe.tasks=[classification]")  # whose target of scenes is no attribute of faces
    few += ("stage=name", "name.n_top_images=3", "name.min_cosine=0.01", "name.min_ratio=1.001")
    said = run_tiny(tmp_path / "out", *few)
    assert said.files is not None
    assert {"names", "names_bias"} <= said.files.tables.keys()
    assert "Bias of a linear classifier of the 2 classes of 'class'" in said.text
    found = Name.at(make_context(tmp_path / "out", *few), 0).load()
    assert found.class_names == ["no snow", "snow"]
    assert [found.concepts[i] for i in np.flatnonzero(found.is_own)] == ["snow"]
    known = np.isfinite(found.slopes).all(axis=1)
    assert known.any()
    np.testing.assert_allclose(found.slopes[known].sum(axis=1), 0, atol=1e-9)
    assert np.isfinite(found.misled).any() == (found.concepts.index("snow") in found.find_distinct(found.place))
    train = values[[i for i in range(60) if i % 5 < 2]] > 0
    for concept in np.flatnonzero(known):
        has = train[:, names.index(found.concepts[concept].capitalize())]
        expected = train[has, 0].mean() - train[:, 0].mean()
        assert found.association[concept, 1] == pytest.approx(expected)
    other = Name.at(make_context(tmp_path / "out", *few, "probe.target=Red"), 0)
    assert other.load().class_names == ["no red", "red"]
    faces = name_spurious(make_context(tmp_path / "out", *few), make_found("Red", ("no snow", "snow"), 1, 0))
    assert faces.carried == "the attribute Red"
    assert "(no snow: with; snow: without)" in faces.explained
    unknown = tell_none(make_context(tmp_path / "out", *few[:-4], "stage=steer"))
    assert unknown is not None
    assert "Snow is the class itself" in unknown
    assert tell_none(make_context(tmp_path / "out", *few[:-4], "steer.spurious=Red", "stage=steer")) is None
    spurious = make_context(tmp_path / "out", *few[:-4], "steer.spurious=Snow", "stage=steer")
    with pytest.raises(InputError, match=r"another target than the one that is predicted \(class\), got Snow"):
        spurious_of(spurious)
