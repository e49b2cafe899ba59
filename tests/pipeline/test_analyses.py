"""The analyses as stages: what they build, what they reuse, what they refuse."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from infoscope.analyses.attribution import AttributionResult
from infoscope.analyses.latent_orders import METHODS
from infoscope.analyses.masking import MaskingResult, make_curves
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.pipeline.context import Context
from infoscope.runtime.errors import InputError
from infoscope.sae.checkpoint import load_sae
from infoscope.sae.latent_table import load_latents
from infoscope.scope.stability import StabilityResult
from infoscope.stages.attribute.stage import Attribute
from infoscope.stages.extent.stage import Extent
from infoscope.stages.image_codes import Codes
from infoscope.stages.images import open_split
from infoscope.stages.latents import Latents
from infoscope.stages.masking.stage import Masking
from infoscope.stages.report.stage import load_parts
from infoscope.stages.score.stage import Score
from infoscope.stages.stability.stage import make_section_at_hand
from infoscope.stages.steer.stage import Steer
from infoscope.stages.steer.suppress import Suppress
from infoscope.vision.backbone import Backbone
from tests.support.pipeline_samples import (
    ANALYSES,
    N_TEST,
    READ_ONCE,
    Recorder,
    collect_tiny,
    copy_run,
    find_artifacts,
    find_folder,
    finish_tiny_run,
    make_tiny_config,
    run_tiny,
    save_noise,
)

SHIPPED = ("model=scenes_clip", "data.n_train=24", "sae.n_tokens=4000", "predict.n_shown=1", "predict.n_candidates=2")
FEW = ("stability.shifts=[1,2]", "stability.n_solver_latents=2", "stability.n_draws=20")


@pytest.fixture
def finished(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    """A copy of the shared run."""
    return copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path / "run")


def forbid_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Backbone, *_: object) -> None:
        raise AssertionError("the backbone was asked to encode images")

    monkeypatch.setattr(Backbone, "tokens_of_layers", refuse)


def test_the_report_joins_the_quick_ones(finished: Path) -> None:
    found = run_tiny(finished)
    assert found.stages("built") == []
    assert set(ANALYSES) - set(READ_ONCE) <= set(found.stages("reused"))
    assert found.files is not None
    summary = json.loads(found.files.summary.read_text())
    assert {"outliers", "confounds", "describe", "effects"} <= summary.keys()
    assert {"outlier_emd", "outlier_activation", "confounds", "auroc", "removal_matched"} <= found.files.tables.keys()
    assert {"describe", "class_latents", "fidelity"} <= found.files.tables.keys()


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_a_report_counts_undecided_features_by_the_intervals_that_it_shows(finished: Path, level: float) -> None:
    ctx = Context(make_tiny_config(finished, f"stability.level={level}"), Recorder())
    (scope,), intervals = Score().section(ctx).summary, make_section_at_hand(ctx).summary["intervals"]
    assert scope["n_undecided"] / scope["n_scored"] == pytest.approx(intervals["undecided_share"])
    assert scope["n_undecided"] == {0.5: 6, 0.95: 14}[level]
    assert Latents.at(ctx, 0).load()["undecided"].sum() == scope["n_undecided"]


def test_planted_registers_are_outliers_of_high_scope(finished: Path) -> None:
    """The positive control, with a trained SAE: outliers move, and the high group acts on them."""
    found = run_tiny(finished, "seeds=[0]")
    assert found.files is not None
    outliers = json.loads(found.files.summary.read_text())["outliers"]
    assert outliers["has_outlier_mode"] is True
    moved = {name: of["mean"] for name, of in outliers["emd"].items()}
    assert moved["outlier"] > 2 * moved["next_highest"] > 2 * moved["normal"]
    (activation,) = outliers["activation"]
    groups = activation["groups"]
    assert groups["high"]["ratio"] > 5 * groups["low"]["ratio"]


def test_a_model_without_text_predicts_nothing(finished: Path) -> None:
    with pytest.raises(InputError, match="has no text tower"):
        run_tiny(finished, "stage=predict")


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A run of stage=predict with the shipped CLIP, and what it said; tests may add to it."""
    folder = tmp_path_factory.mktemp("shipped")
    return folder, run_tiny(folder, *SHIPPED, "stage=predict")


@pytest.fixture
def shipped(predicted: tuple[Path, Recorder], tmp_path: Path) -> Path:
    """A copy of that run."""
    return copy_run(predicted[0], tmp_path / "shipped")


