"""The configuration: every choice composes, and whatever is wrong with it is one sentence that says what to write."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra

from hydra_plugins.infoscope_launchers.config import LocalConf, SlurmConf
from infoscope.config.errors import find_type
from infoscope.config.tree import CONF_FOLDER, Config, StageName, compose, to_tree
from infoscope.data.config import DataKind
from infoscope.probes.config import DepthRecipe, Readout
from infoscope.runtime.bounds import (
    Bounds,
    check_setting,
    check_settings,
    find_item,
    find_kind,
    find_limits,
    get_settings,
)
from infoscope.runtime.errors import InputError
from infoscope.sae.config import KINDS
from infoscope.scope.config import Rule
from infoscope.vision.config import ModelConfig

CHOICES = sorted(file.relative_to(CONF_FOLDER).with_suffix("").as_posix() for file in CONF_FOLDER.glob("*/*.yaml"))


@pytest.fixture(autouse=True)
def _clean_hydra() -> Iterator[None]:
    yield
    GlobalHydra.instance().clear()


@pytest.mark.long  # half a minute of compositions in all
@pytest.mark.parametrize("name", CHOICES)
def test_every_choice_composes(name: str):
    group, choice = name.split("/")
    more = ["data.root=photos"] if group == "data" and choice != "scenes" else []
    if name == "probe_data/paper":
        more = ["probe_data.segmentation.root=ade", "probe_data.depth.root=nyu"]
    if name == "data/captions":
        more.append("model.site=pooled")
    if name == "model/clip_folder":
        more = ["model.pretrained=local-dir:clips"]
    if name == "sae/import":
        more = ["sae.path=sae.pt"]
    config = compose([f"{group}={choice}", *more])
    assert isinstance(config, Config)
    section = getattr(config, group, None)
    for key, value in (yaml.safe_load((CONF_FOLDER / f"{name}.yaml").read_text()) or {}).items():
        if key == "defaults":
            continue  # another file, which this one builds on
        if section is None or (CONF_FOLDER / f"{name}.yaml").read_text().startswith("# @package _global_"):
            section, value = config, {key: value}  # an experiment's values stand at the top
        if group == "probe_data":
            assert getattr(section, key).kind.name == value["kind"]
        elif not isinstance(value, dict) and value not in ("???", None) and "${" not in str(value):
            typed = getattr(section, key)
            assert (typed.name if isinstance(typed, Enum) else typed) == value


def test_defaults_come_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    config = compose()
    assert (config.stage, config.seeds, config.model.name, config.output_dir) == (
        StageName.report,
        [0, 1, 2],
        "scenes_clip",
        "outputs",
    )
    assert config.data.kind is DataKind.scenes
    assert list(tmp_path.iterdir()) == []


def test_ones_own_settings_win_over_the_files_and_an_experiment_and_the_command_line_over_them(tmp_path: Path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "default.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /data: imagenet\n"
        "output_dir: /mine\nseeds: [7]\ndata: {root: /sets}\n"
    )
    config = compose([], [str(tmp_path)])
    assert (config.output_dir, config.seeds, config.data.root) == ("/mine", [7], "/sets")
    config = compose(["debug=tiny", "output_dir=/other"], [str(tmp_path)])
    assert (config.output_dir, config.seeds) == ("/other", [0])


def test_values_are_typed():
    config = compose(["partition=otsu", "probe.readouts=[patch_mean]", "sae.lr=1e-3", "scope.k_max=null"])
    assert config.partition.chosen == (Rule.otsu, None)
    assert config.probe.readouts == [Readout.patch_mean]
    assert (config.sae.lr, config.scope.k_max) == (1e-3, None)
    assert isinstance(config.model, ModelConfig)


def test_an_experiment_wins_over_a_group_and_the_command_line_over_both():
    assert compose(["debug=tiny"]).seeds == [0]
    assert compose(["debug=tiny", "seeds=[4]", "scope.k_cds=2"]).seeds == [4]


@pytest.mark.parametrize(
    ("overrides", "target"),
    [
        ([], "texture"),
        (["data.planted=picture"], "texture"),
        *(
            ([f"data={data}", "data.root=x"], "class")
            for data in ("class_folders", "imagenet", "celeba", "waterbirds", "image_folder")
        ),
        (["data=image_folder", "data.root=x", "probe_data.classification.kind=scenes"], "texture"),
        (["probe_data.classification.kind=imagenet", "probe_data.classification.root=x"], "class"),
        (["data=celeba", "data.root=x", "probe.target=Male"], "Male"),
        (["probe=plain"], "class"),
    ],
)
def test_the_demo_classifies_textures_of_scenes_and_the_class_of_other_data(overrides: list[str], target: str) -> None:
    assert compose(overrides).probe.target == target


def test_the_tree_is_plain_and_complete():
    config = compose(["model=planted_registers"])
    tree = to_tree(config)
    assert json.loads(json.dumps(tree)) == tree
    assert yaml.safe_load(yaml.safe_dump(tree)) == tree
    assert tree["model"]["kind"] == "planted_registers"
    assert tree["probe"]["tasks"] == ["classification", "segmentation", "depth"]
    assert set(tree) == set(Config.__dataclass_fields__)


ADE20K = ["data=ade20k", "data.root=x"]
ON_DISK = "data.kind=image_folder, class_folders, imagenet, ade20k, nyud, celeba, waterbirds"
UNREAD = [
    *((f"{ON_DISK}, captions", [f"data.{one}"]) for one in ("max_train=2", "max_test=2")),
    *((ON_DISK, [f"data.{one}"]) for one in ("on_error=skip", "decoder=nvjpeg")),
    ("data.kind=imagenet, ade20k, nyud", ["data.subset=true"]),
    ("data.kind=image_folder, class_folders, imagenet, celeba, waterbirds", ["data.resize=crop"]),
    ("data.kind=image_folder, class_folders, captions", [*ADE20K, "data.test_share=0.3"]),
    ("data.kind=imagenet", ["data.ground_truth=x"]),
    ("data.kind=celeba", ["data.attribute=Male"]),
    ("data.kind=nyud", [*ADE20K, "data.eigen_crop=false"]),
    ("data.kind=nyud", ["data.raw_depth=true"]),
    *(
        ("data.kind=scenes", [*ADE20K, f"data.{one}"])
        for one in ("n_train=2", "n_test=2", "size_px=99", "planted=text")
    ),
    ("data.store_tokens=true", ["data.store_tokens=false", "data.cache_dtype=float16"]),
    (
        "probe_data.depth.kind=scenes, image_folder, class_folders, imagenet, ade20k, nyud, celeba, waterbirds,"
        " captions",
        ["probe_data.depth.seed=2"],
    ),
    ("outliers.rule=quantile", ["outliers.quantile=0.5"]),
    ("outliers.rule=mad", ["outliers.rule=quantile", "outliers.c=3"]),
    ("outliers.rule=absolute", ["outliers.value=3"]),
    ("scope.emd=sinkhorn and stage=stability", ["scope.sinkhorn_blur=3"]),
    ("data.store_tokens=false", ["trainer.token_buffer=device"]),
    ("stage=train_clip and model.pretrained=train_clip", ["clip.n_steps=9000"]),
    ("stage=collect", ["collect.require_all=true"]),
    ("stage=artifacts", ["artifacts.prune=true"]),
    ("artifacts.prune=true", ["stage=artifacts", "artifacts.min_age_h=1"]),
    *(("logger=wandb", ["logger=csv", f"logger.{one}"]) for one in ("mode=online", "project=x", "timeout_s=9")),
    ("logger=wandb", ["logger=none", "logger.entity=x"]),
    ("logger.mode=online", ["logger.timeout_s=9"]),
    ("model.pretrained=random and by planted models", ["model.seed=2"]),
    *(
        ("model.kind=open_clip or timm", ["model=planted_registers", f"model.{one}"])
        for one in ("precision=bfloat16", "image_px=112", "pretrained=random", "quick_gelu=true")
    ),
    ("AuxK", ["sae.aux_k=0", "sae.aux_coef=2"]),
]
"""What alone reads a setting, which is the last of those that are given."""
WRONG = [
    # a key that does not exist
    (["scope.kk=3"], ["'scope.kk'", "expected one of batch_images, diagonal, emd, extent, k_cds", "in scope"]),
    (["scope.k_cd=3"], ["'scope.k_cd'", "(did you mean scope.k_cds?)"]),
    (["+scope.kk=3"], ["'scope.kk'", "expected one of batch_images"]),
    (["sae=topk", "sae.kk=3"], ["'sae.kk'", "expected one of aux_coef", "in sae (did you mean sae.k?)"]),
    (["sae=relu", "sae.k=99"], ["'sae.k' for sae.kind=relu", "l1, log_every_n_steps", "k is for sae=topk, batchtopk"]),
    (["sae=relu", "+sae.k=99"], ["'sae.k' for sae.kind=relu"]),
    (
        ["sae=relu", "experiment=planted_registers"],
        ["(in experiment/planted_registers.yaml) for sae.kind=relu"],
    ),
    (["sae=relu", "sae.kind=topk"], ["sae.kind to come with", "got 'topk' alone", "sae=topk, relu, batchtopk"]),
    (
        ["seed=3"],
        ["'seed'", "expected one of adapt, artifacts, attribution, clip, collect, cross", "(did you mean seeds?)"],
    ),
    (["hydra.foo=3"], ["'hydra.foo'", "infoscope --cfg hydra"]),
    # a choice that does not exist
    (
        ["model=clip_b17"],
        ["model 'clip_b17'", "clip_b32, clip_folder, clip_l14", "scenes_clip", "(did you mean model=clip_b16?)"],
    ),
    (["experiment=nothing"], ["experiment 'nothing'", "expected one of dinov2_scenes, planted_registers"]),
    (["model=3"], ["name of a choice for a group", "such as model="]),
    (["model=clip_folder"], ["model.pretrained is missing", "local-dir:<folder>"]),
    # a value of the wrong type
    (["scope.k_cds=abc"], ["scope.k_cds: expected a whole number, got 'abc'"]),
    (["scope.k_max=abc"], ["scope.k_max: expected a whole number or null, got 'abc'"]),
    (["sae.lr=fast"], ["sae.lr: expected a number or null, got 'fast'"]),
    (["trainer.progress=maybe"], ["trainer.progress: expected true or false, got 'maybe'"]),
    (["model.layer=null"], ["model.layer: expected a whole number, got null"]),
    (["seeds=3"], ["seeds: expected a list in brackets, each a whole number, got 3"]),
    (["seeds=[0,a]"], ["seeds[1]: expected a whole number, got 'a'"]),
    (
        ["partition.rule=foo"],
        ["partition.rule: expected one of mass, energy, threshold, quantile, otsu, bands or null, got 'foo'"],
    ),
    (["partition.rule=band"], ["got 'band' (did you mean partition.rule=bands?)"]),
    (["data.on_error=stop"], ["data.on_error: expected one of raise, skip, got 'stop'"]),
    (["probe.readouts=[foo]"], ["probe.readouts[0]: expected one of patch_mean, cls_final, cls_layer, got 'foo'"]),
    (["scope.k_cds=${model.layr}"], ["scope.k_cds", "'model.layr' not found"]),
    (["scope.k_cds=???"], ["Expected a value for scope.k_cds", "scope.k_cds=..."]),
    # values that contradict each other
    (["scope.k_cds=8", "scope.k_max=4"], ["scope.k_max to be at least scope.k_cds (8), got 4"]),
    (["data.root=x"], ["Expected no data.root for data.kind=scenes, got 'x'"]),
    (["data=image_folder"], ["Expected a root for data.kind=image_folder"]),
    (["model.layer=-1"], ["probe.readouts", "cls_final", "model.layer=-1"]),
    (["seeds=[0,0]"], ["seeds to hold none twice", "[0,0]"]),
    (["seeds=[]"], ["seeds to hold at least one value, got []"]),
    (["probe_data.depth.kind=nyud"], ["Expected a root for probe_data.depth.kind=nyud", "set probe_data.depth.root"]),
    (["probe.depth_crops.crop_px=9"], ["Expected probe.depth_crops.stride_px to be at most crop_px=9"]),
    (["probe.dense_warmup_steps=151"], ["probe.dense_warmup_steps to be at most the steps of segmentation, 150"]),
    # a setting of probes that others read
    (
        ["probe.tasks=[segmentation]", "probe.classification_epochs=3"],
        ["probe.classification_epochs is read by classification (sgd), not by probe.tasks=[segmentation]"],
    ),
    (
        ["probe.classification_l2=[1]"],
        ["probe.classification_l2 is read by classification (lbfgs)", "probe.classification_solver=sgd: drop it"],
    ),
    (["probe=clip_paper", "+probe.classification_lrs=[1]"], ["read by classification (sgd)", "solver=lbfgs"]),
    (["probe.tasks=[classification]", "probe.dense_steps=3"], ["probe.dense_steps is read by segmentation and depth"]),
    (["probe.tasks=[segmentation]", "probe.depth_crops={crop_px: 500}"], ["probe.depth_crops is read by depth, not"]),
    (["probe.depth_crops.flip=false"], ["is read with probe.depth_crops.crop_px alone: drop it, or give that too"]),
    (
        ["probe.readouts=[patch_mean]", "probe.feature_dtype=float16"],
        ["feature_dtype is read by readouts of CLS"],
    ),
    # a setting that another choice reads
    *((key, [f"{key[-1].partition('=')[0]} is read by {by} alone: drop it, or "]) for by, key in UNREAD),
    (["data={max_train: 2}"], [f"data.max_train is read by {ON_DISK}, captions alone"]),
    (["clip={lr: 0.1}"], ["clip is read by stage=train_clip and model.pretrained=train_clip alone"]),
    (["collect.sweeps=[a]", "collect.sweeps.0=b"], ["collect.sweeps is read by stage=collect alone"]),
    ([*ADE20K, "data.seed=2"], ["data.seed is read where images are drawn: drop it, or give data.max_train"]),
    (["predict.seed=2"], ["predict.seed is read where predict.n_images draws images: drop it, or give that"]),
    (["predict.n_shown=0", "predict.n_candidates=2"], ["predict.n_candidates is read where images are shown: drop it"]),
    (["model.arch=ViT-B-16"], ["model.arch is read with other weights alone, model.pretrained=shipped has its own"]),
    (["model=clip_b16", "model.origin=laion400m_e31"], ["model.origin is read of a file of weights alone"]),
    (
        ["probe=dinov2", "probe.dense_steps=2000"],
        ["dense_steps is read where crops have no steps of their own: drop it", "probe.segmentation_crops.n_steps"],
    ),
    (["probe=dinov2", "probe.n_held_out_pixels_per_image=9"], ["pixels_per_image is read by probes of whole images"]),
    (
        ["probe=dinov2", "probe.batch_norm=false", "probe.depth_crops.n_norm_crops=9"],
        ["probe.depth_crops.n_norm_crops is read with probe.batch_norm=true alone"],
    ),
    (["clip.warmup_steps=9000"], ["clip.warmup_steps to be at most clip.n_steps (8000), got 9000"]),
    (["clip.width=48"], ["clip.width to be a multiple of 32"]),
    # what is out of bounds
    (["seeds=[0,-1]"], ["Expected seeds[1] to be at least 0, got -1."]),
    (["seeds=[18446744073709551616]"], ["seeds[0] to be at most 4294967295, got 18446744073709551616."]),
    (["model.image_px=0"], ["Expected model.image_px to be at least 1, got 0."]),
    (["sae.lr=nan"], ["Expected sae.lr to be above 0, got nan."]),
    (["sae.lr=inf"], ["Expected sae.lr to be at most 1e+30, got inf."]),
    (["partition.gamma=nan"], ["partition.gamma to be in 0..1, the range of the score, got nan."]),
    (["probe_data.depth.max_train=0"], ["Expected probe_data.depth.max_train to be at least 1, got 0."]),
    (["probe.depth_crops.crop_px=-3"], ["Expected probe.depth_crops.crop_px to be at least 1, got -3."]),
    (["probe.tasks=[]"], ["Expected probe.tasks to hold at least one value, got []."]),
    (["probe.readouts=[patch_mean,patch_mean]"], ["probe.readouts to hold none twice, got [patch_mean,patch_mean]."]),
    (["sae=matryoshka_k", "sae.k_levels=[4,2]"], ["Expected sae.k_levels to ascend, got [4,2]."]),
    (["stability.shifts=[1,1]"], ["stability.shifts to hold none twice"]),
    (["clip.precision=many"], ["clip.precision to be 32-true or 16-mixed or bf16-mixed, got 'many'."]),
    (["output_dir=''"], ["Expected output_dir not to be empty, got ''."]),
    (["logger.group=a/b"], ["Expected logger.group to be a name", "got 'a/b'."]),
    (["predict.template_list=['']", "predict.templates=list"], ["predict.template_list[0] not to be empty"]),
    (["trainer.n_threads=0"], ["trainer.n_threads to be at least 1, got 0"]),
    (["partition=otsu", "partition.gamma=0.1"], ["partition.gamma=0.1", "partition.rule=otsu", "partition=threshold"]),
    (["partition=bands", "partition.gamma=0.1"], ["partition.gamma=0.1", "partition.rule=bands"]),
    # what is not KEY=VALUE
    (["foo"], ["'foo'", "expected KEY=VALUE"]),
    (["scope.k_cds=[1"], ["'scope.k_cds=[1'", "expected KEY=VALUE"]),
    (["scope.k_cds=1,2"], ["Several values for scope.k_cds: run each with `infoscope -m scope.k_cds=1,2`."]),
    (["seeds=1,2"], ["Several values for seeds: write a list seeds=[1,2]."]),
    (["+model=clip_b16"], ["model is chosen twice", "without a +"]),
    # what cannot be deleted
    (["~sae.k"], ["Cannot delete a setting, as ~sae.k asks: set it, sae.k=VALUE, or leave the argument out."]),
    (["~sae.k=8"], ["Cannot delete a setting, as ~sae.k asks"]),
    (["~sae.k=3"], ["Cannot delete a setting, as ~sae.k asks"]),
    (["~data.root"], ["Cannot delete a setting, as ~data.root asks"]),
    (["~scope.k_cd"], ["Unknown key 'scope.k_cd'", "(did you mean scope.k_cds?)"]),
    (["~foo"], ["'foo'"]),
]


@pytest.mark.long  # half a minute of compositions in all
@pytest.mark.parametrize(("overrides", "parts"), WRONG, ids=[" ".join(overrides) for overrides, _ in WRONG])
def test_what_is_wrong_is_one_sentence(overrides: list[str], parts: list[str]):
    with pytest.raises(InputError) as caught:
        compose(overrides)
    sentence = str(caught.value)
    assert [part for part in parts if part not in sentence] == [], sentence
    assert "\n" not in sentence
    assert sentence.endswith(".")


def list_numbers(schema: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the key and the type of every number among the settings, those in lists included."""
    for name, annotation in get_settings(schema).items():
        kind = find_item(annotation) or annotation
        if dataclasses.is_dataclass(kind):
            yield from list_numbers(kind, f"{prefix}{name}.")
        elif find_kind(kind) in (int, float):
            yield f"{prefix}{name}{'[0]' if find_item(annotation) else ''}", kind


