"""Every experiment on the planted-register backbone: its numbers must have the signs that theory demands.

One token of each picture leaps with the context and carries the scene's light; every other token tells only about
itself. All experiments share one folder, so tokens, SAE, scores and heads are made once.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from infoscope.analyses.latent_orders import METHODS
from infoscope.commands.experiments.sweep import main
from infoscope.scope.scores import Scores
from infoscope.stages import backbone as backbone_module
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig
from infoscope.vision.load import compute_model_fingerprint
from infoscope.vision.planted import LIGHT_ANCHORS, PlantedRegisters
from tests.support.experiment_samples import PLANTED, SWEEPS, check_files, load_experiment, read_rows, run_planted
from tests.support.pipeline_samples import save_noise

CHANCE = 1 / 4
"""Top-1 of guessing the light."""


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("planted")


def find_row(rows: list[dict[str, str]], *section: str, **wanted: str) -> dict[str, Any]:
    """Return the only row with these fields whose section holds these words; numbers as numbers."""
    found = [
        row
        for row in rows
        if all(word in row.get("section", "") for word in section)
        and all(row[key] == value for key, value in wanted.items())
    ]
    assert len(found) == 1, f"{len(found)} rows of {section} {wanted}"
    return {key: _read_number(value) for key, value in found[0].items()}


def find_hashes(rows: list[dict[str, str]], stage: str) -> set[str]:
    """Return the artifacts of a stage from which these rows were read."""
    return {name for row in rows for name in row["artifacts"].split() if name.startswith(f"{stage}:")}


def _read_number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def test_removal_takes_the_light_with_the_high_group_and_the_map_with_the_low_one(output_dir: Path) -> None:
    folder = run_planted("feature_removal", output_dir)
    tables = ["removal", "removal_against_random", "removal_delta", "removal_frozen_head", "removal_more"]
    check_files(folder, tables, ["removal", "removal_against_random"])
    rows = read_rows(folder / "removal.csv")
    original = find_row(rows, variant="original tokens")
    assert original["top1_patch_mean"] > 0.8
    high, low = (find_row(rows, "error-preserving", variant=f"without {name}-scope") for name in ("high", "low"))
    for readout in ("top1_patch_mean", "top1_cls_final"):
        assert high[readout] < original[readout] - 0.4
        assert low[readout] > original[readout] - 0.05
        random = find_row(rows, "error-preserving", variant="random, mass of high")
        assert random[readout] > high[readout] + 0.3
    assert high["miou"] == pytest.approx(original["miou"], abs=0.02)
    assert low["miou"] < original["miou"] - 0.03
    assert high["depth_rmse_m"] == pytest.approx(original["depth_rmse_m"], abs=0.1)
    assert low["depth_rmse_m"] > original["depth_rmse_m"] + 0.15
    assert high["mass_share"] < 0.3 < 0.7 < low["mass_share"]


def test_outlier_tokens_leap_and_normal_ones_stay(output_dir: Path) -> None:
    folder = run_planted("outlier_emd", output_dir)
    check_files(folder, ["outlier_emd"], ["outlier_emd", "norms_by_block"])
    rows = read_rows(folder / "outlier_emd.csv")
    outlier, next_highest, normal = rows[:3]
    assert float(outlier["emd"]) > float(next_highest["emd"]) > float(normal["emd"]) > 0
    assert float(outlier["emd"]) == pytest.approx(
        float(outlier["chance"]), abs=0.08
    )  # where they land, context decides
    assert float(rows[3]["emd"]) > 2 * float(rows[3]["emd_se"])  # against the next-highest, on the same images
    text = (folder / "outlier_emd.md").read_text()
    assert "they form a mode of their own" in text


def test_the_high_group_acts_on_outliers_and_the_low_one_on_normal_tokens(output_dir: Path) -> None:
    folder = run_planted("group_activation", output_dir)
    check_files(folder, ["outlier_activation"], ["group_activation"])
    rows = read_rows(folder / "outlier_activation.csv")
    high, low = (find_row(rows, group=f"{name}-scope") for name in ("high", "low"))
    whole = find_row(rows, group="all features")
    assert high["on_outlier"] > 10 * high["on_normal"]
    assert low["on_normal"] > 10 * low["on_outlier"]
    assert high["ratio"] > whole["ratio"] > low["ratio"]
    assert "the paper, CLIP" not in (folder / "outlier_activation.md").read_text()


def test_the_histogram_has_two_modes_and_gamma_between_them(output_dir: Path) -> None:
    folder = run_planted("cds_histograms", output_dir)
    check_files(folder, ["cds_histograms"], ["cds_histograms"])
    found = find_row(read_rows(folder / "cds_histograms.csv"))
    assert 4 <= found["n_high"] < found["n_scored"] / 2  # at least one for each light
    assert found["median_cds"] < 0.15 < found["mean_cds"] + 0.05
    scores = find_scores(output_dir)
    high, low = scores[scores > 0.25], scores[scores <= 0.25]
    assert high.mean() > 0.3
    assert np.median(low) < 0.12
    between = (scores > 0.15) & (scores < 0.25)
    assert between.sum() < min(len(high), len(low)) / 3  # a valley


def find_scores(output_dir: Path) -> np.ndarray:
    """The scores behind the histogram."""
    (folder,) = (output_dir / "artifacts" / "score").glob("planted_registers-*")
    scores = Scores.load(folder).cds(8).values
    return scores[np.isfinite(scores)]


def test_groups_shrink_and_grow_as_gamma_moves_and_the_signs_hold_at_the_valley(output_dir: Path) -> None:
    gammas = (0.08, 0.25, 0.4)
    folder = run_planted("gamma_sweep", output_dir, f"partition.gamma={','.join(map(str, gammas))}")
    check_files(folder, ["removal", "removal_delta", "removal_frozen_head"], ["gamma_sweep"])
    rows = read_rows(folder / "removal.csv")
    highs = [find_row(rows, variant="without high-scope", gamma=str(gamma)) for gamma in gammas]
    lows = [find_row(rows, variant="without low-scope", gamma=str(gamma)) for gamma in gammas]
    for name in ("n_latents", "mass_share"):
        assert sorted((row[name] for row in highs), reverse=True) == [row[name] for row in highs]
        assert sorted(row[name] for row in lows) == [row[name] for row in lows]
    assert highs[0]["n_latents"] > highs[-1]["n_latents"]
    original = find_row(rows, variant="original tokens", gamma="0.25")
    assert highs[1]["top1_patch_mean"] < original["top1_patch_mean"] - 0.4
    assert lows[1]["top1_patch_mean"] > original["top1_patch_mean"] - 0.05
    assert highs[1]["miou"] > lows[1]["miou"] + 0.03
    assert len(find_hashes(rows, "score")) == len(find_hashes(rows, "train_sae")) == 1  # made once for all gammas


def test_blocks_of_one_pass_are_compared(output_dir: Path) -> None:
    """The patch tokens of the planted model are the same after both of its blocks, and so is all that follows."""
    folder = run_planted(
        "scope_by_layer", output_dir, "model.layer=[0,-1]", "cross.n_draws=50", "cross.n_permutations=50"
    )
    check_files(folder, ["scope_by_layer", "cross_by_layer"], ["scope_by_layer"])
    first, last = read_rows(folder / "scope_by_layer.csv")
    assert (first["layer"], last["layer"]) == ("0", "1")
    assert find_hashes([first], "score") != find_hashes([last], "score")
    assert float(first["median_cds"]) == float(last["median_cds"]) > 0
    rows = read_rows(folder / "cross_by_layer.csv")
    label = [row for row in rows if row["quantity"] == "effect of the patch labels"]
    assert len(label) == 2
    assert float(label[0]["rho"]) == float(label[1]["rho"]) < 0


def test_the_light_goes_with_the_high_end_and_the_map_with_the_low_end(output_dir: Path) -> None:
    """Registers hold the highest scores and 14% of the mass: beyond that, the high end takes the map as well."""
    folder = run_planted("removal_curve", output_dir, "curve.mass_shares=[0.1,0.3,0.6]")
    check_files(folder, ["removal_curve"], ["removal_curve"])
    rows = read_rows(folder / "removal_curve.csv")
    original = find_row(rows, removed="nothing")
    for share in ("30% of", "60% of"):
        low, high = (find_row(rows, share, removed=f"{end} CDS first") for end in ("lowest", "highest"))
        for end in (low, high):
            assert end["mass_share"] == pytest.approx(float(share[:2]) / 100, abs=0.1)
        assert high["top1_patch_mean"] < original["top1_patch_mean"] - 0.4
        assert low["top1_patch_mean"] > original["top1_patch_mean"] - 0.05
    assert find_row(rows, "60% of", removed="lowest CDS first")["miou"] < original["miou"] - 0.02
    few = find_row(rows, "10% of", removed="highest CDS first")
    assert few["miou"] == pytest.approx(original["miou"], abs=0.02)


def test_quantiles_can_be_swept_too(output_dir: Path) -> None:
    folder = run_planted("cds_histograms", output_dir, "partition=quantile", "partition.quantile=0.3,0.7")
    rows = read_rows(folder / "cds_histograms.csv")
    assert [row["rule"] for row in rows] == ["quantile 0.3", "quantile 0.7"]
    assert float(rows[0]["gamma"]) < float(rows[1]["gamma"])
    assert float(rows[0]["n_high"]) > float(rows[1]["n_high"])


def test_scores_settle_as_k_grows(output_dir: Path) -> None:
    folder = run_planted("k_cds_sweep", output_dir, "scope.k_cds=1,2,4,8")
    check_files(folder, ["k_cds_sweep"], ["k_cds_sweep"])
    rows = read_rows(folder / "k_cds_sweep.csv")
    assert [row["k_cds"] for row in rows] == ["1", "2", "4", "8"]
    correlations = [float(row["rank_correlation"]) for row in rows]
    assert correlations[0] < correlations[2] < correlations[3] == pytest.approx(1)
    assert correlations[0] > 0.4
    changed = [float(row["changed"]) for row in rows]
    assert changed[3] == 0
    assert max(changed) < 0.2  # registers are high whatever the picture
    assert len(find_hashes(rows, "score")) == 1  # arithmetic on one matrix


def test_removal_can_be_asked_for_at_each_k(output_dir: Path) -> None:
    folder = run_planted("k_cds_sweep", output_dir, "scope.k_cds=4,8", "stage=probe")
    check_files(folder, ["k_cds_sweep", "removal"], ["k_cds_sweep", "removal"])
    rows = read_rows(folder / "removal.csv")
    for k in ("4", "8"):
        original = find_row(rows, variant="original tokens", k_cds=k)
        high = find_row(rows, "error-preserving", variant="without high-scope", k_cds=k)
        assert high["top1_patch_mean"] < original["top1_patch_mean"] - 0.3


@pytest.mark.parametrize("name", ["other_vits", "model_size"])
def test_tokens_that_leap_against_tokens_without_context(name: str, output_dir: Path) -> None:
    folder = run_planted(name, output_dir, "model=planted_registers,context_free")
    figures = ["cds_histograms", name] + ["outlier_emd_1", "outlier_emd_2"] * (name == "other_vits")
    check_files(folder, [name, "removal", "removal_delta"], figures)
    planted, without = (
        find_row(read_rows(folder / f"{name}.csv"), model=of) for of in ("planted_registers", "context_free")
    )
    assert planted["n_high"] >= 4
    assert without["n_high"] == 0
    assert planted["mean_cds"] > 0.1
    assert without["mean_cds"] == 0  # exactly: a patch gives the same token wherever it lies
    rows = read_rows(folder / "removal.csv")
    leaps = find_row(rows, "error-preserving", variant="without high-scope", model="planted_registers")
    original = find_row(rows, variant="original tokens", model="planted_registers")
    assert leaps["top1_patch_mean"] < original["top1_patch_mean"] - 0.4
    empty = find_row(rows, "error-preserving", variant="without high-scope", model="context_free")
    assert empty["n_latents"] == 0
    assert np.isnan(empty["top1_patch_mean"])
    if name == "other_vits":
        assert planted["outlier_share"] == pytest.approx(1 / 144, abs=1e-3)
        assert np.isnan(without["emd_outlier"])
        assert (planted["has_mode"], without["has_mode"]) == ("yes", "no")
        assert without["outlier_share"] < planted["outlier_share"] / 5
        assert planted["emd_outlier"] > planted["emd_next_highest"]


def test_blocks_stand_side_by_side(output_dir: Path) -> None:
    blocks = ["data=scenes", "model=planted_registers", "model.layer=0,1", "sae.n_tokens=153600"]
    folder = run_planted("real_vit", output_dir, *blocks)
    check_files(folder, ["real_vit"], ["cds_by_block", "norms_by_block", "cds_histogram", "examples"])
    first, second = read_rows(folder / "real_vit.csv")
    assert (first["layer"], second["layer"]) == ("0", "1")
    for row in (first, second):
        assert row["has_mode"] == "yes"
        assert float(row["emd_outlier"]) > float(row["emd_next_highest"])
        assert float(row["median_cds"]) < float(row["mean_chance"])
    assert "Outliers form a mode of their own after blocks 0, 1 of 0..1." in (folder / "real_vit.md").read_text()


def test_a_file_of_random_weights_in_the_format_of_real_ones(output_dir: Path, tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(timm.create_model("vit_small_patch14_dinov2.lvd142m").state_dict(), tmp_path / "s14.safetensors")
    for i in range(10):
        save_noise(tmp_path / "photographs" / f"{i}.png", i)
    overrides = [
        *(f"model.pretrained={tmp_path / 's14.safetensors'}", f"data.root={tmp_path / 'photographs'}"),
        *(f"output_dir={output_dir}", "model.layer=0,10", "sae.expansion_factor=1", "sae.n_tokens=2048"),
        *("scope.k_cds=1", "scope.k_max=1", "logger=none", "trainer.progress=false", "trainer.device=cpu"),
    ]
    assert main(load_experiment("real_vit").EXPERIMENT, overrides) == 0
    folder = output_dir / "experiments" / "real_vit"
    rows = read_rows(folder / "real_vit.csv")
    assert [(row["model"], row["layer"]) for row in rows] == [("dinov2_s14", "0"), ("dinov2_s14", "10")]
    assert all(0 <= float(row["mean_cds"]) <= 1 for row in rows)


class PlantedClip(PlantedRegisters):
    """Planted registers with a text side: the name of a light means its direction."""

    @property
    def logit_scale(self) -> float:
        return 100.0

    def embed_tokens(self, tokens: Any, layer: int, with_gradient: bool = False) -> Any:
        return F.normalize(self.resume(tokens, layer, with_gradient), dim=-1)

    def check_texts(self, texts: Any, what: str = "texts") -> None:
        """It takes any text."""

    def find_cut(self, texts: Any) -> tuple[int, list[int]]:
        return 77, []

    def embed_texts(self, texts: Any) -> Any:
        known = {name: self.directions[self.n_local + i] for i, name in enumerate(LIGHT_ANCHORS)}
        return torch.stack([known.get(text, self.directions[0]) for text in texts])


def make_planted_clip(config: ModelConfig, trained_folder: Path | None) -> Backbone:
    backbone = PlantedClip().eval()
    backbone.fingerprint = compute_model_fingerprint(config)  # to its SAEs it is the backbone without texts
    return backbone.read_at(config.site)


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The words of a command that predict the light from the texts of a planted CLIP."""
    monkeypatch.setattr(backbone_module, "make_backbone", make_planted_clip)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(LIGHT_ANCHORS))
    given = ["predict.target=light", f"predict.class_names={names}", "predict.templates=list"]
    return [*given, 'predict.template_list=["{}"]']