def test_predictions_are_a_report_of_their_own(predicted: tuple[Path, Recorder], shipped: Path) -> None:
    tmp_path, first = shipped, predicted[1]
    assert {"zero_shot_head", "predict", "report"} <= set(first.stages("built"))
    assert first.files is not None
    assert first.files.tables.keys() == {"predictions"}
    assert "reliability" in first.files.figures
    assert "Zero-shot top-1" in first.text
    again = run_tiny(tmp_path, *SHIPPED, "stage=predict")
    assert again.stages("built") == []
    other = run_tiny(tmp_path, *SHIPPED, "stage=predict", "partition.gamma=0.02")
    assert set(other.stages("built")) == {"predict", "report"}
    collected = collect_tiny(tmp_path, *SHIPPED, "stage=predict")
    assert collected.state == "done"
    assert {"original", "group", "control"} <= {row["role"] for row in collected.rows}
    assert all(str(row["artifact"]).startswith("predict:") for row in collected.rows)
    assert collect_tiny(tmp_path, *SHIPPED, "stage=predict", "predict.n_images=3").state.startswith(
        "missing at predict"
    )


def test_masking_is_a_report_of_its_own(shipped: Path) -> None:
    few = (*SHIPPED, "stage=masking", "masking.n_latents=[1,5]", "masking.n_draws=1")
    first = run_tiny(shipped, *few)
    assert set(first.stages("built")) == {"image_codes", "masking", "report"}
    assert first.files is not None
    assert first.files.tables.keys() == first.files.figures.keys() == {"masking"}
    assert "no classifier" in first.text
    assert "Warning" not in first.text
    assert run_tiny(shipped, *few).stages("built") == []
    result = MaskingResult.load(find_folder(shipped, "masking"))
    assert result.n_images.sum() == N_TEST
    collected = collect_tiny(shipped, *few)
    assert collected.state == "done"
    assert [row["curve"] for row in collected.rows] == [mask.curve for mask in result.masks]
    assert {row["curve"] for row in collected.rows} == {"class", "random", "high", "low"}
    assert [row["top1"] for row in collected.rows] == [result.top1(place) for place in range(len(result.masks))]


def test_labels_that_leak_into_the_masks_come_from_the_test_images(shipped: Path) -> None:
    leaks = ("stage=masking", "masking.n_latents=[100]", "masking.n_draws=0", "masking.rank_split=test")
    found = run_tiny(shipped, *SHIPPED, *leaks)
    assert [name for name in found.names("built", "image_codes") if "-test-" in name]
    assert "Warning: the latents of each class were ranked on the images that are predicted" in found.text
    ctx = Context(make_tiny_config(shipped, *SHIPPED, *leaks), Recorder())
    n_ranked = {}
    for split in ("train", "test"):
        codes, images = Codes.at(ctx, 0, split).load(), open_split(ctx, split)
        labels = images.labels("class")[codes.image_index]
        curves = make_curves(codes, labels, len(images.class_names), [100], {}, 0, 0)
        n_ranked[split] = (curves[0].order >= 0).sum(1).tolist()
    result = Masking.at(ctx, 0).load()
    assert result.ranked_on == "test"
    assert result.n_ranked.tolist() == n_ranked["test"] != n_ranked["train"]