@pytest.mark.parametrize(
    ("key", "annotation"),
    [
        *list_numbers(Config),
        *(number for kind in KINDS.values() for number in list_numbers(kind, "sae.")),
        *list_numbers(LocalConf, "hydra.launcher."),
        *list_numbers(SlurmConf, "hydra.launcher."),
    ],
)
def test_every_number_has_bounds(key: str, annotation: Any):
    has_bounds = any(isinstance(limit, Bounds) for limit in find_limits(annotation))
    assert has_bounds, f"{key} has no bounds: give it one of the types in infoscope.runtime.bounds"
    is_whole = find_kind(annotation) is int
    for value in (math.nan, math.inf, -math.inf, *((10**31, -(10**31)) if is_whole else (1e31, -1e31))):
        with pytest.raises(InputError) as caught:
            check_setting(key, value, annotation)
        assert re.fullmatch(rf"Expected {re.escape(key)} to be .+, got .+\.", str(caught.value))


def test_every_default_is_within_bounds():
    for name, kind in KINDS.items():
        config = Config(sae=kind())
        check_settings(Config, vars(config), "")
        assert config.sae.kind == name


def test_a_file_may_hold_what_other_probes_read():
    probe = compose(["probe=clip_paper", "debug=tiny", "probe.tasks=[depth]"]).probe
    assert probe.recipes == {DepthRecipe}
    assert compose(["probe.readouts.0=cls_final", "probe.readouts.1=patch_mean"]).probe.readouts[0] is Readout.cls_final
    assert probe.classification_epochs == 3


