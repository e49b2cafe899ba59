"""sae=import: what exists goes through every stage, is compared with the run's backbone, and says where it comes from."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope import load_sae
from infoscope.config.tree import Config, compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import open_context, run
from infoscope.report.page import ReportFiles
from infoscope.runtime.errors import InputError
from infoscope.runtime.progress import Display
from infoscope.stages.import_sae import ImportSAE
from infoscope.stages.probe.stage import read_probed
from infoscope.stages.score.stage import Score, scope_of
from infoscope.stages.tokens import Tokens
from tests.support.foreign.dictionaries import WRITERS, write_dictionary

D_IN, D_SAE = 128, 24
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


def refuse(output_dir: Path, place: Path, *overrides: str) -> str:
    """Return why a run is refused."""
    with pytest.raises(InputError) as raised:
        run(make_config(output_dir, place, "stage=score", *overrides), Display.silent())
    assert "\n" not in str(raised.value)
    return str(raised.value)


def read_patches(ctx: Context, split: str = "train") -> torch.Tensor:
    """Return the patch tokens [n_images, 144, d_in] of a split."""
    tokens: Any = Tokens.at(ctx, split).load()
    return tokens.tokens(np.arange(len(tokens))).patches.float()


# -- all stages --------------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", WRITERS)
def test_a_foreign_sae_is_scored_and_probed(output_dir: Path, places: dict[str, Path], name: str) -> None:
    config = make_config(output_dir, places[name], "stage=probe")
    run(config, Display.silent())
    ctx = open_quietly(config)
    made, x = ImportSAE.at(ctx, 0), read_patches(ctx)
    metrics, sae = made.read_json("metrics.json"), load_sae(places[name])
    scale = made.load().origin.source.facts.get("fitted_scale", 1.0)  # pyright: ignore[reportOptionalMemberAccess]
    with torch.no_grad():
        z = sae.encode(x)
        error = (x - sae(x).x_hat) if name != "attributing_clip" else x - scale * sae(x).x_hat
    fvu = error.square().sum() / (x - x.mean((0, 1))).square().sum()
    if name != "patchsae":  # which reads CLS too
        assert metrics["fvu"] == pytest.approx(float(fvu), rel=1e-3)
        assert metrics["l0"] == pytest.approx(float((z != 0).sum(-1).double().mean()), rel=1e-3)
    peaks = z.clamp_min(0).amax(1)  # [image, latent]
    top = np.argsort(-peaks.numpy(), axis=0, kind="stable")[:2].T
    found = scope_of(ctx, 0)
    firing = (peaks > 0).sum(0).numpy() >= 2
    ranked = Score.at(ctx, 0).needs.ranking.load().top_images
    assert firing.any()
    np.testing.assert_array_equal(np.sort(ranked[firing], 1), np.sort(top[firing], 1))
    assert np.isfinite(found.cds).sum() > D_SAE / 3
    rows = [row["variant"] for row in read_probed(ctx)]
    assert all(math.isfinite(value) for row in read_probed(ctx) for value in row["metrics"]["segmentation"].values())
    assert any(row["mode"] == "reconstruct" for row in rows) is (name != "attributing_clip")
    if name == "patchsae":
        return
    (removed,) = [row for row in rows if row["n_latents"] == D_SAE and row["mode"] == "error_preserving"]
    x, used = read_patches(ctx, "test"), made.load()
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