def test_masking_needs_labels_and_text(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no text tower"):
        run_tiny(finished, "stage=masking")
    for i in range(30):
        save_noise(tmp_path / "images" / f"{i}.png", i)
    folder = ("model=scenes_clip", "data=image_folder", f"data.root={tmp_path / 'images'}")
    with pytest.raises(InputError, match="each image's true class, but data=image_folder knows no classes here"):
        run_tiny(tmp_path / "out", "stage=masking", *folder)


def test_attribution_is_a_report_of_its_own(shipped: Path) -> None:
    few = (*SHIPPED, "stage=attribute", "attribution.n_tested=3", "describe.n_clarity_images=4")
    first = run_tiny(shipped, *few)
    assert set(first.stages("built")) == {"attribution", "report"}
    assert first.files is not None
    assert first.files.tables.keys() == {"attribution", "attribution_groups"}
    assert first.files.figures.keys() == {"attribution_curves", "attribution_groups"}
    assert "exact ablation" in first.text
    assert run_tiny(shipped, *few).stages("built") == []
    assert run_tiny(shipped, *few, "partition.gamma=0.02").stages("built") == ["report"]
    result = AttributionResult.load(find_folder(shipped, "attribution"))
    assert (result.n_images.sum(), len(result.tested)) == (N_TEST, 3)
    true = run_tiny(shipped, *few, "attribution.towards=label")
    assert true.names("built", "attribution")
    labels = open_split(Context(make_tiny_config(shipped, *few), Recorder()), "test").labels("class")
    of_true = Attribute.at(Context(make_tiny_config(shipped, *few, "attribution.towards=label"), Recorder()), 0).load()
    assert of_true.n_images.tolist() == np.bincount(labels, minlength=len(of_true.class_names)).tolist()
    collected = collect_tiny(shipped, *few)
    assert collected.state == "done"
    assert [row["method"] for row in collected.rows] == list(METHODS)
    latents = Latents.at(Context(make_tiny_config(shipped, *few), Recorder()), 0)
    assert "attribution_seed0" not in vars(latents.needs)  # the table has its columns where the artifact is at hand
    table = latents.load()
    np.testing.assert_array_equal(table["attribution_share"], result.share)
    assert np.isfinite(table["semantic_alignment"]).sum() == (result.aligned_class >= 0).sum() > 0
    assert np.isnan(table["attribution"][result.n_firing == 0]).all()


def test_attribution_towards_the_true_class_needs_labels(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no text tower"):
        run_tiny(finished, "stage=attribute")
    for i in range(30):
        save_noise(tmp_path / "images" / f"{i}.png", i)
    folder = ("model=scenes_clip", "data=image_folder", f"data.root={tmp_path / 'images'}", "attribution.towards=label")
    with pytest.raises(InputError, match="each image's true class, but data=image_folder knows no classes here"):
        run_tiny(tmp_path / "out", "stage=attribute", *folder)


def test_steering_is_a_report_of_its_own(shipped: Path, tmp_path: Path) -> None:
    few = (*SHIPPED, "stage=steer", "steer.n_latents=5", "steer.n_images=3", "steer.n_suppressed=[2]")
    first = run_tiny(shipped, *few, "steer.min_group_images=1")
    assert {"steering", "suppression", "report"} <= set(first.stages("built"))
    assert first.files is not None
    assert first.files.tables.keys() == {"steering", "steering_words", "suppression"}
    assert first.files.figures.keys() == {"steering", "suppression"}
    assert run_tiny(shipped, *few, "steer.min_group_images=2").stages("built") == ["report"]
    ctx = Context(make_tiny_config(shipped, *few), Recorder())
    found, removed = Steer.at(ctx, 0).load(), Suppress.at(ctx, 0).load()
    assert len(found.measured) == 5
    assert (found.n_images, len(found.words)) == (3, 9)
    test = open_split(ctx, "test")
    np.testing.assert_array_equal(removed.classes, test.labels("class")[removed.image_index])
    assert removed.correct.shape == (1 + 1 + 3, N_TEST)
    table = Latents.at(ctx, 0).load()
    for name in ("steering_effect", "steering_consistency", "steering_specificity"):
        np.testing.assert_array_equal(np.flatnonzero(np.isfinite(table[name])), found.measured)
    rows = collect_tiny(shipped, *few).rows
    assert rows[0]["variant"] == "all measured"
    assert "nothing removed" in {row["variant"] for row in rows}
    words = tmp_path / "words.txt"
    words.write_text("fog\nsnow\nstriped\n")
    other = run_tiny(shipped, *few, f"steer.words={words}")
    assert "steering" in other.stages("built")
    assert "suppression" not in other.stages("built")
    words.write_text("fog\nfog\n")
    with pytest.raises(InputError, match=r"Expected each word of steer\.words once, .* 'fog' in lines 1 and 2"):
        run_tiny(shipped, *few, f"steer.words={words}")


def test_stability_is_a_report_of_its_own(finished: Path) -> None:
    first = run_tiny(finished, "stage=stability", *FEW)
    assert set(first.stages("built")) == {"stability", "report"}
    assert first.files is not None
    assert first.files.tables.keys() == {"stability"}
    result = StabilityResult.load(find_folder(finished, "stability") / "seed0")
    kinds = {variation.kind.name for variation in result.variations}
    assert kinds == {"shift", "diagonal", "images", "k_cds", "solver"}  # one SAE seed has none to be compared with
    assert np.isfinite(result.cds).any()
    assert run_tiny(finished, "stage=stability", *FEW).stages("built") == []
    collected = collect_tiny(finished, "stage=stability", *FEW)
    assert collected.state == "done"
    assert [row["variant"] for row in collected.rows] == [variation.name for variation in result.variations]


def test_masks_of_labels_are_a_report_of_their_own(finished: Path) -> None:
    """The planted registers have no label; what is chosen on training images is read by the table of latents."""
    first = run_tiny(finished, "stage=segment")
    assert set(first.stages("built")) == {"label_screen", "segment", "report"}
    assert first.files is not None
    assert first.files.tables.keys() == {"segment", "segment_groups", "segment_latents"}
    assert run_tiny(finished, "stage=segment").stages("built") == []
    other = run_tiny(finished, "stage=segment", "segment.normalise=image", "segment.n_thresholds=3")
    assert set(other.stages("built")) == {"label_screen", "segment", "report"}
    assert run_tiny(finished, "stage=segment", "partition.gamma=0.06").stages("built") == ["report"]
    collected = collect_tiny(finished, "stage=segment")
    assert collected.state == "done"
    assert {row["label"] for row in collected.rows} <= set(SceneSet.label_names)
    run_tiny(finished, "stage=latents")
    table = load_latents(finished, seed=0)
    best = table["best_label_iou"] == np.nanmax(table["best_label_iou"])
    assert table["best_label"][best][0] in SceneSet.label_names
    assert table["best_label_iou"][best][0] in [pytest.approx(row["iou_train"]) for row in collected.rows]


def test_masks_of_labels_need_label_maps(tmp_path: Path) -> None:
    for i in range(4):
        save_noise(tmp_path / "images" / f"{i}.png", i)
    with pytest.raises(InputError, match="stage=segment compares latents with label maps, which these images do not"):
        run_tiny(tmp_path, "stage=segment", "data=image_folder", f"data.root={tmp_path / 'images'}")


def test_selection_is_a_report_of_its_own(finished: Path) -> None:
    few = ("stage=select", "select.n_kept=[1,2]", "select.n_bands=2", "select.n_draws=2")
    first = run_tiny(finished, *few)
    assert set(first.stages("built")) == {"features", "probe", "report"}
    assert first.files is not None
    assert first.files.tables.keys() == {"selection"}
    summary = json.loads(first.files.summary.read_text())["selection"]
    assert summary.keys() == {"1", "2"}
    assert {"activation", "random", "probe"} <= summary["1"].keys()
    again = run_tiny(finished, *few)
    assert again.stages("built") == []
    collected = collect_tiny(finished, *few)
    assert collected.state == "done"
    assert {row["role"] for row in collected.rows} >= {"original", "kept"}
    more = run_tiny(finished, "stage=select", "select.n_kept=[1,2,3]", *few[2:])
    assert len(more.names("built", "probe")) <= 9  # what keeps one or two features exists


def test_the_removal_curve_is_a_report_of_its_own(finished: Path) -> None:
    few = ("stage=curve", "curve.mass_shares=[0.3,0.7]")
    first = run_tiny(finished, *few)
    assert set(first.stages("built")) <= {"features", "probe", "report"}
    assert first.files is not None
    assert first.files.tables.keys() == first.files.figures.keys() == {"removal_curve"}
    again = run_tiny(finished, *few)
    assert again.stages("built") == []
    collected = collect_tiny(finished, *few)
    assert collected.state == "done"
    roles = [row["role"] for row in collected.rows]
    assert roles == ["original", "all"] + 2 * 3 * ["part"]
    more = run_tiny(finished, "stage=curve", "curve.mass_shares=[0.3,0.5,0.7]")
    assert len(more.names("built", "probe")) <= 3  # the others exist


def test_effects_alone_probe_the_matched_groups_and_no_others(finished: Path, tmp_path: Path) -> None:
    whole, output_dir = find_artifacts(finished), copy_run(finished, tmp_path, but=("effects", "probe"))
    made = run_tiny(output_dir, "stage=effects")
    assert set(made.stages("built")) == {"probe", "effects", "report"}
    assert "in groups matched in" in made.text
    probed = {name: of for name, of in find_artifacts(output_dir).items() if name.startswith("probe/")}
    assert len(probed) >= 3
    assert probed.keys() < {name for name in whole if name.startswith("probe/")}


@pytest.mark.parametrize("kind", ["batchtopk", "jumprelu", "matryoshka_k", "matryoshka_prefix"])
def test_other_saes_are_trained_on_the_same_tokens(finished: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """One pass over the backbone serves SAEs of every kind, width and k."""
    forbid_encoding(monkeypatch)
    made = run_tiny(finished, f"sae={kind}", "stage=rank")
    assert made.stages("built") == ["train_sae", "rank"]
    sae = load_sae(find_folder(finished, "train_sae", kind))
    assert sae.activation.kind == kind
    wider = run_tiny(finished, f"sae={kind}", "stage=train_sae", "sae.expansion_factor=2", "sae.lr=0.01")
    assert wider.stages("built") == ["train_sae"]


def test_a_report_along_the_other_diagonal_is_refused(finished: Path) -> None:
    with pytest.raises(InputError, match=r"scope\.diagonal=anti is for stage=score"):
        run_tiny(finished, "scope.diagonal=anti")
    scored = run_tiny(finished, "scope.diagonal=anti", "stage=score")
    assert scored.stages("built") == ["score"]


def test_extents_are_a_report_of_their_own_and_then_a_part_of_one(finished: Path) -> None:
    few = ("scope.extent.radii=[0,1]", "scope.extent.n_images=1", "scope.extent.n_donors=1", "data.n_workers=2")
    plain = Context(make_tiny_config(finished, *few), Recorder())
    assert "extent" not in load_parts(plain)  # nobody has made it
    first = run_tiny(finished, *few, "stage=extent")
    assert set(first.stages("built")) == {"extent", "report"}
    assert first.units["measuring extents, seed 0"] == "images"
    assert first.files is not None
    assert first.files.tables.keys() == {"extent", "extent_groups", "extent_correlates", "extent_auroc"}
    assert "Spearman correlation of the extent" in first.text
    same = ("scope.extent.budget_images=200", "scope.extent.n_latents=64")  # all that is wanted
    assert run_tiny(finished, *few, *same, "stage=extent").stages("built") == []
    other = run_tiny(finished, *few, "stage=extent", "scope.extent.donor=mean", "scope.extent.n_donors=2")
    assert set(other.stages("built")) == {"extent", "report"}
    ctx = Context(make_tiny_config(finished, *few), Recorder())
    assert "extent" in load_parts(ctx)
    found, table = Extent.at(ctx, 0).load(), Latents.at(ctx, 0).load()
    np.testing.assert_array_equal(table["extent"], found.extent)
    np.testing.assert_array_equal(table["n_extent_images"], found.n_measured)
    collected = collect_tiny(finished, *few, "stage=extent")
    assert collected.state == "done"
    assert [row["variant"] for row in collected.rows] == ["all features", "high", "low"]
    assert collected.rows[0]["median_extent"] == np.nanmedian(found.extent)
    assert all(str(row["artifact"]).startswith("extent:") for row in collected.rows)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sae.tokens=cls",), "An SAE of CLS tokens has no activation maps to score"),
        (("model=scenes_clip", "model.site=pooled"), "features have no place in the picture"),
        (("scope.extent.radii=[0,6]",), r"scope.extent.radii to be at most 5, so that no window covers the grid of 12"),
        (("scope.extent.radii=[1]",), "begin with 0, the patch alone"),
        (("scope.extent.budget_images=20",), "budget_images to be at least 39"),
        (("scope.extent.blur_patches=1",), "scope.extent.blur_patches is read by scope.extent.donor=blur alone"),
        (("scope.extent.donor=mean", "scope.extent.n_donors=3"), "n_donors is read by scope.extent.donor=images alone"),
        (("data.n_train=8", "scope.extent.n_donors=8"), "more images than scope.extent.n_donors=8, .* got 8: lower it"),
    ],
)
def test_extents_are_refused(finished: Path, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run_tiny(finished, *overrides, "stage=extent")


def test_a_plan_says_what_the_budget_leaves_out(finished: Path) -> None:
    wanted = ("scope.extent.n_images=3", "scope.extent.n_donors=2", "scope.extent.budget_images=1500")
    planned = run_tiny(finished, "stage=extent", "plan=true", *wanted)
    assert "at most 1,376 forward passes" in planned.text
    windows = "2 images, 2 donors (other images), radii 0, 1, 2, 3, 5; all 32 latents: at most 1,376 pictures"
    assert f"Windows: {windows}" in planned.text
    assert "Wanted were 3 images" in planned.text
    held = re.search(r"at most ([\d.]+) MB of memory", planned.text.replace("\n", " "))
    assert held is not None
    assert float(held[1]) > 64 * 3 * 96**2 / 1e6  # pictures of a batch, and of the donors
