"""The whole stage on a world whose causes are known."""

from __future__ import annotations

import dataclasses
import json
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.data.scenes.scene_set import SceneSet
from infoscope.probes import dense_images
from infoscope.probes.checks import check_probes
from infoscope.probes.config import ProbeConfig, Readout, Task
from infoscope.probes.dense import DenseProbes
from infoscope.probes.dense_images import DenseImages, WholeImages
from infoscope.probes.dense_views import Part, choose_images
from infoscope.probes.extraction import EncodedBatch, iterate_tokens
from infoscope.probes.heads import SegmentationHeads
from infoscope.probes.inputs import ProbeInputs
from infoscope.probes.rates import choose_rates
from infoscope.probes.results import load_result, save_result
from infoscope.probes.run import run_probes
from infoscope.probes.vectors import TrainingImages, VectorBatches
from infoscope.runtime.errors import InputError
from infoscope.sae.edit import EditMode, GroupEditor
from infoscope.scope.ablations import Ablation, Role
from infoscope.scope.editing import AblationEditor
from tests.support.probe_samples import (
    CLASS_LATENTS,
    DEPTH_LATENT,
    LABEL_LATENTS,
    make_config,
    make_inputs,
    mask,
    run_dense,
)

KEEP, DECODE = EditMode.error_preserving, EditMode.reconstruct
ORIGINAL = Ablation("original", KEEP, mask([]), Role.original)
VARIANTS = [
    ORIGINAL,
    Ablation("without_class", KEEP, mask(CLASS_LATENTS), Role.group, "high"),
    Ablation("without_labels", KEEP, mask(LABEL_LATENTS), Role.group, "low"),
    Ablation("without_depth", KEEP, mask([DEPTH_LATENT]), Role.control, "low"),
    Ablation("without_all", DECODE, mask(list(range(16))), Role.all),
]
ALL_LAYERS = [Readout.patch_mean, Readout.cls_final, Readout.cls_layer]


@pytest.fixture(scope="module")
def inputs() -> ProbeInputs:
    return make_inputs()


@pytest.fixture(scope="module")
def results(inputs):
    return {result.variant["name"]: result for result in run_probes(VARIANTS, inputs, make_config()).values()}


@pytest.mark.long
def test_removal_takes_what_the_group_carries(results):
    original = results["original"].metrics
    for task in ("classification/patch_mean", "classification/cls_final"):
        assert original[task]["top1"] > 0.9
        assert results["without_class"].metrics[task]["top1"] < 0.7
        assert results["without_labels"].metrics[task]["top1"] > 0.9
    assert original["segmentation"]["miou"] > 0.6
    assert results["without_labels"].metrics["segmentation"]["miou"] < 0.4
    assert results["without_class"].metrics["segmentation"]["miou"] > 0.6
    assert original["depth"]["rmse_m"] < 1.6
    assert results["without_depth"].metrics["depth"]["rmse_m"] > 1.9
    assert results["without_class"].metrics["depth"]["rmse_m"] < 1.6


def test_the_frozen_head_of_the_original_row_is_its_own(results):
    assert results["original"].frozen_head == results["original"].metrics
    frozen = results["without_class"].frozen_head
    assert frozen["classification/patch_mean"]["top1"] < 0.7
    assert frozen["segmentation"]["miou"] > 0.6


def test_shares_are_measured_on_test_tokens(results):
    assert results["original"].variant["mass_share"] == 0
    assert results["original"].variant["energy_share"] == 0
    assert results["without_all"].variant["mass_share"] == pytest.approx(1)
    groups = [results[name].variant["mass_share"] for name in ("without_class", "without_labels", "without_depth")]
    assert all(share > 0.1 for share in groups)
    assert sum(groups) < 1


def read_vectors(inputs: ProbeInputs, editor: AblationEditor, readout: Readout) -> torch.Tensor:
    """What classification reads of six test images in every variant, computed directly."""
    tokens = iterate_tokens(inputs.test, np.arange(6), 4, inputs.device)
    batches = (EncodedBatch(inputs, some) for some in tokens)
    return torch.cat([batch.read(batch.edit(editor), readout) for batch in batches], dim=1)


@pytest.mark.parametrize("readout", [Readout.patch_mean, Readout.cls_final])
def test_a_group_with_mass_changes_what_classification_reads(inputs, readout):
    editor = AblationEditor(inputs.sae, VARIANTS)
    vectors = read_vectors(inputs, editor, readout)
    assert vectors.shape[:2] == (len(VARIANTS), 6)
    for variant in range(1, len(VARIANTS)):
        assert (vectors[variant] - vectors[0]).abs().amax(-1).min() > 1e-3


