"""What classification reads is made once, in one pass, and read again by whatever wants it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.config.tree import compose
from infoscope.probes import extraction, vectors
from infoscope.probes.classification import count_variants_at_a_time
from infoscope.probes.config import ProbeConfig, Readout, Solver, Task
from infoscope.probes.dense_images import count_training_bytes
from infoscope.probes.extraction import EncodedBatch, Wanted, iterate_tokens, measure_shares
from infoscope.probes.feature_files import WantedFeatures, write_features
from infoscope.probes.features import MEANS, FeatureFolders, Features
from infoscope.probes.heads import LinearMaps
from infoscope.probes.inputs import ProbeInputs
from infoscope.probes.run import run_probes
from infoscope.runtime.errors import InputError
from infoscope.sae.activations import BatchTopK
from infoscope.sae.config import TokenNorm
from infoscope.sae.edit import EditMode
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Ablation, Role
from infoscope.scope.editing import AblationEditor
from tests.support.imported_samples import make_sae as make_imported
from tests.support.probe_samples import CLASS_LATENTS, LABEL_LATENTS, SampleCache, make_config, make_inputs, mask

KEEP, DECODE = EditMode.error_preserving, EditMode.reconstruct
VARIANTS = {
    variant.name: variant
    for variant in (
        Ablation("original", KEEP, mask([]), Role.original),
        Ablation("decoded", DECODE, mask([]), Role.nothing),
        Ablation("without_class", KEEP, mask(CLASS_LATENTS), Role.group, "high"),
        Ablation("decoded_without_labels", DECODE, mask(LABEL_LATENTS), Role.group, "low"),
        Ablation("without_all", DECODE, mask(list(range(16))), Role.all),
    )
}
ROWS = {"train": np.array([0, 2, 3, 7, 8, 9, 11]), "test": np.arange(5)}
CLASSIFY = {"tasks": [Task.classification], "classification_epochs": 3}


def make_odd_sae() -> SparseAutoencoder:
    """An SAE with a threshold, as many active latents per token as exceed it, a mean, and a bias of the decoder."""
    mean = torch.linspace(-0.3, 0.4, 16)
    sae = SparseAutoencoder(16, 16, BatchTopK(3), mean, scale=1.7, seed=3)
    with torch.no_grad():
        sae.b_dec.copy_(torch.linspace(0.2, -0.1, 16))
        sae.activation.threshold.fill_(0.05)
    return sae.eval().requires_grad_(False)


def write_all(inputs: ProbeInputs, config: ProbeConfig, root: Path) -> Features:
    folders = FeatureFolders(root)

    def fill(missing: dict[str, Path], folder: Path | None) -> None:
        write_features([WantedFeatures(inputs, VARIANTS, missing, folder)], config, ROWS, folders.check_disk)

    return Features(inputs, config, folders.make([*VARIANTS, MEANS], fill), ROWS)


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each pass over tokens adds how many images it reads."""
    passes: list[int] = []
    original = SampleCache.iterate

    def iterate(self: SampleCache, rows: np.ndarray, batch_images: int) -> Iterator[Any]:
        assert (np.diff(rows) > 0).all()
        passes.append(len(rows))
        return original(self, rows, batch_images)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(SampleCache, "iterate", iterate)
    return passes


@pytest.mark.parametrize("edits_prefix", [False, True])
@pytest.mark.parametrize(
    "sae",
    [
        None,
        make_odd_sae(),
        make_imported("signed", TokenNorm.none, torch.float32, 16, 16),
        make_imported("capped", TokenNorm.layer_norm, torch.float32, 16, 16),
        make_imported("gated", TokenNorm.constant_norm, torch.float32, 16, 16),
    ],
    ids=["topk", "threshold", "signed", "layer_norm", "constant_norm"],
)
def test_features_are_what_editing_gives(tmp_path: Path, edits_prefix: bool, sae: SparseAutoencoder | None) -> None:
    inputs = dataclasses.replace(make_inputs(20, 6), edits_prefix=edits_prefix)
    inputs = dataclasses.replace(inputs, sae=sae or inputs.sae)
    readouts = [Readout.cls_final, Readout.patch_mean] + [Readout.cls_layer] * edits_prefix
    memory_gb = 3.5 * 12 * 4 * 2 * 17 * 16 / 1e9  # tokens of three variants at a time
    config = make_config(readouts=readouts, feature_batch_images=2, memory_gb=memory_gb)
    features = write_all(inputs, config, tmp_path)
    editor = AblationEditor(inputs.sae, list(VARIANTS.values()))
    for split, data in (("train", inputs.train), ("test", inputs.test)):
        read = features.load(split, VARIANTS)
        assert list(read) == [readout.name for readout in readouts]
        tokens = iterate_tokens(data, ROWS[split], 3, inputs.device)
        batches = [(batch, batch.edit(editor)) for batch in (EncodedBatch(inputs, some) for some in tokens)]
        for readout in readouts:
            direct = torch.cat([batch.read(edited, readout) for batch, edited in batches], dim=1)
            assert direct.shape == (len(VARIANTS), len(ROWS[split]), 16)
            torch.testing.assert_close(read[readout.name], direct, rtol=1e-5, atol=1e-6)
        original = torch.from_numpy(data.tokens.patches[ROWS[split]]).mean(1)
        assert torch.equal(read["patch_mean"][0], original)
        some = features.load(split, {name: VARIANTS[name] for name in ("without_all", "original")})
        assert all(torch.equal(some[name], read[name][[4, 0]]) for name in read)
    shares = measure_shares(inputs, config, ROWS["test"], list(VARIANTS.values()))
    for name, expected in zip(VARIANTS, shares, strict=True):
        assert features.shares(name) == pytest.approx(expected, rel=1e-6)