def test_predictions_of_the_light_change_without_the_high_group_alone(output_dir: Path, asked: list[str]) -> None:
    folder = run_planted("predictions", output_dir, *asked)
    check_files(folder, ["predictions"], ["reliability"])
    rows = read_rows(folder / "predictions.csv")
    original = find_row(rows, variant="original tokens")
    high, low = (find_row(rows, "error-preserving", variant=f"without {name}-scope") for name in ("high", "low"))
    random = find_row(rows, "error-preserving", variant="random, mass of high")
    assert original["top1"] > 0.8
    assert high["top1"] < CHANCE + 0.2
    assert high["changed"] > 0.5
    assert high["max_prob"] < original["max_prob"] - 0.2
    assert high["entropy_nats"] > original["entropy_nats"] + 0.3
    for harmless in (low, random):
        assert harmless["top1"] > original["top1"] - 0.1
        assert harmless["changed"] < 0.15


def test_the_light_is_told_by_latents_of_high_scope_alone(output_dir: Path, asked: list[str]) -> None:
    folder = run_planted("masking", output_dir, *asked, "masking.n_latents=[1,5,20]")
    check_files(folder, ["masking"], ["masking"])
    rows = read_rows(folder / "masking.csv")
    for way in ("the SAE's error stays", "decoded"):
        original = find_row(rows, "kept alone", way, latents="all")
        kept, dropped = (find_row(rows, of, way, latents="20") for of in ("kept alone", "dropped"))
        assert original["top1_class"] > 0.8
        assert kept["top1_high"] > 0.8
        assert kept["top1_low"] < CHANCE + 0.2
        assert dropped["top1_high"] < CHANCE + 0.2
        assert dropped["top1_low"] > original["top1_class"] - 0.1