def test_a_group_with_mass_changes_what_segmentation_and_depth_read(inputs):
    images = DenseImages(inputs, inputs.test, np.arange(6), list(Task)[1:])
    tokens = images.edit(np.arange(6), AblationEditor(inputs.sae, VARIANTS))
    assert torch.equal(tokens[0], torch.from_numpy(inputs.test.tokens.patches[:6]))
    for variant in range(1, len(VARIANTS)):
        assert (tokens[variant] - tokens[0]).abs().amax((-1, -2)).min() > 1e-3


def test_latents_that_take_too_much_memory_are_encoded_when_they_are_read(inputs, monkeypatch):
    editor, some = AblationEditor(inputs.sae, VARIANTS), np.array([4, 1])
    kept = DenseImages(inputs, inputs.test, np.arange(6), [Task.depth])
    monkeypatch.setattr(dense_images, "_MAX_ACTS_BYTES", 8 * 4 * 6 * 16 - 1)
    anew = DenseImages(inputs, inputs.test, np.arange(6), [Task.depth])
    assert kept.acts is not None
    assert anew.acts is None
    torch.testing.assert_close(anew.edit(some, editor), kept.edit(some, editor))


def test_cls_at_the_layer_cannot_change_under_a_patch_sae_and_does_under_one_for_all_tokens(inputs):
    editor = AblationEditor(inputs.sae, VARIANTS[:2])
    vectors = read_vectors(inputs, editor, Readout.cls_layer)
    assert torch.equal(vectors[0], vectors[1])
    whole = dataclasses.replace(inputs, edits_prefix=True)
    vectors = read_vectors(whole, editor, Readout.cls_layer)
    assert not torch.equal(vectors[0], vectors[1])


def test_the_editor_agrees_with_editing_one_by_one(inputs):
    x = torch.from_numpy(inputs.test.tokens.patches[:3]).flatten(0, 1)
    edited = AblationEditor(inputs.sae, VARIANTS).edit(x)
    for variant, tokens in zip(VARIANTS, edited, strict=True):
        alone = GroupEditor(inputs.sae, x).edit(torch.from_numpy(variant.ablated), variant.mode)
        torch.testing.assert_close(tokens, alone)


@pytest.mark.long
def test_results_do_not_depend_on_chunks_or_company(inputs, results):
    config = make_config(variants_per_chunk=2, feature_batch_images=5)
    handed = []
    chunked = run_probes(
        VARIANTS[::-1], inputs, config, on_result=lambda key, result: handed.append(result.variant["name"])
    )
    assert len(handed) == len(VARIANTS)
    assert handed[0] == "original"
    for result in chunked.values():
        other = results[result.variant["name"]]
        assert result.lr.keys() == other.lr.keys()
        for task, values in result.metrics.items():
            assert values == pytest.approx(other.metrics[task], abs=2e-3)
            assert result.frozen_head[task] == pytest.approx(other.frozen_head[task], abs=2e-3)
    alone = run_probes(VARIANTS[1:2], inputs, make_config(), original_heads=results["original"].heads)
    (result,) = alone.values()
    for task, values in result.frozen_head.items():
        assert values == pytest.approx(results["without_class"].frozen_head[task], abs=2e-3)


def test_equal_sets_are_trained_once(inputs):
    empty = Ablation("without_high", KEEP, mask([]), Role.group, "high")
    config = make_config(tasks=[Task.classification], readouts=[Readout.patch_mean])
    results = run_probes([empty, ORIGINAL], inputs, config)
    (result,) = results.values()
    assert result.variant["name"] == "original"
    relabelled = result.relabel(empty)
    assert relabelled.variant["empty"]
    assert relabelled.metrics == result.metrics


def test_last_incomplete_batch_is_evaluated(inputs):
    """25 test images in batches of 8: all 25 are seen, in training too."""
    config = make_config(tasks=[Task.classification, Task.segmentation], feature_batch_images=8, dense_steps=2)
    inputs.test.images.n_read = 0
    results = run_probes([ORIGINAL], inputs, config)
    assert inputs.test.images.n_read == 25  # once for two tables: retrained and frozen heads
    (result,) = results.values()
    one_by_one = run_probes([ORIGINAL], inputs, dataclasses.replace(config, feature_batch_images=1))
    assert result.metrics["segmentation"] == pytest.approx(next(iter(one_by_one.values())).metrics["segmentation"])
    assert round(result.metrics["classification/patch_mean"]["top1"] * 25, 6) % 1 == 0


