"""On a real vision transformer an SAE of ours that went out and came back reports what it did before."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import open_context, run
from infoscope.runtime.progress import Display
from infoscope.sae.export import export_sae
from infoscope.stages.probe.stage import read_probed
from infoscope.stages.score.stage import scope_of
from infoscope.stages.train_sae import TrainSAE

SMALL = (
    *("experiment=dinov2_scenes", "debug=tiny_import", "logger=none", "trainer.progress=false", "trainer.device=cpu"),
    *("data.n_train=60", "data.n_test=30", "probe.n_dense_train_images=30", "probe.n_dense_test_images=20"),
    *("outliers.n_images=8", "outliers.n_layer_images=2"),
)


def finish(*overrides: str) -> Context:
    """Run everything up to the report, and return the run."""
    config = compose([*SMALL, *overrides])
    run(config, Display.silent())
    return open_context(config, Display.silent())


@pytest.mark.slow
def test_an_exported_sae_reports_what_it_did(tmp_path: Path) -> None:
    file = os.environ.get("INFOSCOPE_DINOV2_S14")
    if not file:
        pytest.skip("INFOSCOPE_DINOV2_S14 is not set")
    common = (f"model.pretrained={file}", f"output_dir={tmp_path / 'outputs'}")
    ours = finish(*common, "sae.n_tokens=100000")
    export_sae(TrainSAE.at(ours, 0).load(), tmp_path / "out")
    again = finish(*common, "sae=import", f"sae.path={tmp_path / 'out'}")

    cds, same = scope_of(ours, 0).cds, scope_of(again, 0).cds
    assert np.isfinite(cds).sum() > 100
    np.testing.assert_array_equal(np.isnan(same), np.isnan(cds))
    assert (np.abs(same - cds) > 1e-5).sum() <= 2  # of a latent at the k-th place of a token
    before, after = read_probed(ours), read_probed(again)
    assert {"high", "low", None} <= {one["variant"]["group"] for one in before}
    for was, now in zip(before, after, strict=True):
        (variant, then), (same_variant, found) = ((one["variant"], one["metrics"]) for one in (was, now))
        for fact in ("name", "n_latents"):
            assert same_variant[fact] == variant[fact]
        for share in ("mass_share", "energy_share"):
            assert same_variant[share] == pytest.approx(variant[share], rel=1e-4, abs=1e-6)
        if variant["n_latents"] < len(cds):  # without any latent tokens are alike, and heads guess
            for task, metric in (("segmentation", "miou"), ("depth", "rmse_m")):
                assert found[task][metric] == pytest.approx(then[task][metric], rel=2e-3), variant["name"]
