"""The pipeline: what is built, what is reused, what a hash depends on, and what an interruption leaves."""

from __future__ import annotations

import json
import re
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from infoscope import app
from infoscope.config.tree import to_tree
from infoscope.data.images import ImageSet
from infoscope.data.scenes import render
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.pipeline.context import Context
from infoscope.probes.module import ProbeModule
from infoscope.probes.run import run_probes
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import Spec, compute_checksum
from infoscope.runtime.store import Store
from infoscope.sae import passes
from infoscope.sae.checkpoint import load_sae
from infoscope.sae.module import SAEModule
from infoscope.scope.maps import CropEncoder
from infoscope.scope.partition import make_partition
from infoscope.scope.scoring import score_latents
from infoscope.scope.top_images import TopImages
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.images import open_split
from infoscope.stages.latents import Latents
from infoscope.stages.outliers.stage import Outliers, group_activation_of
from infoscope.stages.probe import run as probing
from infoscope.stages.sae import sae_of
from infoscope.stages.score import stage as score_module
from infoscope.stages.score.stage import partition_of
from infoscope.stages.tokens import Tokens
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import load_backbone
from infoscope.vision.tokens import source
from infoscope.vision.tokens.extract import TokenCache
from infoscope.vision.tokens.source import TokenSource
from tests.support.pipeline_samples import (
    FEATURES,
    N_TEST,
    N_TRAIN,
    READ_ONCE,
    STAGES,
    Recorder,
    copy_run,
    draw_without_saving,
    find_artifact,
    find_artifacts,
    find_folder,
    finish_tiny_run,
    make_overrides,
    make_tiny_config,
    run_tiny,
)
from tests.support.scope_samples import rank

UP_TO_SCORE = ("scenes", "tokens", "train_sae", "rank", "score")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared run lies."""
    return finish_tiny_run(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def first_run(tmp_path_factory: pytest.TempPathFactory) -> Recorder:
    """What the shared run said."""
    return finish_tiny_run(tmp_path_factory)[1]


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Make methods of every backbone raise."""
    for name in names:

        def refuse(self: Backbone, *args: Any, name: str = name) -> Any:
            raise AssertionError(f"the backbone's {name} was called")

        monkeypatch.setattr(Backbone, name, refuse)


# -- what a run makes ----------------------------------------------------------------------------------------------


def test_every_stage_builds_what_it_lacks(finished: Path, first_run: Recorder) -> None:
    built = list(dict.fromkeys(first_run.stages("built")))
    chain = ("scenes", "tokens", "train_sae", "rank", "score", "probe", "report")
    assert [stage for stage in built if stage in chain] == list(chain)
    assert set(built) == {*STAGES, *FEATURES}
    assert len(first_run.stages("built")) == len(find_artifacts(finished))
    assert first_run.files is not None
    assert first_run.files.page.is_file()
    assert first_run.files.tables.keys() >= {"removal", "scope"}


def test_whatever_can_take_long_shows_how_far_it_is(first_run: Recorder) -> None:
    assert set(first_run.shown) == {
        "reading the weights' checksum",
        "rendering train scenes",
        "rendering test scenes",
        "loading the backbone",
        "encoding train images",
        "training SAE, seed 0",
        "reading tokens for rank, sample, confounds, group_activation, image_codes of seed 0",
        "scoring, seed 0",
        "encoding test images",
        "probing, seed 0",
        "effects of single features, seed 0",
        "outlier tokens",
        "what goes with scope",
        "judging train images",
        "fidelity, seed 0",
        "writing the report",
    }


@pytest.mark.parametrize("stage", ["train_sae", "score"])
def test_a_stage_stops_where_it_is_told_and_depends_on_no_folder(finished: Path, tmp_path: Path, stage: str) -> None:
    assert run_tiny(tmp_path, f"stage={stage}").files is None
    made, before = find_artifacts(tmp_path), find_artifacts(finished)
    last = STAGES.index(stage)
    assert {name.split("/")[0] for name in made} == set(STAGES[: last + 1])
    for name, manifest in made.items():  # the same names, and the same bytes
        numbers = {file: entry for file, entry in manifest["files"].items() if file.endswith((".npy", ".safetensors"))}
        assert numbers.items() <= before[name]["files"].items()