def test_every_training_image_is_in_every_epoch():
    vectors = {"x": torch.arange(10.0)[None, :, None]}
    images = TrainingImages(torch.arange(10), torch.arange(0), torch.zeros(10, dtype=torch.int64), 1)
    config = make_config(classification_batch_images=4, classification_epochs=3)
    batches = VectorBatches(vectors, images, config, seed=0)
    seen = [batch.features["x"].flatten().tolist() for batch in batches.iterate()]
    assert len(seen) == len(batches) == 9
    assert all(sorted(chain(*seen[i : i + 3])) == list(range(10)) for i in (0, 3, 6))
    assert seen[:3] != seen[3:6]
    for step in (2, 3, 8):
        assert [batch.features["x"].flatten().tolist() for batch in batches.iterate(step)] == seen[step:]


def test_dense_batches_are_a_function_of_the_step(inputs):
    orders = [choose_images(0, step, 10, 4).tolist() for step in range(5)]
    assert sorted(chain(*orders)) == sorted([*range(10), *range(10)])
    config = make_config(dense_steps=6, dense_batch_images=4, n_pixels_per_image=8)
    views = WholeImages(inputs, config, [Task.segmentation], {"train": np.arange(12), "test": np.arange(2)})
    editor = AblationEditor(inputs.sae, VARIANTS[:1])
    whole, again = list(views.iterate_batches(editor)), list(views.iterate_batches(editor, 3))
    assert (len(whole), len(again)) == (6, 3)
    for batch, same in zip(whole[3:], again, strict=True):
        assert torch.equal(batch.labels, same.labels)
        assert torch.equal(batch.pixels.weights, same.pixels.weights)


@pytest.mark.parametrize("memory_gb", [1e-6, 4.0])
def test_all_pixels_of_whole_images_are_read_some_variants_at_a_time(inputs, memory_gb):
    both, rows = list(Task)[1:], {"train": np.arange(12), "test": np.arange(5)}
    all_pixels = {"n_pixels_per_image": None, "n_held_out_pixels_per_image": None}
    config = make_config(tasks=both, dense_steps=2, memory_gb=memory_gb, **all_pixels)
    editor, views = AblationEditor(inputs.sae, VARIANTS[:2]), WholeImages(inputs, config, both, rows)
    head = SegmentationHeads(2, inputs.sae.d_in, 5, [0.1, 0.2])
    for parameter in head.parameters():
        parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    batch, images = next(iter(views.iterate_batches(editor))), views.fit_images
    assert len(list(batch._iterate_slices(head))) == (1 if memory_gb > 1 else 2 * len(batch.patches))
    chosen = choose_images(config.seed, 0, len(images), len(batch.patches))
    sampled = images.truths.sample_step(len(chosen), None, config.seed, 0)
    at_once = images.make_batch(chosen, sampled, editor)
    torch.testing.assert_close(batch.losses(head), head.losses(at_once), rtol=1e-4, atol=1e-6)
    heads = {Task.segmentation: [head.select(torch.zeros(2, dtype=torch.int64))]}
    held_out = views.held_out_images
    for i, seen in enumerate(views.predict(Part.held_out, slice(0, 2), editor, heads)):
        sampled = held_out.truths.sample_held_out(None, config.seed, i)
        at_once = held_out.make_batch(np.array([i]), [sampled], editor)
        logits = at_once.pixels.read(at_once.read_patches(heads[Task.segmentation][0]))[:, 0]
        assert torch.equal(seen.truth.flatten(), at_once.labels[0])
        assert torch.equal(seen.values.flatten(1), logits.argmax(-1))
    trained = DenseProbes(inputs, config, views).train(editor)
    assert set(trained) == {"segmentation", "depth"}
    sizes = [sampled._replace(height_px=one) for one in (5, 6)]
    with pytest.raises(InputError, match=r"one size .* 5 x \d+ and 6 x .*: set probe\.n_pixels_per_image"):
        images.make_sliced_batch(np.arange(2), sizes, editor, 1.0)