def test_features_of_several_saes_are_made_in_one_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bytes that each would have alone; what is there already is left as it is."""
    monkeypatch.setattr(extraction, "PART_IMAGES", 4)
    inputs = make_inputs(20, 6)
    several = [inputs, dataclasses.replace(inputs, sae=make_odd_sae()), inputs]
    names = [[*VARIANTS, MEANS], list(VARIANTS), [MEANS, "decoded"]]
    config = make_config(feature_batch_images=2)
    expected = {}
    for number, one in enumerate(several):
        folder = tmp_path / f"alone-{number}"
        folder.mkdir()
        write_all(one, config, folder)
        expected |= {f"{number}/{file.relative_to(folder)}": file.read_bytes() for file in folder.rglob("*.*")}

    def make(number: int, root: Path) -> WantedFeatures:
        folders = {name: root / str(number) / name for name in names[number]}
        progress = root / f"progress-{number}"
        for folder in (*folders.values(), progress):
            folder.mkdir(parents=True)
        return WantedFeatures(several[number], VARIANTS, folders, progress)

    asked, passes = [], count_reads(monkeypatch)
    wanted = [make(number, tmp_path / "together") for number in range(3)]
    write_features(wanted[1:2], config, ROWS, lambda n_bytes: None)
    for file in (wanted[1].progress_folder or tmp_path).glob("train-*1.pt"):
        file.unlink()
    passes.clear()
    write_features(wanted, config, ROWS, asked.append)
    assert passes == [4, 3, 4, 1]  # both splits once, a part at a time
    assert len(asked) == 3
    found = {
        str(file.relative_to(tmp_path / "together")): file.read_bytes() for file in tmp_path.glob("together/?/*/*")
    }
    assert found == {name: content for name, content in expected.items() if name in found}
    n_variants, n_means = sum(len(set(of) - {MEANS}) for of in names), 2
    assert len(found) == n_variants * 3 + n_means * 8
    n_bytes = n_variants * 12 * 16 * 4
    assert asked[0] == 2 * n_bytes  # parts, and what they are joined to
    assert asked[1] > asked[0]


def test_half_precision_is_half_the_size_and_nearly_the_same(tmp_path: Path) -> None:
    inputs = make_inputs(20, 6)
    for dtype in ("float32", "float16"):
        (tmp_path / dtype).mkdir()
    whole, half = (
        write_all(inputs, make_config(feature_dtype=dtype), tmp_path / dtype) for dtype in ("float32", "float16")
    )
    files = [features.folders["decoded"] / "train-cls_final.npy" for features in (whole, half)]
    assert [np.load(file).dtype.itemsize for file in files] == [4, 2]
    read = [features.load("train", VARIANTS)["cls_final"] for features in (whole, half)]
    assert read[1].dtype == torch.float32
    torch.testing.assert_close(read[1], read[0], rtol=2e-3, atol=1e-4)
    inputs.train.tokens.prefix[:] = 1e6
    (tmp_path / "large").mkdir()
    with pytest.raises(InputError, match=r"probe\.feature_dtype=float32"):
        write_all(inputs, make_config(feature_dtype="float16"), tmp_path / "large")


def test_every_split_is_read_once_and_features_serve_another_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, passes = make_inputs(30, 8), count_reads(monkeypatch)
    config = make_config(**CLASSIFY, variants_per_chunk=2, n_train_images=25)
    first = run_probes(list(VARIANTS.values()), inputs, config, folders=FeatureFolders(tmp_path))
    assert passes == [25, 8]
    other = dataclasses.replace(
        config, classification_solver=Solver.lbfgs, classification_l2=[0.1, 1.0], classification_l2_halvings=0
    )
    second = run_probes(list(VARIANTS.values()), inputs, other, folders=FeatureFolders(tmp_path))
    assert passes == [25, 8]
    assert first.keys() == second.keys()
    assert all(first[key].variant == second[key].variant for key in first)
    means_alone = dataclasses.replace(config, readouts=[Readout.patch_mean])
    new = Ablation("without_labels", KEEP, mask(LABEL_LATENTS), Role.group, "low")
    heads = first[VARIANTS["original"].key()].heads
    run_probes([new], inputs, means_alone, original_heads=heads, folders=FeatureFolders(tmp_path))
    assert passes == [25, 8, 8]  # its share of the energy; its vectors follow from the means


@pytest.mark.parametrize("batch_images", [1, 4])
def test_vectors_that_are_kept_hold_no_tokens(batch_images: int) -> None:
    inputs = dataclasses.replace(make_inputs(4, 4), edits_prefix=True)
    config = make_config(readouts=[Readout.cls_layer, Readout.cls_final])
    wanted = Wanted(inputs, config, VARIANTS, vectors=True, shares=False, means=True, folder=None)
    for tokens in iterate_tokens(inputs.train, np.arange(4), batch_images, inputs.device):
        kept = wanted.read(EncodedBatch(inputs, tokens))
        assert len(kept) >= 2 * len(VARIANTS)
        held = {rows.untyped_storage().data_ptr(): rows.untyped_storage().nbytes() for rows in kept.values()}
        assert sum(held.values()) == sum(rows.nbytes for rows in kept.values())


def test_what_training_on_whole_images_holds() -> None:
    """Measured, 8 variants of ViT-L/14's tokens, 150 labels: 549 MB."""
    config = make_config(
        tasks=[Task.segmentation, Task.depth], dense_batch_images=8, n_pixels_per_image=64, n_depth_bins=256
    )
    config = dataclasses.replace(config, segmentation_lrs=[0.01, 0.03, 0.1], depth_lrs=[0.01, 0.03, 0.1])
    assert count_training_bytes(config, 8, 256, 1024, 150) == pytest.approx(549e6, rel=0.05)
    alone = dataclasses.replace(config, tasks=[Task.depth], n_pixels_per_image=None)
    assert count_training_bytes(alone, 1, 4, 16, 150) == 4 * (2 * 32 * 16 + 7 * 16 * 768 + 2 * 32 * 768)