def test_manifests_chain_and_hold_what_made_them(finished: Path) -> None:
    artifacts = find_artifacts(finished)
    by_stage = {name.split("/")[0]: manifest for name, manifest in artifacts.items()}
    hashes = {name: manifest["hash"] for name, manifest in artifacts.items()}
    tokens = {split: hashes[f"tokens/{find_folder(finished, 'tokens', split).name}"] for split in ("train", "test")}
    sae, ranking, scores = (by_stage[stage]["hash"] for stage in ("train_sae", "rank", "score"))
    assert by_stage["train_sae"]["upstream"] == {"tokens": tokens["train"]}
    assert by_stage["rank"]["upstream"] == {"sae": sae, "tokens": tokens["train"]}
    scenes = {f"scenes_{of}": hashes[f"scenes/{find_folder(finished, 'scenes', of).name}"] for of in ("train", "test")}
    assert by_stage["score"]["upstream"] == {"sae": sae, "ranking": ranking, **scenes}
    assert by_stage["probe"]["upstream"] == {"sae": sae, **tokens}
    assert by_stage["report"]["upstream"] == {"score_seed0": scores}
    tree = to_tree(make_tiny_config(finished))
    del tree["output_dir"]
    for name, manifest in artifacts.items():
        folder = finished / "artifacts" / name
        assert folder.name.endswith(manifest["hash"])
        assert manifest.keys() >= {"versions", "commit", "hardware", "wall_s", "created"}
        present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert manifest["files"].keys() == present - {"manifest.json"}
        written = yaml.safe_load((folder / "config.yaml").read_text())
        assert Path(written.pop("output_dir")).name == "finished_run"  # where it was made, of which this is a copy
        assert written == tree


# -- what is reused ------------------------------------------------------------------------------------------------


