"""stage=adapt on the shipped CLIP: weights that are all but the same, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from infoscope.analyses.adaptation import ADAPTED, BASE, HALVES, SAME, Adaptation, compare_codes
from infoscope.data.scenes.factors import COLOURS, KINDS
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import check, plan_stage, set_goals
from infoscope.runtime.errors import InputError
from infoscope.sae.latent_table import load_latents
from infoscope.stages.adapt.model import AdaptedCodes, AdaptedTokens, adapted_of, make_adapted_model
from infoscope.stages.image_codes import Codes
from infoscope.stages.images import open_split
from infoscope.stages.tokens import Tokens
from infoscope.vision.open_clip.weights import SHIPPED_FOLDER
from tests.support.clip_samples import make_clip, make_clip_cfg
from tests.support.pipeline_samples import (
    Recorder,
    collect_tiny,
    draw_without_saving,
    find_folder,
    make_tiny_config,
    run_tiny,
    save_noise,
)

SHIPPED = ("model=scenes_clip", "data.n_train=60", "data.n_test=12", "sae.n_tokens=4000", "stage=adapt")
FEW = ("adapt.n_draws=3", "describe.n_class_latents=3", "describe.n_label_images=2")


@pytest.fixture(scope="module")
def shipped() -> dict[str, torch.Tensor]:
    """The weights of scenes_clip."""
    return load_file(SHIPPED_FOLDER / "open_clip_model.safetensors")


@pytest.fixture(scope="module")
def noisy(shipped: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights to six digits."""
    file, generator = tmp_path_factory.mktemp("weights") / "noisy.safetensors", torch.Generator().manual_seed(0)
    save_file({k: v + 1e-6 * torch.randn(v.shape, generator=generator) for k, v in shipped.items()}, file)
    return file


def test_weights_that_are_all_but_the_same_change_nothing(tmp_path: Path, noisy: Path) -> None:
    arguments = (*SHIPPED, *FEW, f"adapt.pretrained={noisy}")
    first = run_tiny(tmp_path, *arguments)
    assert first.text.count("scenes_clip runs with") == 1  # the same of both
    built = first.stages("built")
    expected = {"tokens": 4, "train_sae": 1, "image_codes": 2, "fidelity": 2, "adapt": 1}
    assert {kind: built.count(kind) for kind in expected} == expected
    found = Adaptation.load(find_folder(tmp_path, "adapt"))
    assert found.jaccard[SAME][found.class_images > 0] == pytest.approx(1)
    assert found.jaccard[HALVES][found.class_images > 1].max() < 1
    assert not np.any(found.find_changes(2, 1.1))
    np.testing.assert_allclose(found.tokens_on[ADAPTED], found.tokens_on[BASE], atol=2)
    assert first.files is not None
    assert first.files.tables.keys() == {"adapt", "adapt_groups", "adapt_classes", "adapt_moves", "adapt_latents"}
    assert first.files.figures.keys() == {"adapted_rates"}
    assert "Zero-shot top-1 on 12 test images" in first.files.page.read_text()
    assert run_tiny(tmp_path, *arguments).stages("built") == []
    (row,) = collect_tiny(tmp_path, *arguments).rows
    assert (row["jaccard"], row["n_remapped"], row["n_new"]) == (pytest.approx(1), 0, 0)
    assert row["top1"] == row["top1_adapted"]
    assert row["fvu"] == pytest.approx(row["fvu_adapted"], rel=1e-3)
    run_tiny(tmp_path, *arguments, "stage=latents")
    ratio = load_latents(tmp_path, seed=0)["adapted_rate_ratio"]
    assert np.nanmax(np.abs(np.log2(ratio))) < 1
    assert run_tiny(tmp_path, *arguments, "adapt.factor=3").stages("built") == ["report"]


