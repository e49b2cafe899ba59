"""sae=import: what exists goes through every stage, is compared with the run's backbone, and knows its file."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope import load_sae
from infoscope.config.tree import Config, compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import open_context, run
from infoscope.probes.worth import COUNTS
from infoscope.report.page import ReportFiles
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import Display
from infoscope.sae.config import TokenChoice
from infoscope.stages.import_sae import ImportSAE
from infoscope.stages.latents import Latents
from infoscope.stages.probe.stage import read_probed
from infoscope.stages.score.stage import Score, scope_of
from infoscope.stages.tokens import Tokens
from tests.support.foreign.arrays import Weights, draw_weights
from tests.support.foreign.dictionaries import WRITERS, write_dictionary, write_patchsae
from tests.support.pipeline_samples import Recorder

D_IN, D_SAE = 128, 24
SCALED = "SAE units x norm of the decoder row"
TINY = (
    *("sae=import", "logger=none", "trainer.progress=false", "trainer.device=cpu", "trainer.n_threads=1"),
    *("data.n_train=24", "data.n_test=10", "scope.k_cds=2", "scope.k_max=2", "scope.n_workers=1", "data.n_workers=0"),
    *("probe.n_draws=1", "probe.classification_epochs=2", "probe.dense_steps=2", "probe.n_dense_train_images=10"),
    *("probe.classification_lrs=[0.1]", "probe.segmentation_lrs=[0.003]", "probe.depth_lrs=[0.003]"),
    *("outliers.n_images=4", "outliers.n_layer_images=2"),
)


@pytest.fixture(scope="module")
def output_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all runs of this file share scenes and tokens."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """{format: where a random dictionary of it lies}."""
    folder = tmp_path_factory.mktemp("dictionaries")
    return {name: write_dictionary(name, folder, D_IN, D_SAE) for name in WRITERS}


def make_config(output_dir: Path, place: Path, *overrides: str) -> Config:
    return compose([*TINY, f"output_dir={output_dir}", f"sae.path={place}", *overrides])


def open_quietly(config: Config) -> Context:
    return open_context(config, Display.silent())


def open_run(output_dir: Path, place: Path, *overrides: str) -> Context:
    """Run a stage, and return what its artifacts are found by."""
    config = make_config(output_dir, place, *overrides)
    run(config, Display.silent())
    return open_quietly(config)


def refuse(output_dir: Path, place: Path, *overrides: str) -> str:
    """Return why a run is refused."""
    with pytest.raises(InputError) as raised:
        run(make_config(output_dir, place, "stage=score", *overrides), Display.silent())
    assert "\n" not in str(raised.value)
    return str(raised.value)


def read_patches(ctx: Context, split: str = "train", with_cls: bool = False) -> torch.Tensor:
    """Return the patch tokens [n_images, 144, d_in] of a split, or CLS before them."""
    cache: Any = Tokens.at(ctx, split).load()
    tokens = cache.tokens(np.arange(len(cache)))
    return torch.cat([tokens.prefix, tokens.patches], 1) if with_cls else tokens.patches


# -- all stages --------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", WRITERS)
def test_a_foreign_sae_is_scored(output_dir: Path, places: dict[str, Path], name: str) -> None:
    """Of all formats, for they differ in the tokens that they read, in normalisation and in activation."""
    ctx = open_run(output_dir, places[name], "stage=score")
    made, x = ImportSAE.at(ctx, 0), read_patches(ctx)
    metrics, sae = made.read_json("metrics.json"), load_sae(places[name])
    scale = made.load().origin.source.facts.get("fitted_scale", 1.0)  # pyright: ignore[reportOptionalMemberAccess]
    trained = read_patches(ctx, with_cls=name == "patchsae")  # which alone is of CLS too
    held_out = trained[[0, 12]]  # a tenth, evenly spread
    with torch.no_grad():
        z = sae.encode(held_out)
        error = held_out - scale * sae(held_out).x_hat if name == "attributing_clip" else held_out - sae(held_out).x_hat
        peaks = sae.encode(x).clamp_min(0).amax(1)  # [image, latent]
    fvu = error.square().sum() / (held_out - trained.mean((0, 1))).square().sum()
    assert metrics["fvu"] == pytest.approx(float(fvu), rel=1e-3)
    assert metrics["l0"] == pytest.approx(float((z != 0).sum(-1).double().mean()), rel=1e-3)
    top = np.argsort(-peaks.numpy(), axis=0, kind="stable")[:2].T
    found = scope_of(ctx, 0)
    firing = (peaks > 0).sum(0).numpy() >= 2
    ranked = Score.at(ctx, 0).needs.ranking.load().top_images
    assert firing.any()
    np.testing.assert_array_equal(np.sort(ranked[firing], 1), np.sort(top[firing], 1))
    assert np.isfinite(found.cds).sum() > D_SAE / 3


@pytest.mark.long
@pytest.mark.parametrize("name", ["saelens", "saev", "gated", "attributing_clip"])
def test_a_foreign_sae_is_probed(output_dir: Path, places: dict[str, Path], name: str) -> None:
    """With a norm per token, negative activations, a gate, and a decoder of free scale; others are edited as these."""
    ctx = open_run(output_dir, places[name], "stage=probe")
    rows = [row["variant"] for row in read_probed(ctx)]
    assert all(math.isfinite(value) for row in read_probed(ctx) for value in row["metrics"]["segmentation"].values())
    assert any(row["mode"] == "reconstruct" for row in rows) is (name != "attributing_clip")
    (removed,) = [row for row in rows if row["n_latents"] == D_SAE and row["mode"] == "error_preserving"]
    x, used = read_patches(ctx, "test"), ImportSAE.at(ctx, 0).load()
    with torch.no_grad():
        written = used(x).x_hat - used.decode(torch.zeros(*x.shape[:-1], D_SAE), x)
    energy = written.square().sum() / (x - used.centre).square().sum()
    assert removed["energy_share"] == pytest.approx(float(energy), rel=1e-3)
    assert removed["mass_share"] == pytest.approx(1)


@pytest.mark.long
def test_the_whole_report_of_an_sae_with_a_norm_per_token(output_dir: Path, places: dict[str, Path]) -> None:
    made = run(make_config(output_dir, places["saelens"], "sae.ignore_origin=true", "model.layer=1"), Display.silent())
    assert isinstance(made, ReportFiles)
    text = made.page.read_text()
    assert "Imported: topk in the format of saelens, sae_weights.safetensors, sha256" in text
    assert "Used all the same (sae.ignore_origin=true): block 2, given block 1" in text
    assert json.loads(made.summary.read_text())


@pytest.mark.long
def test_stages_that_a_report_does_not_hold_and_what_is_planned(output_dir: Path, places: dict[str, Path]) -> None:
    run(make_config(output_dir, places["prisma"], "stage=predict"), Display.silent())
    for stage in ("import_sae", "rank", "score", "describe", "cross"):
        said = show(output_dir, places["saev"], f"stage={stage}")
        assert "Imported: topk in the format of saev, sae.pt, sha256" in said, stage
        assert "is negative: rankings, maps and measures of features read what is above 0" in said, stage
    said = show(output_dir, places["attributing_clip"], "stage=describe")
    assert "mean activation where it fires (SAE units x norm of the decoder row)" in said
    assert "fitted to the tokens (ours)" in said
    assert "kept alone, decoded" in show(output_dir, places["saev"], "stage=masking")
    assert "kept alone, decoded" not in show(output_dir, places["attributing_clip"], "stage=masking")
    assert "on test images an IoU of" in show(output_dir, places["saev"], "stage=segment")
    assert "import_sae, seed 0" in show(output_dir, places["saev"], "stage=score", "plan=true")
    with pytest.raises(InputError, match=r"^stage=train_sae trains SAEs, and sae=import reads one"):
        run(make_config(output_dir, places["saev"], "stage=train_sae"), Display.silent())
    with pytest.raises(InputError, match=r"^stage=import_sae reads an SAE, and sae=topk trains one"):
        run(compose(["stage=import_sae", "sae=topk", f"output_dir={output_dir}"]), Display.silent())


@pytest.mark.long
def test_the_scale_of_a_latent_changes_no_column_but_its_own_mean(output_dir: Path, tmp_path: Path) -> None:
    """The same SAE with rows of other lengths, by which activations are smaller."""
    tables, weights = [], draw_weights(5, d_in=D_IN, d_sae=D_SAE)
    weights["b_enc"] -= 0.5
    factors = np.random.default_rng(1).uniform(0.2, 5, D_SAE).astype(np.float32)
    for name, by in {"unit": np.ones_like(factors), "long": factors}.items():
        scaled = {"W_enc": weights["W_enc"] / by, "b_enc": weights["b_enc"] / by, "b_dec": weights["b_dec"]}
        (tmp_path / name).mkdir()
        place = write_patchsae(tmp_path / name, Weights({**scaled, "W_dec": weights["W_dec"] * by[:, None]}))
        config = make_config(output_dir, place, "stage=latents")
        run(config, Display.silent())
        tables.append({column.name: column for column in Latents.at(open_quietly(config), 0).load()})
    unit, long = tables
    assert unit.keys() == long.keys() >= {"mass", "top_value", "peak", "peak_top", "on_outlier", "on_normal"}
    for name, column in unit.items():
        if column.values.dtype.kind != "f" or name.removesuffix("_excess") in COUNTS:  # by strong patches
            continue
        values = long[name].values * (factors if name == "mean_act" else 1)
        np.testing.assert_allclose(values, column.values, rtol=1e-3, atol=1e-5, err_msg=name)
        is_scaled = column.unit.startswith("SAE units") and name != "mean_act"
        assert long[name].unit == column.unit.replace("SAE units", SCALED if is_scaled else "SAE units"), name


# -- what it is compared with ------------------------------------------------------------------------------------------


def test_an_sae_of_other_tokens_is_refused_by_name(output_dir: Path, places: dict[str, Path], tmp_path: Path) -> None:
    assert "block 2, given block 1 (model.layer=2 is its own)" in refuse(output_dir, places["saelens"], "model.layer=1")
    assert "block -2, given block -3" in refuse(output_dir, places["patchsae"], "model.layer=-3")
    said = refuse(output_dir, places["saelens"], "model=clip_b16", "model.pretrained=random")
    assert "width 128, and clip_b16 gives tokens of width 768" in said
    place = rewrite(places["saelens"], tmp_path / "b", metadata={"model_name": "clip-vit-base-patch16"})
    assert "backbone, clip-vit-base-patch16, could not be compared" in show(output_dir, place, "stage=import_sae")
    place = rewrite(places["saelens"], tmp_path / "c", metadata={"model_name": "openai/clip-vit-base-patch16"})
    assert "backbone openai/clip-vit-base-patch16, given scenes_clip shipped" in refuse(output_dir, place)
    assert "Used all the same (sae.ignore_origin=true): backbone openai/clip-vit-base-patch16" in show(
        output_dir, place, "stage=import_sae", "sae.ignore_origin=true"
    )
    place = rewrite(places["saelens"], tmp_path / "d", metadata={"hook_name": "blocks.2.hook_mlp_out"})
    assert "tokens at mlp_out, given those at resid_post" in refuse(output_dir, place)
    place = rewrite(places["saelens"], tmp_path / "e", metadata={"hook_name": "blocks.6.hook_resid_post"})
    assert "block 6, which a model of 4 blocks does not have" in refuse(output_dir, place)
    place = rewrite(places["prisma"], tmp_path / "f", image_size=128)
    assert "images of 128 px, given 96 px" in refuse(output_dir, place)
    assert "An imported SAE is one, got seeds=[0, 1]" in refuse(output_dir, places["saelens"], "seeds=[0,1]")


def test_what_is_overruled_is_shown_and_the_artifact_keeps_what_it_was_trained_on(
    output_dir: Path, places: dict[str, Path], tmp_path: Path
) -> None:
    place = rewrite(places["prisma"], tmp_path / "other", use_patches_only=True, hook_point_layer=1)
    assert "patch tokens, given all" in refuse(output_dir, place, "model.layer=1", "sae.tokens=all")
    given = ("sae.tokens=all", "sae.ignore_origin=true")
    said = show(output_dir, place, "stage=score", *given)
    assert "Used all the same (sae.ignore_origin=true): patch tokens, given all" in said
    assert "Used all the same (sae.ignore_origin=true): block 1, given block -2" in said
    made = ImportSAE.at(open_quietly(make_config(output_dir, place, *given)), 0)
    twin = rewrite(place, tmp_path / "twin", hook_point_layer=2, use_patches_only=False)  # of the same tensors
    assert ImportSAE.at(open_quietly(make_config(output_dir, twin, "sae.tokens=all")), 0).hash != made.hash
    kept = load_sae(made.folder)
    assert (kept.origin.layer, kept.origin.tokens) == (1, TokenChoice.patch)
    assert made.load().origin.tokens is TokenChoice.all
    assert kept.origin.source == load_sae(place).origin.source


def test_doubts_are_said(output_dir: Path, places: dict[str, Path], tmp_path: Path) -> None:
    said = show(output_dir, places["groupmax"], "stage=import_sae")
    assert said.count("The SAE's file does not say which block it reads: here it reads model.layer=-2.") == 2  # at once
    assert "Warning: it reconstructs these tokens worse than their mean does (FVU " in said
    assert "block it reads" not in show(output_dir, places["prisma"], "stage=import_sae")


def test_random_weights_are_another_backbone(output_dir: Path, tmp_path: Path) -> None:
    metadata = {"model_name": "openai/clip-vit-base-patch16", "hook_name": "blocks.10.hook_resid_post"}
    place = rewrite(write_dictionary("saelens", tmp_path, 768, D_SAE), tmp_path / "b16", metadata=metadata)
    said = refuse(output_dir, place, "model=clip_b16", "model.pretrained=random")
    assert "backbone openai/clip-vit-base-patch16, given ViT-B-16 random" in said


def test_pooled_and_cls_saes_have_no_maps(output_dir: Path, places: dict[str, Path], tmp_path: Path) -> None:
    place = rewrite(places["prisma"], tmp_path / "cls", cls_token_only=True)
    assert "An SAE of CLS tokens has no activation maps" in refuse(output_dir, place)
    assert "cosine" in show(output_dir, place, "stage=import_sae")  # it can be measured on CLS tokens
    state = {"tied_bias": torch.zeros(D_IN), "encoder._weight": torch.eye(D_IN), "encoder._bias": torch.zeros(D_IN)}
    torch.save(state | {"decoder._weight": torch.eye(D_IN)}, tmp_path / "pooled.pt")
    assert "This SAE reads pooled embeddings" in refuse(output_dir, tmp_path / "pooled.pt")
    assert "This SAE reads pooled embeddings" in refuse(output_dir, tmp_path / "pooled.pt", "stage=import_sae")
    said = show(output_dir, tmp_path / "pooled.pt", "stage=import_sae", "model.site=pooled")
    assert "cosine" in said
    assert "block it reads" not in said
    assert "model.site=projected" in refuse(output_dir, tmp_path / "pooled.pt", "model.site=pooled")
    assert "features" in show(output_dir, tmp_path / "pooled.pt", "stage=score", "model.site=projected")


def test_an_sae_of_the_last_block_is_scored_and_its_final_cls_refused(
    output_dir: Path, places: dict[str, Path], tmp_path: Path
) -> None:
    place = rewrite(places["saelens"], tmp_path / "last", metadata={"hook_name": "blocks.3.hook_resid_post"})
    assert "CDS" in show(output_dir, place, "stage=score", "model.layer=-1")
    assert "cls_final" in refuse(output_dir, place, "model.layer=3", "stage=probe")
    assert "is the last" in refuse(output_dir, place, "model.layer=-1", "stage=predict")
    with pytest.raises(InputError, match="cls_final"):
        make_config(output_dir, place, "model.layer=-1", "stage=probe")


def test_statistics_that_a_file_lacks_are_demanded_or_estimated(
    output_dir: Path, places: dict[str, Path], tmp_path: Path
) -> None:
    content = (write_dictionary("saev", tmp_path / "whole", D_IN, D_IN) / "sae.pt").read_bytes()
    header = {"d_vit": D_IN, "exp_factor": 1, "sparsity_coeff": 0.1}
    file = tmp_path / "sae.pt"
    file.write_bytes(json.dumps(header).encode() + content[content.index(b"\n") :])
    assert "give sae.mean_file= and sae.scale=, or" in refuse(output_dir, file)
    found = show(output_dir, file, "stage=import_sae", "sae.statistics=estimate")
    assert "mean and scale estimated on the training tokens of 24 images (ours)" in found
    ctx = open_quietly(make_config(output_dir, file, "sae.statistics=estimate"))
    x, sae = read_patches(ctx), ImportSAE.at(ctx, 0).load()
    torch.testing.assert_close(sae.mean, x.mean((0, 1)), rtol=1e-3, atol=1e-3)
    assert float(sae.scale) == pytest.approx(D_IN**0.5 / float((x - sae.mean).norm(dim=-1).mean()), rel=1e-3)
    assert "has what it needs" in refuse(output_dir, places["saev"], "sae.statistics=estimate")
    np.save(tmp_path / "mean.npy", x.mean((0, 1)).numpy())
    given = ("sae.scale=0.5", f"sae.mean_file={tmp_path / 'mean.npy'}")
    run(make_config(output_dir, file, "stage=import_sae", *given), Display.silent())


def test_the_artifact_knows_its_file_and_follows_its_content(
    output_dir: Path, places: dict[str, Path], tmp_path: Path
) -> None:
    place = shutil.copytree(places["saelens"], tmp_path / "elsewhere")
    one, same = (ImportSAE.at(open_quietly(make_config(output_dir, at)), 0) for at in (places["saelens"], place))
    assert one.hash == same.hash
    source = one.get().manifest["source"]
    assert (source["format"], source["file"]) == ("saelens", "sae_weights.safetensors")
    assert len(source["sha256"]) == 64
    other = rewrite(places["saelens"], tmp_path / "k", k=3)
    assert ImportSAE.at(open_quietly(make_config(output_dir, other)), 0).hash != one.hash


def test_what_infoscope_trained_is_imported_too(output_dir: Path, places: dict[str, Path], tmp_path: Path) -> None:
    ctx = open_quietly(make_config(output_dir, places["saelens"]))
    ours = ImportSAE.at(ctx, 0).get().folder
    again = ImportSAE.at(open_quietly(make_config(output_dir, ours)), 0).load()
    x = read_patches(ctx)[0]
    assert torch.equal(again.encode(x), load_sae(ours).encode(x))


def rewrite(place: Path, to: Path, **changes: Any) -> Path:
    """Copy an SAE, its configuration changed; mappings are joined."""
    shutil.copytree(place, to)
    (file,) = to.glob("*.json")
    config = json.loads(file.read_text())
    for name, value in changes.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    file.write_text(json.dumps(config))
    return to


def show(output_dir: Path, place: Path, *overrides: str) -> str:
    """Run a stage, and return what it shows, in one line."""
    recorder = Recorder()
    run(make_config(output_dir, place, *overrides), recorder)
    return " ".join(recorder.text.split())
