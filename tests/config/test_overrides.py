"""Arguments that Hydra must read as they are meant, whatever characters a path has."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from infoscope.config.overrides import make_readable, quote_argument, quote_override
from infoscope.config.sweeps import check_layers, expand_sweep, find_layers, make_collect_command
from infoscope.config.tree import compose, prepare_arguments
from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice

NASTY = "my, photos [2020] x=1 {a} (b) #ü%'\"$ ~&;<|>"
PATHS = st.text(st.sampled_from("ab/ =,[]{}()#%$'\"\\äü~!&;|<>*?:-.1_"), max_size=14)


def read(override: str) -> object:
    """Return the value that an override gives to its key."""
    tree = OmegaConf.create({"key": None})
    OmegaConf.update(tree, "key", OverridesParser.create().parse_override(override).value(), force_add=True)
    return OmegaConf.to_container(tree, resolve=True)["key"]  # pyright: ignore


@pytest.mark.long
@settings(max_examples=150, deadline=None)
@given(PATHS)
@example("/a\\")
@example("${HOME}/\\${x}")
@example("null")
@example("1e3")
def test_a_quoted_text_is_read_as_it_stands(text: str) -> None:
    assert read(quote_override("key", text)) == text
    assert read(quote_override("key", [text, "b"])) == [text, "b"]


@pytest.mark.parametrize("value", [None, True, False, 3, -0.5, "plain", ["a", "b c"]])
def test_other_values_are_read_as_they_stand(value: object) -> None:
    assert read(quote_override("key", value)) == value


def ask(argument: str) -> str:
    with pytest.raises(InputError) as caught:
        compose(["data=image_folder", argument])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(max_examples=100, deadline=None)
@given(PATHS)
@example(NASTY)
def test_an_argument_to_paste_means_the_path_that_was_typed(name: str) -> None:
    (argument,) = shlex.split(quote_argument("key", f"/{name}"))
    assert read(argument) == f"/{name}".strip()
    (argument,) = shlex.split(quote_argument("key", f"[/{name}x]", is_list=True))
    assert read(argument) == [one.strip() for one in f"/{name}x".split(",")]


@pytest.mark.long
@pytest.mark.parametrize("path", [f"/{NASTY}", "/a,b", "/c=d", "-e {f}"])
def test_what_is_printed_can_be_pasted(path: str) -> None:
    found = re.search(r" give (.+?)( instead\.| for one, or run each)", ask(f"data.root={path}"))
    assert found is not None
    assert compose(["data=image_folder", *shlex.split(found[1])]).data.root == path


@pytest.mark.parametrize(
    ("argument", "instead"),
    [
        ("data.root=/a#b", "give 'data.root=\"/a#b\"' instead"),
        ("data.root=/a,b", "give 'data.root=\"/a,b\"' for one, or run each with `infoscope -m data.root=/a,b`"),
        ("data.root=[a]", "(a text in brackets is 'data.root=\"[a]\"')"),
        ("collect.sweeps=[/a (b),/c]", "give 'collect.sweeps=[\"/a (b)\",/c]' instead"),
        ("hydra.run.dir=/a(b)", "give 'hydra.run.dir=\"/a(b)\"' instead"),
        ("scope.k_cds=(1", "expected KEY=VALUE"),
    ],
)
def test_what_hydra_cannot_read_is_answered_with_what_it_can(argument: str, instead: str) -> None:
    assert instead in ask(argument)


def test_home_and_variables_are_put_in_wherever_a_path_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MINE", "/mine")
    config = compose(
        [
            "data=imagenet",
            "data.root=~/a",
            "data.ground_truth=$MINE/b",
            'probe_data.depth={kind: nyud, root: "~/${oc.env:MINE}"}',
            "model.pretrained=local-dir:$HOME/c",
            "predict.class_names='~/d, e'",
            "stage=collect",
            "collect.sweeps=[~/f,$MINE]",
            "output_dir=~",
        ]
    )
    assert (config.data.root, config.data.ground_truth) == (f"{tmp_path}/a", "/mine/b")
    assert config.probe_data.depth.root == f"{tmp_path}//mine"
    assert config.model.pretrained == f"local-dir:{tmp_path}/c"
    assert config.predict.class_names == f"{tmp_path}/d, e"
    assert config.collect.sweeps == [f"{tmp_path}/f", "/mine"]
    assert config.output_dir == str(tmp_path)
    assert compose(["model.pretrained=local-dir:~/c"]).model.pretrained == f"local-dir:{tmp_path}/c"


@pytest.mark.long
def test_what_exists_under_its_own_name_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name in ("$HOME", "2020_01"):
        Path(name).mkdir()
    assert compose(["data=image_folder", "data.root=$HOME"]).data.root == "$HOME"
    assert compose(["data=image_folder", "data.root=2020_01"]).data.root == "2020_01"
    assert compose(["stage=collect", "collect.sweeps=[2020_01,1e3]"]).collect.sweeps == ["2020_01", "1e3"]


def test_a_variable_that_is_not_set_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NOPE", raising=False)
    assert ask("data.root=$NOPE/a").startswith("The environment has no variable NOPE, which data.root=$NOPE/a names")
    assert "write $HOME for the variable" in ask("data.root=${HOME}/a")
    with pytest.raises(InputError, match="no variable NOPE, which --config-dir=\\$NOPE names"):
        prepare_arguments(["--config-dir", "$NOPE"])


def test_pooled_tokens_are_no_choice_among_others() -> None:
    with pytest.raises(InputError, match=r"got sae\.tokens=patch,pooled: give model\.site=resid_post,pooled"):
        make_readable(["sae.tokens=patch,pooled"], lambda key: False)


@pytest.mark.parametrize("argument", ["sae.tokens=pooled", "model.site=pooled"])
def test_pooled_tokens_are_asked_for_at_either_place(argument: str) -> None:
    config = compose([argument])
    assert (config.model.site, config.model.layer) == ("pooled", -1)
    assert config.sae.tokens is TokenChoice.patch  # pyright: ignore[reportAttributeAccessIssue]


def test_a_list_of_layers_is_a_sweep_over_them() -> None:
    assert prepare_arguments(["model.layer=[0, -2]", "seeds=[0,1]"]) == ["model.layer=0, -2", "seeds=[0,1]"]
    assert expand_sweep(["model.layer=[0,-2]"]) == [["model.layer=0"], ["model.layer=-2"]]
    assert compose(["model.layer=[1]"]).model.layer == 1
    assert "run each with `infoscope -m model.layer=0,1`" in ask("model.layer=[0,1]")
    assert "expected a whole number, got []" in ask("model.layer=[]")


def test_jobs_that_differ_in_the_layer_alone_know_of_each_other() -> None:
    jobs = expand_sweep(["model.layer=[0,-2]", "sae.k=4,8", "seeds=[0]"])
    assert [find_layers(job, jobs) for job in jobs] == [(-2,), (-2,), (0,), (0,)]
    assert find_layers(["seeds=[0]"], jobs) == ()
    assert find_layers(["model.layer=0", "sae.k=16", "seeds=[0]"], jobs) == ()
    assert find_layers(["model.layer=x"], [["model.layer=x"], ["model.layer=1"]]) == ()  # refused where it is typed


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.layer=[0,1,99]"], "Expected model.layer in -4..3 (the model has 4 blocks), got 99."),
        (["model=scenes_clip,clip_b16", "model.layer=-5,3", "stage=score"], "(the model has 4 blocks), got -5."),
        (
            ["model=clip_b16", "model.pretrained=train_clip", "clip.layers=3", "model.layer=0,3"],
            "has 3 blocks), got 3.",
        ),
        (["model=siglip_b16", "model.layer=0,12"], "(the model has 12 blocks), got 12."),
        (["model=dinov2_s14", "model.layer=0,12"], "(the model has 12 blocks), got 12."),
        (["model=planted_registers", "model.layer=0,2"], "(the model has 2 blocks), got 2."),
        (
            ["model=dinov2_s14", "model.site=post_norm", "stage=score", "model.layer=-1,10"],
            "which lies behind the last block, got 10",
        ),
        (["model.layer=0,3"], "probe.readouts holds cls_final"),
    ],
)
def test_a_layer_that_will_not_do_is_refused_before_a_sweep_begins(overrides: list[str], words: str):
    with pytest.raises(InputError, match=re.escape(words)):
        check_layers(expand_sweep(overrides))


def test_what_else_is_wrong_with_the_jobs_of_a_sweep_is_left_to_them():
    check_layers(expand_sweep(["model.layer=0,99", "sae.k=0"]))
    check_layers(expand_sweep(["model=scenes_clip", "model.arch=nothing_like_it,null", "model.layer=0,2,-2,-4"]))
    check_layers(expand_sweep(["scope.k_cds=1,2"]))


def test_folders_that_hydra_itself_opens_are_prepared(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINE", "/mine")
    home = os.path.expanduser("~")
    given = ["-m", "--config-dir=~/a", "-cd", "$MINE/b", "hydra.run.dir=$MINE/c", "hydra.sweep.dir=~/d", "~experiment"]
    assert prepare_arguments(given) == [
        *("-m", f"--config-dir={home}/a", "-cd", "/mine/b"),
        *("hydra.run.dir=/mine/c", f"hydra.sweep.dir={home}/d", "~experiment"),
    ]
    assert [job[0] for job in expand_sweep(["data.root=~/a,~/b"])] == [f"data.root={home}/a", f"data.root={home}/b"]


def test_the_command_that_collects_can_be_pasted():
    name, stage, *rest = shlex.split(make_collect_command(f"/{NASTY}", f"out/{NASTY}"))
    assert (name, stage) == ("infoscope", "stage=collect")
    config = compose([stage, *rest])
    assert (config.collect.sweeps, config.output_dir) == ([f"/{NASTY}"], f"out/{NASTY}")
    assert make_collect_command("/a", "outputs") == "infoscope stage=collect 'collect.sweeps=[/a]'"