def test_the_light_rests_on_latents_of_high_scope(output_dir: Path, asked: list[str]) -> None:
    folder = run_planted("attribution", output_dir, *asked, "attribution.n_tested=20")
    check_files(folder, ["attribution", "attribution_groups"], ["attribution_curves", "attribution_groups"])
    everything = find_row(read_rows(folder / "attribution_groups.csv"), **{"class": "all"})
    assert everything["attribution_high"] > 0.6
    assert everything["activation_high"] < 0.2
    rows = read_rows(folder / "attribution.csv")
    by = {name: find_row(rows, order=words) for name, words in METHODS.items()}
    assert by["gradient"]["agreement"] > 0.5  # most latents do nothing, and rank by rounding
    for name in ("gradient", "ablation", "mass_lens"):  # no block changes patches: the lens sees what a latent does
        assert by[name]["deletion_prob"] < by["random"]["deletion_prob"] - 0.3
        assert by[name]["deletion_prob"] < by["mass"]["deletion_prob"] - 0.3
        assert by[name]["insertion_prob"] > by["random"]["insertion_prob"] + 0.1


def test_more_latents_per_token_explain_more(output_dir: Path) -> None:
    msae = "sae=matryoshka_k sae.k=null sae.level_weights=decreasing"
    few = ("sae=topk sae.k=2", "sae=topk sae.k=8", "sae=batchtopk sae.k=4", msae)
    small = [
        "data.n_train=60",
        "data.n_test=24",
        "sae.n_tokens=100000",
        "sae.expansion_factor=1",
        "sae.eval_tokens=1000",
    ]
    experiment = replace(load_experiment("sae_pareto").EXPERIMENT, settings=few)
    assert main(experiment, [*PLANTED, f"output_dir={output_dir}", *small, "scope.k_cds=2", "scope.k_max=2"]) == 0
    folder = output_dir / "experiments" / "sae_pareto"
    check_files(folder, ["sae_pareto", "progressive"], ["sae_pareto", "progressive"])
    table = read_rows(folder / "sae_pareto.csv")
    rows: list[dict[str, Any]] = [{key: _read_number(value) for key, value in row.items()} for row in table]
    two, eight, _, full = rows
    assert [(row["kind"], row["k"], row["weights"]) for row in (two, full)] == [
        ("topk", 2, ""),
        ("matryoshka_k", 32, "RW"),  # all latents
    ]
    assert full["l0"] > 8
    assert full["zeros"] == pytest.approx(1 - full["l0"] / 32)
    assert (two["l0"], eight["l0"]) == (pytest.approx(2, abs=0.1), pytest.approx(8, abs=0.2))
    assert two["fvu"] > eight["fvu"]
    assert two["zeros"] > eight["zeros"]
    for row in rows:  # on the front unless another has less of both
        beaten = any(one["l0"] <= row["l0"] and one["fvu"] <= row["fvu"] and one is not row for one in rows)
        assert row["front"] == ("" if beaten else "yes")
        known = ("fvu_per_token", "cosine_raw", "cknna", "orthogonality", "dead_share", "accuracy", "median_cds")
        assert np.isfinite([row[key] for key in (*known, "scored_share", "high_share")]).all()
        assert row["scored_share"] == pytest.approx(row["n_scored"] / 32)
    page = (folder / "sae_pareto.md").read_text()
    assert "Groups by scope: gamma 0.05." in page
    assert "Those that reach all three here, by the raw cosine: " in page
    curve = [row for row in read_rows(folder / "progressive.csv") if "sae.k=8" in row["setting"]]
    assert float(find_at(curve, "8")["fvu"]) == pytest.approx(eight["fvu"], rel=0.02)
    assert float(find_at(curve, "1")["fvu"]) > float(find_at(curve, "8")["fvu"])
    assert main(experiment, [*PLANTED, f"output_dir={output_dir}", "sae=relu"]) == 2