def test_the_second_run_computes_nothing_and_says_so(
    finished: Path, first_run: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    forbid(monkeypatch, "tokens_of_layers", "resume")
    before = {path: path.stat().st_mtime_ns for path in (finished / "artifacts").rglob("*") if path.is_file()}
    again = run_tiny(finished)
    assert {event for event, _, _ in again.events} == {"reused"}
    assert set(again.stages("reused")) == set(STAGES) - set(READ_ONCE)
    assert "reused  report/" in again.text
    assert again.files == first_run.files
    assert {path: path.stat().st_mtime_ns for path in (finished / "artifacts").rglob("*") if path.is_file()} == before


def test_a_new_gamma_is_probed_and_nothing_else(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(finished, tmp_path)
    forbid(monkeypatch, "tokens_of_layers")
    new = run_tiny(output_dir, "stage=probe", "partition.rule=quantile", "partition.quantile=0.7")
    assert set(new.stages("built")) == {"features", "probe"}
    assert set(UP_TO_SCORE) <= set(new.stages("reused"))
    reused = " ".join(set(new.names("reused", "probe")) - set(new.names("built", "probe")))
    for name in ("original", "reconstruct_all_kept", "error_preserving_without_all", "reconstruct_without_all"):
        assert name in reused
    built = new.names("built", "probe")
    assert any("error_preserving_without_high" in name for name in built)
    assert all("without_high" in name or "without_low" in name or "random" in name for name in built)


def test_a_new_k_cds_up_to_k_max_scores_nothing_again(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(finished, tmp_path)
    forbid(monkeypatch, "tokens_of_layers")
    new = run_tiny(output_dir, "stage=probe", "scope.k_cds=3")
    assert set(new.stages("built")) <= {"features", "probe"}
    assert set(UP_TO_SCORE) <= set(new.stages("reused"))


def test_the_original_row_is_trained_once_for_all_seeds_and_gammas(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(finished, tmp_path)
    trained = []

    def run_and_count(variants: Any, *args: Any, **options: Any) -> Any:
        trained.extend(variant.role.name for variant in variants)
        return run_probes(variants, *args, **options)

    monkeypatch.setattr(probing, "run_probes", run_and_count)
    run_tiny(output_dir, "stage=probe", "seeds=[0,1]", "partition.gamma=0.05")
    assert "group" in trained
    assert "original" not in trained
    for stage in ("features", "probe"):
        found = [name for name in find_artifacts(output_dir) if name.startswith(stage)]
        assert len([name for name in found if "-original-" in name]) == 1


def test_equal_groups_are_trained_once_and_keep_their_own_names(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(finished, tmp_path)
    draw_without_saving(monkeypatch)
    halves = ("partition.rule=quantile", "partition.quantile=0.5")
    run_tiny(output_dir, "stage=probe", *halves)
    forbid(monkeypatch, "tokens_of_layers", "resume")
    again = run_tiny(output_dir, "partition.rule=bands", "partition.n_bands=2", "probe.n_draws=0")
    assert set(again.stages("built")) == {"latents", "cross", "report"}
    assert again.files is not None
    rows = again.files.tables["removal"]["csv"].read_text()
    assert "without band 1 of 2" in rows
    assert "without band 2 of 2" in rows
    assert "scope" not in rows  # the names under which they were trained
    between = partition_of(Context(make_tiny_config(output_dir, *halves), Recorder()), 0).gamma
    assert between is not None
    nearby = run_tiny(output_dir, "stage=probe", f"partition.gamma={between + 1e-9}")
    assert nearby.stages("built") == []


def forbid_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reading tokens and encoding images raise."""

    def refuse(*args: Any) -> Any:
        raise AssertionError("tokens were read")

    forbid(monkeypatch, "tokens_of_layers", "resume")
    monkeypatch.setattr(TokenSource, "iterate", refuse)


def test_another_gamma_or_k_reads_no_token(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output_dir = copy_run(finished, tmp_path)
    forbid_tokens(monkeypatch)
    for override in ("partition.gamma=0.05", "scope.k_cds=3", "partition.rule=otsu"):
        ctx = Context(make_tiny_config(output_dir, override), Recorder())
        assert not Confounds.at(ctx, 0).get().built
        assert not Outliers.at(ctx, 0).get().built
        assert Latents.at(ctx, 0).get().built
        groups = group_activation_of(ctx, 0)
        assert sum(of.n_features for of in groups.groups.values()) == len(partition_of(ctx, 0).unscored)


def test_another_solver_reads_the_same_features(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(finished, tmp_path)
    forbid_tokens(monkeypatch)
    quick = ("probe.classification_l2=[1]", "probe.classification_l2_halvings=0", "probe.lbfgs_max_iterations=3")
    lbfgs = ("stage=probe", "probe.tasks=[classification]", "probe.classification_solver=lbfgs", *quick)
    new = run_tiny(output_dir, *lbfgs)
    assert set(new.stages("built")) == {"probe"}
    assert set(FEATURES) <= set(new.stages("reused"))
    assert "at a time" not in new.text
    few = run_tiny(output_dir, *lbfgs, "probe.lbfgs_max_iterations=4", "probe.memory_gb=1e-9")
    assert few.text.count("classification: 1 of") == 1


def test_features_that_do_not_fit_are_refused(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output_dir = copy_run(finished, tmp_path, but=(*FEATURES, "probe", "report"))
    asked: list[int] = []

    def check_disk(self: Context, n_bytes: int) -> None:
        asked.append(n_bytes)
        if len(asked) == 3:  # early; with the parts that are joined; with the means of images
            raise InputError("no room")

    monkeypatch.setattr(Context, "check_disk", check_disk)
    with pytest.raises(InputError, match="no room"):
        run_tiny(output_dir, "stage=probe", "probe.tasks=[classification]")
    assert 0 < asked[0] < asked[1] < asked[2]
    assert {name.split("/")[0] for name in find_artifacts(output_dir)} == {*STAGES} - {"probe", "report"}


def test_an_empty_group_is_a_marked_row(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output_dir = copy_run(finished, tmp_path)
    draw_without_saving(monkeypatch)
    files = run_tiny(output_dir, "partition.gamma=1").files
    assert files is not None
    rows = files.tables["removal"]["csv"].read_text()
    assert "without high-scope" in rows
    assert "without low-scope" in rows
    assert rows.count("original tokens") == 1


# -- what a hash depends on ----------------------------------------------------------------------------------------


class MissingError(Exception):
    """An artifact is not there, and was not to be built."""


def find_first_missing(monkeypatch: pytest.MonkeyPatch, output_dir: Path, *overrides: str) -> str | None:
    """Return the stage of the first artifact that a run would build, None if it has them all."""

    def refuse(self: Store, spec: Spec, *args: Any) -> Any:
        raise MissingError(spec.stage)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_build_locked", refuse)
        try:
            run_tiny(output_dir, *overrides)
        except MissingError as missing:
            return str(missing)
    return None


@pytest.mark.parametrize(
    "overrides",
    [
        ["trainer.device=auto", "trainer.n_threads=1"],
        ["data.n_workers=2", "scope.n_workers=2", "scope.batch_images=7"],
        ["trainer.progress=true", "logger=csv"],
        ["sae.log_every_n_steps=3", "sae.checkpoint_every_n_steps=7"],
        ["model.name=another_name", "logger.group=another_group"],
        ["model.layer=0"],  # the block that -2 is, of two
        ["probe.variants_per_chunk=3", "probe.feature_batch_images=5", "probe.memory_gb=0.001"],
        ["scope.k_cds=1", "partition.gamma=0.1", "stage=score"],
    ],
    ids=lambda overrides: overrides[0],
)
def test_hashes_do_not_depend_on_how_it_is_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str]
) -> None:
    assert find_first_missing(monkeypatch, finished, *overrides) is None


def test_hashes_do_not_depend_on_the_folder(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_first_missing(monkeypatch, copy_run(finished, tmp_path / "moved")) is None


@pytest.mark.parametrize(
    ("override", "stage"),
    [
        ("data.seed=1", "scenes"),
        ("data.n_train=41", "scenes"),
        ("model.layer=1 probe.readouts=[patch_mean]", "tokens"),
        ("model.seed=1", "tokens"),
        ("data.cache_dtype=float16", "tokens"),
        ("sae.k=5", "train_sae"),
        ("sae.lr=0.002", "train_sae"),
        ("seeds=[1]", "train_sae"),
        ("scope.k_max=4", "confounds"),
        ("scope.rank_by=mean", "rank"),
        ("scope.shift_patches=2", "score"),
        ("scope.emd=sinkhorn", "score"),
        ("probe.target=light", "probe"),
        ("probe.seed=1", "features"),  # other random groups
        ("probe.feature_dtype=float16", "features"),
        ("probe.classification_epochs=3", "probe"),
        ("outliers.c=5", "outliers"),
        ("outliers.n_images=7", "outliers"),
        ("partition.gamma=0.099999", "latents"),
    ],
)
def test_hashes_depend_on_what_changes_the_result(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, stage: str
) -> None:
    assert find_first_missing(monkeypatch, copy_run(finished, tmp_path / "run"), *override.split()) == stage


def test_a_damaged_artifact_is_rebuilt_and_what_came_after_it_stays(finished: Path, tmp_path: Path) -> None:
    output_dir = copy_run(finished, tmp_path)
    folder = find_folder(output_dir, "score")
    good = compute_checksum(folder / "emd.npy")
    content = bytearray((folder / "emd.npy").read_bytes())
    content[-3] ^= 1
    (folder / "emd.npy").write_bytes(content)
    host = "".join(character for character in socket.gethostname() if character.isalnum())
    stale = (
        folder.parent / f".{folder.name.rsplit('-', 1)[1]}.{host}-4194304-killed.tmp"
    )  # what a killed process leaves
    stale.mkdir()
    (stale / "maps.npy").write_bytes(b"half")
    again = run_tiny(output_dir)
    assert again.stages("damaged") == ["score"]
    assert again.stages("built") == ["score"]
    assert compute_checksum(folder / "emd.npy") == good
    assert not stale.exists()


def test_a_missing_file_is_noticed(finished: Path, tmp_path: Path) -> None:
    output_dir = copy_run(finished, tmp_path, but=("probe", "report"))
    (find_folder(output_dir, "rank") / "top_images.npy").unlink()
    again = run_tiny(output_dir, "stage=rank")
    assert (again.stages("damaged"), again.stages("built")) == (["rank"], ["rank"])


# -- gamma ---------------------------------------------------------------------------------------------------------


def test_gamma_comes_from_the_training_split(finished: Path, tmp_path: Path) -> None:
    output_dir = copy_run(finished, tmp_path / "run", but=("rank", "score", "probe", "report"))
    config = make_tiny_config(output_dir, "partition=quantile", "partition.quantile=0.6")
    found = score_module.partition_of(Context(config, Recorder()), 0)

    sae = load_sae(find_folder(output_dir, "train_sae")).requires_grad_(False)
    cache = TokenCache(find_folder(output_dir, "tokens", "train"))
    images = SceneSet(find_folder(output_dir, "scenes", "train"))
    assert (images.split, len(images), len(cache)) == ("train", N_TRAIN, N_TRAIN)
    ranking = rank(sae, cache, config.scope.n_ranks)
    backbone = load_backbone(ModelConfig(kind=ModelKind.planted_registers))
    scores = score_latents(backbone, sae, images, ranking, config.scope, layer=config.model.layer)
    expected = make_partition(scores.cds(config.scope.k_cds).values, ranking.mean_act, config.partition)
    assert found.gamma == expected.gamma
    for ours, theirs in ((found.high, expected.high), (found.low, expected.low), (found.unscored, expected.unscored)):
        assert np.array_equal(ours, theirs)

    # other test images, the same scores and the same gamma
    fewer = run_tiny(output_dir, "stage=score", f"data.n_test={N_TEST - 5}")
    assert fewer.stages("built") == []
    assert fewer.names("reused", "score") == [find_folder(output_dir, "score").name]


def swap_splits(ctx: Context, split: str, data: Any = None) -> ImageSet:
    return open_split(ctx, "test" if split == "train" else "train", data)


def partition_on_test_images(ctx: Context, seed: int) -> Any:
    cache = TokenCache(Tokens.at(ctx, "test").folder)
    sae, scope = sae_of(ctx, seed).load(), ctx.config.scope
    ranking = rank(sae, cache, scope.n_ranks)
    backbone = load_backbone(ModelConfig(kind=ModelKind.planted_registers))
    scores = score_latents(backbone, sae, open_split(ctx, "test"), ranking, scope)
    return make_partition(scores.cds(scope.k_cds).values, ranking.mean_act, ctx.config.partition)


@pytest.mark.parametrize(
    ("where", "name", "fault"),
    [
        (score_module, "open_split", swap_splits),
        (score_module, "partition_of", partition_on_test_images),
    ],
    ids=["splits", "partition"],
)
def test_a_planted_fault_turns_the_gamma_test_red(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fault: Any
) -> None:
    monkeypatch.setattr(where, name, fault)
    with pytest.raises(AssertionError):
        test_gamma_comes_from_the_training_split(finished, tmp_path)


def test_a_task_is_probed_on_data_of_its_own(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other data have tokens and probe artifacts of their own; what the other tasks have is not made again."""
    output_dir = copy_run(finished, tmp_path, but=("report",))
    draw_without_saving(monkeypatch)
    other = "probe_data.segmentation={kind: scenes, seed: 5, n_train: 20, n_test: 10}"
    first = run_tiny(output_dir, other)
    assert first.names("built", "tokens") != []
    assert first.names("built", "train_sae") == []
    n_probes = len(first.names("built", "probe"))
    assert first.files is not None
    header = first.files.tables["removal"]["csv"].read_text().splitlines()[0]
    assert {"top1_patch_mean", "miou", "depth_rmse_m"} <= set(header.split(","))
    own = json.loads(run_tiny(finished).files.summary.read_text())["removal"][0]  # type: ignore[union-attr]
    mixed = json.loads(first.files.summary.read_text())["removal"][0]
    assert mixed["role"] == "original"
    assert mixed["depth_rmse_m"] == own["depth_rmse_m"]  # of the same data
    assert mixed["miou"] != own["miou"]
    assert run_tiny(output_dir, other).stages("built") == []

    third = run_tiny(output_dir, other.replace("seed: 5", "seed: 6"))
    assert len(third.names("built", "probe")) == n_probes / 2  # classification and depth are there


def test_a_task_without_truth_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "pictures" / "a.png")
    root = f"root: '{tmp_path / 'pictures'}', test_share: 0"
    with pytest.raises(InputError, match=r"know depth for the probe of depth, got data=image_folder"):
        run_tiny(tmp_path, f"probe_data.depth={{kind: image_folder, {root}}}", "stage=probe")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["partition=quantile", "partition.quantile=0.4"], ["quantile 0.4", "without high-scope"]),
        (["partition=bands", "partition.n_bands=3"], ["without band 1 of 3", "without band 3 of 3"]),
    ],
    ids=["quantile", "bands"],  # other runs divide by mass; all rules are tested in tests/scope
)
def test_other_rules_run_through_to_the_report(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], words: list[str]
) -> None:
    output_dir = copy_run(finished, tmp_path, but=("report",))
    draw_without_saving(monkeypatch)
    files = run_tiny(output_dir, *overrides).files
    assert files is not None
    page = files.page.read_text()
    for word in words:
        assert word in page


