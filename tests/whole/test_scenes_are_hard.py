"""The embedded task is worth a network, and leaves room for effects: the demo's original row, and pixels beside it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.probes.config import Task
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.probes.run import run_probes
from infoscope.runtime.progress import Display
from infoscope.sae.activations import TopK
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import choose_rows, make_ablations
from infoscope.stages.backbone import load_backbone
from infoscope.stages.images import open_sets
from infoscope.stages.tokens import Tokens
from tests.support.pixel_baseline import compute_pixel_baseline


class OriginalRow(NamedTuple):
    """Top-1, in 0..1, of what the demo's probes read, and of the pixels of the same images."""

    patch_mean: float
    cls_final: float
    pixels: float


@pytest.fixture(scope="module")
def row(tmp_path_factory: pytest.TempPathFactory) -> OriginalRow:
    """The demo's own configuration up to the tokens; the original tokens alone are probed, which takes no SAE."""
    overrides = [f"output_dir={tmp_path_factory.mktemp('demo')}", "trainer.device=cpu", "logger=none"]
    config = compose(overrides)
    ctx = Context(config, Display(bars=False))
    data = [
        ProbeData(Tokens.at(ctx, split).load(), images)
        for split, images in zip(("train", "test"), open_sets(ctx, config.data), strict=True)
    ]
    config.probe.tasks = [Task.classification]
    backbone = load_backbone(ctx)
    d = backbone.d_in
    inputs = ProbeInputs(SparseAutoencoder(d, d, TopK(1)), *data, backbone, config.model.layer)
    original = make_ablations({}, np.ones(d, bool), np.ones(d), n_draws=0)[:1]
    (result,) = run_probes(original, inputs, config.probe).values()

    wanted = config.probe.n_train_images, config.probe.n_test_images
    pixels = []
    for (_, images), n_images in zip(data, wanted, strict=True):
        rows = choose_rows(len(images), n_images, config.probe.seed)
        seen = np.stack([images.load(int(i), backbone.image_px) for i in rows])
        pixels += [seen, images.labels(config.probe.target)[rows]]
    top1 = [result.metrics[f"classification/{name}"]["top1"] or 0.0 for name in ("patch_mean", "cls_final")]
    return OriginalRow(*top1, compute_pixel_baseline(*pixels))


def test_the_original_row_leaves_room(row: OriginalRow) -> None:
    assert 0.70 <= row.patch_mean <= 0.95
    assert 0.70 <= row.cls_final <= 0.95


def test_pixels_reach_at_most_half(row: OriginalRow) -> None:
    assert row.pixels <= row.patch_mean / 2