def find_at(rows: list[dict[str, str]], k: str) -> dict[str, str]:
    """Return the row of this k."""
    (found,) = (row for row in rows if row["k"] == k)
    return found


def test_a_backbone_without_text_is_refused_in_one_sentence(
    output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*PLANTED, f"output_dir={output_dir}"]
    assert main(load_experiment("predictions").EXPERIMENT, arguments) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith("predictions: PlantedRegisters has no text tower")


def test_a_formula_has_no_other_weights(output_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*PLANTED, f"output_dir={output_dir}", "adapt.pretrained=other.safetensors"]
    assert main(load_experiment("adapted_clip").EXPERIMENT, arguments) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "stage=adapt compares two sets of weights, and planted_registers is a formula" in sentence


@pytest.mark.parametrize("name", sorted({*SWEEPS} - {"score_variants", "scope_measures"}))  # which have their own files
def test_no_experiment_is_forgotten_here(name: str) -> None:
    assert f'"{name}"' in Path(__file__).read_text(encoding="utf-8")


def test_latents_of_high_scope_steer_to_a_light(output_dir: Path, asked: list[str]) -> None:
    more = ["steer.n_latents=null", "steer.n_images=8", "steer.spurious=place", "steer.n_suppressed=[5]"]
    folder = run_planted("steering", output_dir, *asked, *more)
    check_files(folder, ["steering", "steering_words", "suppression"], ["steering", "suppression"])
    rows = read_rows(folder / "steering.csv")
    high, low = (find_row(rows, features=f"{name}-scope") for name in ("high", "low"))
    assert high["effect"] > 1.5 * low["effect"]
    assert high["taken"] > low["taken"] + 0.5  # a word that is never predicted rises by nats too


