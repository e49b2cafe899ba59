"""The settings of scores that exist come back whole, from the copy that lies with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from infoscope.config.past import reopen
from infoscope.config.tree import Config, compose, to_tree
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import CONFIG, FORMAT_VERSION, MANIFEST
from infoscope.runtime.precision import Precision
from infoscope.sae.config import KINDS


def write_scores(folder: Path, tree: object) -> Path:
    scores = folder / "out/artifacts/score/name-0123456789abcdef"
    scores.mkdir(parents=True)
    about = {"format_version": FORMAT_VERSION, "stage": "score", "hash": "0123456789abcdef", "files": {}}
    (scores / MANIFEST).write_text(json.dumps(about))
    (scores / CONFIG).write_text(yaml.safe_dump(tree))
    return scores


def ask(scores: Path, *given: str) -> Config:
    given = ("stage=explore", f"explore.of={scores}", *given)
    return reopen(compose(given), given)


@pytest.mark.parametrize(
    "settings",
    [
        *([f"sae={kind}"] for kind in sorted(KINDS)),
        ["sae=import", "sae.path=/saes/one.pt", "sae.format=saelens"],
        ["data=image_folder", "data.root=/photos", "data.max_train=500", "data.on_error=skip"],
        ["model=clip_b16", "model.pretrained=/ckpt/b16.safetensors", "model.layer=8", "trainer.precision=bf16"],
        ["partition=bands", "partition.n_bands=4", "scope.emd=sinkhorn", "scope.sinkhorn_blur=0.1", "seeds=[3,5]"],
        ["debug=tiny", "probe_data.depth.kind=nyud", "probe_data.depth.root=/nyu"],
    ],
    ids=lambda settings: settings[0],
)
def test_they_come_back_whole(tmp_path: Path, settings: list[str]) -> None:
    past = compose(["stage=score", *settings])
    scores = write_scores(tmp_path, to_tree(past))
    found = ask(scores, "trainer.n_threads=2")
    assert found.explore.of == str(scores)
    assert found.output_dir == str(tmp_path / "out")
    assert found.trainer == replace(compose([]).trainer, n_threads=2, precision=past.trainer.precision)
    own = {"stage", "explore", "output_dir", "trainer", "logger"}
    then, now = to_tree(past), to_tree(found)
    assert {key: now[key] for key in now.keys() - own} == {key: then[key] for key in then.keys() - own}
    assert type(found.sae) is type(past.sae)


def test_scenes_have_no_other_root(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"means nothing to scores of data\.kind=scenes: drop it"):
        ask(write_scores(tmp_path, to_tree(compose(["stage=score"]))), "explore.root=/photos")


def test_what_the_command_may_say_is_its_own(tmp_path: Path) -> None:
    past = compose(["data=image_folder", "data.root=/photos", "partition=bands", "partition.n_bands=4"])
    scores = write_scores(tmp_path, to_tree(past))
    found = ask(scores, "explore.root=/moved", "partition.gamma=0.2", "seeds=[1]", "trainer.precision=bf16")
    assert (found.data.root, found.partition.gamma, found.partition.n_bands) == ("/moved", 0.2, None)
    assert (found.seeds, found.trainer.precision) == ([1], Precision.bf16)
    assert ask(scores).data.root == "/photos"
    without = compose(["stage=explore"])
    assert reopen(without) is without


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree["scope"].update(unheard_of=1), "another version of infoscope has written them"),
        (lambda tree: tree["sae"].update(kind="unheard_of"), "another version of infoscope has written them"),
        (lambda tree: tree.clear(), "another version of infoscope has written them"),
        (lambda tree: tree["scope"].update(k_cds=0), r"Expected scope\.k_cds"),
    ],
)
def test_a_copy_that_cannot_be_read_is_said(tmp_path: Path, change, words: str) -> None:
    tree = to_tree(compose([]))
    change(tree)
    scores = write_scores(tmp_path, tree)
    with pytest.raises(InputError, match=words):
        ask(scores)
