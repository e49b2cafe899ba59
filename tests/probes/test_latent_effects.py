"""The effect of each latent alone, against the slow way: edit the tokens, run the head, take the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from infoscope.probes.config import EffectConfig, Readout
from infoscope.probes.extraction import EncodedBatch, iterate_tokens
from infoscope.probes.heads import LinearMaps, compute_depth_m
from infoscope.probes.inputs import ProbeInputs
from infoscope.probes.latent_effects import LatentEffects, measure_latent_effects
from infoscope.probes.metrics import IGNORE_LABEL, valid_depth
from infoscope.probes.pixels import upsample
from infoscope.sae.config import TokenNorm
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Role
from infoscope.scope.editing import AblationEditor
from tests.support.imported_samples import make_sae as make_imported
from tests.support.probe_samples import CLASS_LATENTS, N_CLASSES, N_LABELS, D, make_config, make_inputs, mask

N_BINS = 16
CONFIG = make_config(readouts=list(Readout), n_depth_bins=N_BINS)
ALL = EffectConfig(n_images=None, n_pixels=None)


def make_heads() -> dict[str, LinearMaps]:
    """Random heads of every task."""
    generator = torch.Generator().manual_seed(3)
    outputs = {f"classification/{readout.name}": N_CLASSES for readout in Readout}
    outputs |= {"segmentation": N_LABELS, "depth": N_BINS}
    return {
        name: LinearMaps(torch.randn(1, D, n, generator=generator), torch.randn(1, n, generator=generator) + 1)
        for name, n in outputs.items()
    }


def measure_slowly(inputs: ProbeInputs, heads: dict[str, LinearMaps]) -> dict[str, torch.Tensor]:
    """{task: [1 + d_sae] mean loss of the original tokens, then without each latent}, in float64 where it is summed."""
    variants = [Ablation("", EditMode.error_preserving, mask([]), Role.original)]
    variants += [Ablation("", EditMode.error_preserving, mask([j]), Role.group) for j in range(D)]
    editor, images = AblationEditor(inputs.sae, variants), inputs.test.images
    sums = {name: torch.zeros(len(variants), dtype=torch.float64) for name in heads}
    n_units = dict.fromkeys(heads, 0)
    rows = np.arange(len(inputs.test.tokens))
    for row, tokens in zip(rows, iterate_tokens(inputs.test, rows, 1, inputs.device), strict=True):
        index = int(inputs.test.tokens.image_index[row])
        batch = EncodedBatch(inputs, tokens)
        edited = batch.edit(editor)
        label = torch.tensor(images.labels("class")[index]).expand(len(variants))
        label_map, depth_m = torch.from_numpy(images.label_map(index)), torch.from_numpy(images.depth_m(index))
        for name, head in heads.items():
            maps = head.repeat(len(variants))
            if name.startswith("classification"):
                vectors = batch.read(edited, Readout[name.partition("/")[2]])
                losses = F.cross_entropy(maps(vectors)[:, 0], label, reduction="none")[:, None]
            elif name == "segmentation":
                labelled = label_map != IGNORE_LABEL
                pixels = upsample(maps(edited.patches[:, 0]), *label_map.shape)[..., labelled]
                truth = label_map[labelled].long().expand(len(variants), -1)
                losses = F.cross_entropy(pixels, truth, reduction="none")
            else:
                valid = valid_depth(depth_m, CONFIG.max_depth_m)
                grids = compute_depth_m(maps(edited.patches[:, 0]), CONFIG.max_depth_m)[..., None]
                losses = (upsample(grids, *depth_m.shape)[:, 0][:, valid] - depth_m[valid]).square()
            sums[name] += losses.double().sum(1)
            n_units[name] += losses.shape[1]
    return {name: total / n_units[name] for name, total in sums.items()}


@pytest.mark.parametrize("imported", [None, ("signed", TokenNorm.layer_norm), ("gated", TokenNorm.constant_norm)])
@pytest.mark.parametrize("edits_prefix", [False, True])
def test_effects_are_those_of_editing_the_tokens(edits_prefix: bool, imported: tuple[str, TokenNorm] | None) -> None:
    inputs, heads = replace(make_inputs(n_test=6), edits_prefix=edits_prefix), make_heads()
    if imported is not None:
        inputs = replace(inputs, sae=make_imported(*imported, torch.float32, D, D))
    found, slowly = measure_latent_effects(inputs, CONFIG, ALL, heads), measure_slowly(inputs, heads)
    assert found.effects.keys() == heads.keys()
    for name, losses in slowly.items():
        assert found.losses[name] == pytest.approx(losses[0].item(), rel=1e-5)
        np.testing.assert_allclose(found.effects[name], (losses[1:] - losses[0]).numpy(), atol=1e-5)
    assert np.abs(found.effects["classification/cls_final"]).max() > 1e-3
    assert found.effects["classification/cls_layer"].any() == edits_prefix
    assert found.n_units == {
        **{f"classification/{readout.name}": 6 for readout in Readout},
        "segmentation": 6 * 11 * 12,
        "depth": 6 * 12 * 11,
    }


def test_some_images_and_pixels_are_a_function_of_the_seed() -> None:
    inputs, heads = make_inputs(n_test=25), make_heads()
    few = EffectConfig(n_images=10, n_pixels=40)
    first, again = (measure_latent_effects(inputs, CONFIG, few, heads) for _ in range(2))
    other = measure_latent_effects(inputs, replace(CONFIG, seed=1), few, heads)
    assert first.n_units["classification/patch_mean"] == 10
    assert 0 < first.n_units["segmentation"] < 400
    for name in heads:
        assert np.array_equal(first.effects[name], again.effects[name])
    assert not np.array_equal(first.effects["segmentation"], other.effects["segmentation"])


def test_a_head_that_reads_the_class_misses_its_latents_alone() -> None:
    inputs = make_inputs(n_test=20)
    weight = torch.zeros(1, D, N_CLASSES)
    weight[0, CLASS_LATENTS] = 10 * torch.eye(N_CLASSES)
    task = "classification/patch_mean"
    found = measure_latent_effects(inputs, CONFIG, ALL, {task: LinearMaps(weight, torch.zeros(1, N_CLASSES))})
    assert found.effects[task][CLASS_LATENTS].min() > 0.1
    assert not np.delete(found.effects[task], CLASS_LATENTS).any()


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    inputs, heads = make_inputs(n_test=70), make_heads()
    whole = measure_latent_effects(inputs, CONFIG, ALL, heads)

    def stop(what: str, done: int, of: int) -> None:
        if done == 66:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_latent_effects(inputs, CONFIG, ALL, heads, tmp_path, stop)
    seen = []
    resumed = measure_latent_effects(inputs, CONFIG, ALL, heads, tmp_path, lambda what, done, of: seen.append(done))
    assert seen == list(range(65, 71))
    for name in heads:
        assert np.array_equal(whole.effects[name], resumed.effects[name])


def test_they_are_found_again(tmp_path: Path) -> None:
    inputs, heads = make_inputs(n_test=4), make_heads()
    first, *others = ({name: head} for name, head in heads.items())
    parts = [measure_latent_effects(inputs, CONFIG, ALL, some) for some in (first, *others)]
    LatentEffects.join(parts).save(tmp_path)
    loaded = LatentEffects.load(tmp_path)
    assert list(loaded.effects) == list(heads)
    for part in parts:
        ((name, effect),) = part.effects.items()
        assert np.array_equal(loaded.effects[name], effect)
        assert loaded.losses[name] == part.losses[name]