def test_truth_that_is_read_ahead_is_the_same(inputs):
    config = make_config(dense_steps=4, dense_batch_images=4, n_pixels_per_image=8, feature_batch_images=3)
    editor = AblationEditor(inputs.sae, VARIANTS[:2])
    found: list[list[torch.Tensor]] = []
    for n_workers in (0, 2):
        ahead = dataclasses.replace(inputs, n_workers=n_workers)
        rows = {"train": np.arange(12), "test": np.arange(5)}
        views = WholeImages(ahead, config, list(Task)[1:], rows)
        seen = [part for batch in views.iterate_batches(editor) for part in (batch.labels, batch.depth_m)]
        outcomes = run_dense(DenseProbes(ahead, config, views), editor)
        seen += [value for of in outcomes.values() for value in of.metrics.values()]
        found.append([part for part in seen if part is not None])
    assert len(found[0]) > 2 * 4
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_rates_are_chosen_on_held_out_images_and_edges_flagged():
    held_out = torch.tensor([[0.1, 0.5, 0.3], [0.1, 0.2, 0.3], [0.2, 0.2, 0.2], [0.4, float("nan"), 0.3]])
    best, records = choose_rates("segmentation", [1, 2, 3], held_out, higher_is_better=True)
    assert best.tolist() == [1, 2, 1, 0]
    assert [record["at_edge"] for record in records] == [False, True, False, True]
    (given,) = choose_rates("depth", [0.1], torch.tensor([[2.0]]), higher_is_better=False)[1]
    assert not given["at_edge"]  # it was not chosen
    assert records[3]["held_out"]["2"] is None
    best, _ = choose_rates("depth", [1, 2, 3], held_out, higher_is_better=False)
    assert best.tolist() == [0, 0, 1, 2]
    with pytest.raises(InputError, match=r"lower probe\.depth_lrs"):
        choose_rates("depth", [1], torch.tensor([[float("nan")]]), higher_is_better=False)


def test_results_survive_the_disk(results, tmp_path):
    save_result(tmp_path, results["without_class"])
    loaded = load_result(tmp_path)
    assert loaded.to_json() == results["without_class"].to_json()
    assert set(json.loads((tmp_path / "result.json").read_text())) == {"variant", "metrics", "frozen_head", "lr"}
    for task, maps in results["without_class"].heads.items():
        assert torch.equal(loaded.heads[task].weight, maps.weight)
        assert torch.equal(loaded.heads[task].bias, maps.bias)
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(InputError, match="result of a probe"):
        load_result(tmp_path)


def test_an_interruption_keeps_what_is_finished(inputs):
    finished = []

    def interrupt(what: str, done: int, total: int) -> None:
        if finished and what == "segmentation and depth":
            raise KeyboardInterrupt  # inside Lightning's loop of the second chunk

    config = make_config(tasks=[Task.depth], variants_per_chunk=1, dense_steps=2)
    with pytest.raises(KeyboardInterrupt):
        run_probes(VARIANTS, inputs, config, on_result=lambda *result: finished.append(result), progress=interrupt)
    assert [result.variant["name"] for _, result in finished] == ["original"]


@pytest.mark.parametrize(
    ("changes", "config", "message"),
    [
        ({}, {"readouts": [Readout.cls_layer]}, "cls_layer cannot change"),
        ({"layer": -1}, {}, "is the last"),
        ({"backbone": None}, {}, "needs the backbone"),
        ({"edits_patches": False}, {}, "SAE for CLS"),
        ({"edits_patches": False}, {"tasks": [Task.classification]}, "patch_mean cannot change"),
    ],
)
def test_probes_that_cannot_change_are_refused(inputs, changes, config, message):
    with pytest.raises(InputError, match=message):
        run_probes([ORIGINAL], dataclasses.replace(inputs, **changes), make_config(**config))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out_share": 1.0}, "held_out_share"),
        ({"depth_lrs": [1.0, 0.1]}, "to ascend"),
        ({"tasks": []}, "at least one"),
        ({"dense_steps": 0}, "dense_steps"),
        ({"n_depth_bins": 1}, "n_depth_bins"),
    ],
)
def test_contradictory_settings_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        make_config(**settings)


def test_tokens_that_are_not_finite_are_refused():
    broken = make_inputs(10, 4)
    broken.train.tokens.patches[3, 2] = np.nan
    with pytest.raises(InputError, match="NaN or Inf"):
        run_probes([ORIGINAL], broken, make_config(tasks=[Task.classification]))


def test_a_tower_without_cls_has_none_to_read() -> None:
    backbone: Any = SimpleNamespace(has_cls=False)
    config = ProbeConfig(readouts=[Readout.cls_layer])
    with pytest.raises(InputError, match="cls_layer needs a CLS token"):
        check_probes(config, backbone, -2, SceneSet.__new__(SceneSet), edits_prefix=True)