def test_swapped_colours_remap_the_latents_of_colours_alone(shipped: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Weights to which red is blue and blue red: what was for one is for the other, what is for neither stays."""
    patches = shipped["visual.conv1.weight"][:, [2, 1, 0]].contiguous()
    save_file({**shipped, "visual.conv1.weight": patches}, tmp_path / "swapped.safetensors")
    sizes = ("data.n_train=300", "data.n_test=4", "sae.expansion_factor=2", "sae.k=8", "sae.n_tokens=200000")
    arguments = ("model=scenes_clip", *sizes, f"adapt.pretrained={tmp_path / 'swapped.safetensors'}")
    ctx = Context(make_tiny_config(tmp_path, *arguments), Recorder())
    codes = [stage.at(ctx, 0, "train").load() for stage in (Codes, AdaptedCodes)]
    moves: dict[str, list[tuple[str, str]]] = {}
    for target, values in {"colour": tuple(COLOURS), "class": KINDS}.items():
        found = compare_codes(*codes, open_split(ctx, "train").labels(target), len(values), 10)
        pairs = found.top_class[:, found.find_comparable(10)]
        moves[target] = [(values[before], values[after]) for before, after in pairs.T]
    warm, other = ("red", "orange"), ("purple", "white", "black")
    of_warm, of_other, of_kinds = (
        [after for before, after in moves["colour"] if before in warm],
        [before == after for before, after in moves["colour"] if before in other],
        [before == after for before, after in moves["class"]],
    )
    assert len(of_warm) >= 3
    assert of_warm.count("blue") >= 0.75 * len(of_warm)
    assert len(of_other) >= 4
    assert np.mean(of_other) >= 0.8
    assert len(of_kinds) >= 4
    assert np.mean(of_kinds) >= 0.8


def test_the_adapted_tokens_are_those_of_a_run_with_that_model(tmp_path: Path, noisy: Path) -> None:
    config = make_tiny_config(tmp_path, *SHIPPED, f"adapt.pretrained={noisy}")
    other = make_tiny_config(tmp_path, *SHIPPED, f"model.pretrained={noisy}")
    ctx, own = (Context(one, Recorder()) for one in (config, other))
    assert AdaptedTokens.at(ctx, "train").hash == Tokens.at(own, "train").hash != Tokens.at(ctx, "train").hash
    assert AdaptedCodes.at(ctx, 0, "train").hash != Codes.at(ctx, 0, "train").hash
    assert adapted_of(ctx) is adapted_of(ctx) is adapted_of(adapted_of(ctx))
    assert adapted_of(ctx).store is ctx.store
    assert adapted_of(ctx).tracking is ctx.tracking
    set_goals(ctx)
    check(ctx)
    reading = ctx.reading()
    assert adapted_of(reading).store is reading.store is not ctx.store
    assert adapted_of(reading).known.keys() <= adapted_of(ctx).known.keys()
    steps = [step.what for step in plan_stage(ctx)]
    assert len(steps) == len(set(steps))
    assert {"tokens, train", "tokens, train, adapted", "tokens, test, adapted"} <= set(steps)


def test_an_adapted_model_that_is_run_otherwise_is_told_apart(tmp_path: Path, noisy: Path) -> None:
    folder, recorder = tmp_path / "weights", Recorder()
    shutil.copytree(SHIPPED_FOLDER, folder)
    shutil.copyfile(noisy, folder / "open_clip_model.safetensors")
    given = json.loads((folder / "open_clip_config.json").read_text())
    given["preprocess_cfg"] = {"mean": [0.4] * 3, "std": [0.25] * 3}
    (folder / "open_clip_config.json").write_text(json.dumps(given))
    ctx = Context(make_tiny_config(tmp_path, *SHIPPED, f"adapt.pretrained=local-dir:{folder}"), recorder)
    set_goals(ctx)
    check(ctx)
    own, adapted = (line for line in recorder.text.splitlines() if "runs with" in line)
    assert own.startswith("scenes_clip runs with GELU, mean [0.5,0.5,0.5]")
    assert adapted.startswith("the adapted scenes_clip runs with GELU, mean [0.4,0.4,0.4]")


def test_without_labels_there_are_rates_and_a_sentence(
    tmp_path: Path, noisy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_without_saving(monkeypatch)
    for i in range(24):
        save_noise(tmp_path / "images" / f"{i}.png", i)
    photographs = ("data=image_folder", f"data.root={tmp_path / 'images'}", "data.test_share=0.3")
    found = run_tiny(tmp_path, "model=scenes_clip", "stage=adapt", *photographs, f"adapt.pretrained={noisy}")
    assert found.files is not None
    assert found.files.tables.keys() == {"adapt", "adapt_groups"}
    page = found.files.page.read_text()
    assert "have no labels, so there are rates alone" in page
    assert "Zero-shot predictions were not compared: data=image_folder knows no classes" in page


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ([], "give these as adapt.pretrained=FILE."),
        (["adapt.pretrained={folder}/none.safetensors"], "adapt.pretrained={folder}/none.safetensors is no file"),
        (["adapt.pretrained={shipped}"], "Expected adapt.pretrained to be other weights than the model's"),
        (["adapt.pretrained={folder}/other.safetensors"], "its image tower is 64 wide"),
        (["adapt.pretrained=local-dir:{folder}"], "got width 64 for 128, patches per side 4 for 12: the SAE reads"),
        (["adapt.pretrained={noisy}", "model=planted_registers"], "planted_registers is a formula without any"),
        (["adapt.pretrained=shipped", "adapt.origin=openai"], "adapt.origin is read with other weights alone"),
        (["adapt.pretrained={noisy}", "predict.target=mood"], "Expected a target of the scenes"),
    ],
)
def test_it_refuses(overrides: list[str], sentence: str, noisy: Path, tmp_path: Path) -> None:
    for name in ("other", "open_clip_model"):
        save_file(make_clip().state_dict(), tmp_path / f"{name}.safetensors")
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3}
    local = {"model_cfg": make_clip_cfg(), "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(local))
    places = {"folder": tmp_path, "noisy": noisy, "shipped": SHIPPED_FOLDER / "open_clip_model.safetensors"}
    with pytest.raises(InputError) as refused:
        run_tiny(tmp_path / "out", *SHIPPED, *(one.format(**places) for one in overrides))
    assert sentence.format(**places) in str(refused.value)
    assert not (tmp_path / "out" / "artifacts" / "tokens").exists()


@pytest.mark.parametrize(
    ("model", "origin"),
    [
        ([], None),
        (["model=clip_b16"], "openai"),
        (["model=clip_b16", "model.origin=null"], "openai"),
        (["model=clip_b16", "adapt.origin=laion2b_s34b_b88k"], "laion2b_s34b_b88k"),
    ],
)
def test_adapted_weights_have_the_origin_of_the_model(model: list[str], origin: str | None, tmp_path: Path) -> None:
    (tmp_path / "a.pt").touch()
    config = make_tiny_config(tmp_path, "model=scenes_clip", *model, f"adapt.pretrained={tmp_path / 'a.pt'}")
    adapted = make_adapted_model(config)
    assert (adapted.pretrained, adapted.origin, adapted.name) == (str(tmp_path / "a.pt"), origin, config.model.name)


def test_a_clip_that_is_trained_here_is_compared(tmp_path: Path) -> None:
    """A step on the scenes of one place: what its weights are is not known before."""
    clip = ("n_images=40", "n_test_images=4", "n_steps=1", "batch_size=4", "warmup_steps=1", "lr=1e-5", "place=sea")
    settings = ("adapt.pretrained=train_clip", "clip.init=shipped", *(f"clip.{one}" for one in clip))
    few = ("data.n_train=12", "data.n_test=4", "sae.n_tokens=2000", "adapt.n_draws=2")
    found = run_tiny(tmp_path, "model=scenes_clip", "stage=adapt", *few, *settings)
    built = found.stages("built")
    assert built.index("train_clip") < built.index("adapt")
    assert run_tiny(tmp_path, "model=scenes_clip", "stage=adapt", *few, *settings).stages("built") == []
    with pytest.raises(InputError, match=r"Expected clip.place to be a place of the scenes \(desert, .*\), got 'moon'"):
        run_tiny(tmp_path, "model=scenes_clip", "stage=train_clip", "clip.place=moon")