@pytest.mark.long  # half a minute of compositions in all
@pytest.mark.parametrize(
    "overrides",
    [
        ["data.max_train=null", "data.subset=false", "outliers.quantile=0.99", "scope.sinkhorn_blur=0.1"],
        ["model=planted_registers", "model.pretrained=null", "model.seed=3"],
        ["stage=stability", "scope.sinkhorn_blur=3"],
        ["stage=train_clip", "clip.n_steps=9000"],
        ["model.pretrained=train_clip", "clip.n_steps=9000"],
        ["clip=scenes", "logger=csv", "logger.group=x"],
        [*ADE20K, "data.max_train=5", "data.seed=2"],
        [*ADE20K, "debug=tiny"],
        ["model=clip_b16", "model.pretrained=/x.safetensors", "model.origin=laion400m_e31"],
        ["model=clip_b16", "model.pretrained=random", "model.origin=laion400m_e31", "model.seed=2"],
        ["probe=dinov2", "probe.depth_crops.n_steps=null", "probe.dense_steps=2000"],
        ["probe.classification_l2_halvings=4"],
    ],
    ids=" ".join,
)
def test_what_is_read_or_as_it_was_is_no_mistake(overrides: list[str]):
    assert compose(overrides) == compose(overrides, is_past=True)


def test_a_file_may_hold_what_another_choice_reads(tmp_path: Path):
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "default.yaml").write_text("# @package _global_\noutliers: {quantile: 0.5}\n")
    assert compose([], [str(tmp_path)]).outliers.quantile == 0.5


def test_a_layer_at_the_end_is_fine_where_only_patches_are_read():
    assert compose(["model.layer=-1", "probe.readouts=[patch_mean]"]).model.layer == -1


def test_types_are_found_by_full_key():
    assert find_type("scope.k_cds", Config) is int
    assert find_type("probe.readouts[1]", Config) is Readout
    assert find_type("sae.l1", Config) is float
    assert find_type("scope.kk", Config) is None
    assert find_type("scope.k_cds.more", Config) is None


@pytest.mark.long
def test_composing_needs_none_of_the_heavy_packages():
    script = """
import sys
from infoscope.config.tree import compose
compose(["model=planted_registers"])
heavy = {"torch", "lightning", "open_clip", "wandb", "scipy", "matplotlib", "geomloss"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