def test_the_lineage_is_told_of_patch_tokens_and_of_embeddings(output_dir: Path, asked: list[str]) -> None:
    few = ("attribution.n_tested=8", "steer.n_latents=12", "steer.n_images=8", "seeds=[0]", "cross.n_draws=50")
    few += ("steer.spurious=place", "steer.n_suppressed=[5]")
    folder = run_planted("lineage", output_dir, *asked, *few)
    main_tables = ["lineage", "lineage_words", "quality", "names", "steering", "suppression", "attribution", "cross"]
    figures = ["cross_patches", "progressive_patches", "progressive_pooled", "steering_patches", "steering_pooled"]
    check_files(folder, main_tables, [*figures, "suppression_pooled", "attribution_groups_patches"])
    captions = {row["figure"]: row["caption"] for row in read_rows(folder / "figures.csv")}
    assert captions.keys() == {path.stem for path in folder.glob("*.png")}
    assert "by its CDS" in captions["steering_patches"]
    assert "CDS" not in captions["steering_pooled"]
    said = (folder / "lineage_words.md").read_text()
    assert "patches: with the CDS of features go, at like firing frequency" in said
    assert len(said) < 3000  # what each stage says stands on its page
    for row in read_rows(folder / "lineage_words.csv"):
        assert f"{float(row['n_named']):.0f} of " in said
        steered = find_row(read_rows(folder / "steering.csv"), setting=row["setting"], features="all measured")
        assert float(row["steerable"]) == steered["steerable"]
    for name in main_tables[:-1]:
        rows = read_rows(folder / f"{name}.csv")
        assert {row["setting"] for row in rows} == {"model.site=resid_post", "model.site=pooled"}
    crossed = [row["quantity"] for row in read_rows(folder / "cross.csv")]
    assert any("attribution" in quantity for quantity in crossed)
    assert "steering" in crossed