def test_memory_bounds_how_many_variants_are_classified_together(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(readouts=[Readout.patch_mean, Readout.cls_final], variants_per_chunk=32)
    heads = 4 * 3 * 1000 * 768 * (3 * 2 + 4)  # three rates, two readouts
    n_bytes = 1_331_167 * 768 * 8 + heads
    assert count_variants_at_a_time(config, 1_331_167, 768, 1000) == (1, n_bytes)
    wide = dataclasses.replace(config, classification_batch_images=1024)  # its logits take more than heads
    assert count_variants_at_a_time(wide, 1, 768, 1000)[1] == 768 * 8 + 4 * 3 * 1000 * (6 * 768 + 4 * 1024)
    for memory_gb, n_variants in ((8.01 * n_bytes / 1e9, 8), (7.99 * n_bytes / 1e9, 7), (1e-3, 1), (1e6, 32)):
        changed = dataclasses.replace(config, memory_gb=memory_gb)
        assert count_variants_at_a_time(changed, 1_331_167, 768, 1000)[0] == n_variants
    alone = dataclasses.replace(config, classification_solver=Solver.lbfgs)  # one head after the other
    assert count_variants_at_a_time(alone, 1_331_167, 768, 1000) == (1, 1_331_167 * 768 * 8)

    inputs, said, together = make_inputs(30, 8), [], []
    loaded = Features.load

    def load(self: Features, split: str, variants: dict[str, Ablation]) -> dict[str, torch.Tensor]:
        together.append((split, len(variants)))
        return loaded(self, split, variants)

    monkeypatch.setattr(Features, "load", load)
    variants, done = list(VARIANTS.values()), []
    config = make_config(tasks=[Task.classification, Task.depth], classification_epochs=5, dense_steps=2)
    whole = run_probes(variants, inputs, config, say=said.append)
    assert (said, together) == ([], [("train", 5), ("test", 5)])
    together.clear()
    n_bytes = count_variants_at_a_time(config, 38, 16, 3)[1]
    config = dataclasses.replace(config, memory_gb=2.5 * n_bytes / 1e9)
    monkeypatch.setattr(vectors, "BLOCK_BYTES", 1000)
    parts = run_probes(variants, inputs, config, on_result=lambda key, _: done.append(key), say=said.append)
    assert [n for split, n in together if split == "train"] == [2, 2, 1]
    assert len(said) == 1
    assert said[0].startswith("classification: 2 of 5 variants at a time")
    assert done == list(whole) == list(parts)
    for key, result in whole.items():
        for task, values in result.metrics.items():
            assert parts[key].metrics[task] == pytest.approx(values, abs=1e-3)
            assert parts[key].frozen_head[task] == pytest.approx(result.frozen_head[task], abs=1e-3)
            torch.testing.assert_close(parts[key].heads[task].weight, result.heads[task].weight, rtol=1e-3, atol=1e-3)


def test_blocks_change_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    read, rows = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0)) + 100, torch.arange(0, 50, 2)
    maps = LinearMaps(torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1)), torch.zeros(3, 6))
    labels = torch.arange(25) % 3
    expected = torch.var_mean(read[:, rows].double(), dim=1, correction=0)
    scores = torch.einsum("vnd,vdhc->vhnc", read[:, rows], maps.weight.unflatten(2, (2, 3)))
    for n_bytes in (10**9, 1):
        monkeypatch.setattr(vectors, "BLOCK_BYTES", n_bytes)
        found = vectors.standardise_vectors(read, rows)
        torch.testing.assert_close(found.mean, expected[1].float())
        torch.testing.assert_close(found.std, (expected[0] + 1e-5).sqrt().float())
        right = vectors.measure_top1(maps, read, rows, labels, 3)
        assert torch.equal(right, (scores.argmax(-1) == labels).double().mean(-1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_dtype": "bfloat16"}, "feature_dtype to be float32 or float16"),
        ({"memory_gb": 0.0}, "memory_gb"),
        ({"classification_l2": [1.0, 0.1]}, "classification_l2 to ascend"),
        ({"classification_l2_halvings": -1}, "classification_l2_halvings"),
        ({"lbfgs_max_iterations": 0}, "lbfgs_max_iterations"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_config(**settings)


def test_a_key_holds_what_decides_the_result_and_nothing_else() -> None:
    def changes(tasks: list[Task], **settings: Any) -> bool:
        keys = [ProbeConfig(tasks=tasks, **chosen).cache_key_fields() for chosen in ({}, settings)]
        return keys[0] != keys[1]

    classify, dense = [Task.classification], [Task.segmentation, Task.depth]
    for tasks in (classify, dense, classify + dense):
        assert not changes(tasks, memory_gb=1.0, variants_per_chunk=1, feature_batch_images=1, n_draws=1)
        assert changes(tasks, seed=1)
        assert changes(tasks, held_out_share=0.2)
        assert changes(tasks, n_test_images=3)
        assert not changes(tasks, classification_l2=[1.0], lbfgs_max_iterations=5)  # SGD reads neither
        is_read = Task.classification in tasks
        assert changes(tasks, classification_lrs=[1.0]) == is_read
        assert changes(tasks, classification_solver=Solver.lbfgs) == is_read
        assert changes(tasks, feature_dtype="float16", readouts=[Readout.cls_final]) == is_read
        assert changes(tasks, dense_steps=7) == (tasks != classify)
        assert changes(tasks, batch_norm=False) == (tasks != classify)
    lbfgs = {"classification_solver": Solver.lbfgs}
    keys = [
        ProbeConfig(tasks=classify, **lbfgs, **more).cache_key_fields()
        for more in ({}, {"classification_epochs": 7}, {"classification_l2_halvings": 2})
    ]
    assert keys[0] == keys[1] != keys[2]
    means = {"readouts": [Readout.patch_mean]}
    assert ProbeConfig(**means).cache_key_fields() == ProbeConfig(**means, feature_dtype="float16").cache_key_fields()
    assert ProbeConfig().cache_key_fields()["tasks"] == ["classification", "segmentation", "depth"]


@pytest.mark.long
def test_presets_compose() -> None:
    chosen = {name: compose([f"probe={name}"]).probe for name in ("plain", "miniature", "dinov2", "clip_paper")}
    assert chosen["plain"].classification_solver is chosen["dinov2"].classification_solver is Solver.sgd
    assert len(chosen["dinov2"].classification_lrs) == 13
    assert chosen["clip_paper"].classification_solver is Solver.lbfgs
    assert chosen["clip_paper"].classification_l2 == [10.0**power for power in range(-6, 7, 2)]
    assert not chosen["clip_paper"].classification_batch_norm