# -- interruptions -------------------------------------------------------------------------------------------------


@pytest.fixture
def _sigint_restored() -> Iterator[None]:
    """Lightning leaves the process deaf to Ctrl-C once it has seen one."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, after: int) -> None:
    """Let a function work `after` times, and then press Ctrl-C."""
    original, calls = getattr(owner, name), []

    def press(*args: Any, **options: Any) -> Any:
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(None)
        return original(*args, **options)

    monkeypatch.setattr(owner, name, press)


INTERRUPTIONS = [
    # stage, what is done a few times, and how often; what the shared run lends; what is finished before
    ("scenes", render, "render_split_part", 1, STAGES, ["scenes"]),
    ("tokens", Backbone, "tokens_of_layers", 2, STAGES[1:], ["scenes", "scenes"]),
    ("train_sae", SAEModule, "training_step", 9, STAGES[2:], ["scenes", "scenes", "tokens", "tokens"]),
    ("rank", TopImages, "update", 2, STAGES[3:], ["scenes", "scenes", "tokens", "tokens", "train_sae"]),
    (
        "score",
        CropEncoder,
        "_encode_batch",
        1,
        STAGES[4:],
        ["scenes", "scenes", "tokens", "tokens", "train_sae", "rank"],
    ),
    ("features", Backbone, "resume", 2, STAGES[5:], [*UP_TO_SCORE, "sample", "confounds"]),
    (
        "probe",
        ProbeModule,
        "training_step",
        9,
        STAGES[5:],
        [*UP_TO_SCORE, "sample", "confounds", *FEATURES, *3 * ["probe"]],
    ),
]


@pytest.mark.usefixtures("_sigint_restored")
@pytest.mark.parametrize(
    ("stage", "owner", "name", "after", "missing", "kept"), INTERRUPTIONS, ids=[case[0] for case in INTERRUPTIONS]
)
def test_ctrl_c_loses_nothing_that_is_finished(
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    owner: Any,
    name: str,
    after: int,
    missing: tuple[str, ...],
    kept: list[str],
) -> None:
    output_dir = copy_run(finished, tmp_path, but=(*missing, *FEATURES))
    monkeypatch.setattr(source, "BATCH_IMAGES", 10)
    monkeypatch.setattr(passes, "BATCH_IMAGES", 10)
    goal = {"scenes": "train_sae", "tokens": "train_sae", "features": "probe"}.get(stage, stage)
    overrides = (f"stage={goal}", "probe.variants_per_chunk=3", "scope.batch_images=10")
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, after)
        with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
            run_tiny(output_dir, *overrides)
    error = caught.value
    assert isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)
    left = find_artifacts(output_dir)  # every folder under a final name is whole
    assert set(kept) == {name.split("/")[0] for name in left}
    assert kept.count(stage) == len([name for name in left if name.startswith(f"{stage}/")])
    assert not list(output_dir.rglob("*.tmp"))

    again = run_tiny(output_dir, *overrides)
    done = find_artifacts(output_dir)
    assert {name: done[name]["created"] for name in left} == {name: left[name]["created"] for name in left}
    assert not {f"{stage}/{name}" for event, stage, name in again.events if event == "built"} & left.keys()
    assert goal in {name.split("/")[0] for name in done}
    assert find_artifact(output_dir, done[next(name for name in done if name.startswith(goal))]) is not None
    if stage == "train_sae":
        assert "resuming" in again.text
        weights = [find_folder(folder, "train_sae") / "sae.safetensors" for folder in (output_dir, finished)]
        assert compute_checksum(weights[0]) == compute_checksum(weights[1])


# -- the command line ----------------------------------------------------------------------------------------------


def test_a_sweep_over_gamma_scores_once(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir = copy_run(finished, tmp_path, but=("score", "probe", "report"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    overrides = make_overrides(output_dir, "partition.gamma=0.05,0.3", "stage=probe")
    monkeypatch.setattr(sys, "argv", ["infoscope", "-m", *overrides])
    assert app.run_command_line() == 0
    printed = capsys.readouterr().out
    assert printed.count("built  score/") == 1
    originals = [name for name in find_artifacts(output_dir) if "-original-" in name]
    assert [name.split("/")[0] for name in originals] == ["features", "probe"]
    assert re.search(r"probed ablations of seed 0: \d+ built, [1-9]\d* reused", printed)
    variants = [manifest for name, manifest in find_artifacts(output_dir).items() if name.startswith("probe/")]
    assert {json.dumps(manifest["upstream"]) for manifest in variants} == {json.dumps(variants[0]["upstream"])}
