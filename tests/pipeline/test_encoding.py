"""Tokens in the chain: an interrupted encoding goes on, and tokens that are never stored change no result."""

from __future__ import annotations

import gc
import json
import multiprocessing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infoscope.config.tree import compose
from infoscope.data.reader import iterate_images
from infoscope.pipeline.context import Context
from infoscope.probes.results import load_results
from infoscope.runtime import parts, processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.sae import passes
from infoscope.scope.top_images import TopImages
from infoscope.stages import backbone as backbone_module
from infoscope.stages.backbone import load_backbone
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.images import open_split
from infoscope.stages.outliers.stage import group_activation_of
from infoscope.stages.predict.stage import Predict
from infoscope.stages.probe.stage import Probe
from infoscope.stages.rank import Rank
from infoscope.stages.score.stage import Score
from infoscope.stages.tokens import Tokens, keep_open
from infoscope.stages.train_sae import TrainSAE
from infoscope.vision.backbone import Backbone
from infoscope.vision.backbone import Tokens as TokenBatch
from infoscope.vision.planted import PlantedRegisters
from infoscope.vision.tokens import extract, source
from tests.support.pipeline_samples import N_TRAIN, Recorder, make_tiny_config, run_tiny
from tests.support.quick_processes import quick_sharing
from tests.support.slow import fall_behind

N_PHOTOGRAPHS, BROKEN = 29, 3


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i in range(N_PHOTOGRAPHS):
        pixels = np.random.default_rng(i).integers(256, size=(40, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / f"{BROKEN:02}.png").write_bytes(b"no picture")
    return folder


def make_context(photographs: Path, output_dir: Path, *overrides: str) -> Context:
    own = [f"data.root={photographs}", "data.on_error=skip", "data.test_share=0", f"output_dir={output_dir}"]
    fixed = ["data=image_folder", "logger=none", "trainer.device=cpu", "trainer.progress=false"]
    return Context(compose([*fixed, *own, *overrides]), Recorder())


@pytest.mark.parametrize("store_tokens", ["true", "false"])
def test_an_interrupted_encoding_goes_on_where_it_was(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store_tokens: str
) -> None:
    monkeypatch.setattr(source, "BATCH_IMAGES", 4)
    monkeypatch.setattr(extract, "SHARD_BYTES", 1)  # every batch is a shard
    override = f"data.store_tokens={store_tokens}"
    whole = Tokens.at(make_context(photographs, tmp_path / "whole", override), "train").get()
    cut = make_context(photographs, tmp_path / "cut", override)
    encode = load_backbone(cut).tokens_of_layers

    def give_up(images, layers, checks):
        if load_backbone(cut).n_images_encoded >= 15:
            raise KeyboardInterrupt
        return encode(images, layers, checks)

    with monkeypatch.context() as patch:
        patch.setattr(load_backbone(cut), "tokens_of_layers", give_up)
        with pytest.raises(KeyboardInterrupt):
            Tokens.at(cut, "train").get()
    assert Tokens.at(cut, "train").find() is None

    again = make_context(photographs, tmp_path / "cut", override)
    resumed = Tokens.at(again, "train").get()
    assert load_backbone(again).n_images_encoded == N_PHOTOGRAPHS - 16  # 4 batches were finished
    assert resumed.manifest["files"] == {
        name: entry if name != "config.yaml" else resumed.manifest["files"][name]  # it names the output folder
        for name, entry in whole.manifest["files"].items()
    }
    assert list(resumed.read_json("skipped.json")) == [f"{BROKEN:02}.png"]
    assert isinstance(again.display, Recorder)
    assert "1 of 29 train images were skipped: 03.png" in again.display.text


def encode(photographs: Path, output_dir: Path, n_threads: int) -> None:
    """What every process does: tokens, stored and not."""
    if processes.current().rank == 1:
        fall_behind()
    torch.set_num_threads(n_threads)
    source.BATCH_IMAGES = 4
    for store_tokens in ("true", "false"):
        Tokens.at(make_context(photographs, output_dir, f"data.store_tokens={store_tokens}"), "train").get()


def test_two_processes_encode_the_bytes_of_one(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BATCH_IMAGES", 4)
    (photographs / "27.png").write_bytes(b"no picture either, and of the other process")
    n_threads = torch.get_num_threads()
    encode(photographs, tmp_path / "one", n_threads)
    with quick_sharing(), processes.sharing(2, encode, photographs, tmp_path / "two", n_threads):
        encode(photographs, tmp_path / "two", n_threads)
    found = []
    for name in ("one", "two"):
        files = [path for path in (tmp_path / name / "artifacts" / "tokens").rglob("*") if path.is_file()]
        of_data = [
            path for path in files if path.name not in ("manifest.json", "config.yaml") and path.suffix != ".lock"
        ]
        found.append({path.relative_to(tmp_path / name): path.read_bytes() for path in of_data})
    assert len([path for path in found[0] if path.name.startswith("patches-")]) == 8
    assert found[0] == found[1]
    skipped = [json.loads(content) for path, content in found[1].items() if path.name == "skipped.json"]
    assert [list(reasons) for reasons in skipped] == [["03.png", "27.png"]] * 2


def test_an_interrupted_ranking_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "BATCH_IMAGES", 4)
    monkeypatch.setattr(parts, "PART_IMAGES", (8, 8))
    whole = Rank.at(Context(make_tiny_config(tmp_path / "whole"), Recorder()), 0).get()
    cut = Context(make_tiny_config(tmp_path / "cut"), Recorder())
    TrainSAE.at(cut, 0).get()
    update, n_updates = TopImages.update, 0

    def give_up(self: TopImages, *args: Any) -> None:
        nonlocal n_updates
        n_updates += 1
        if n_updates == 6:
            raise KeyboardInterrupt
        update(self, *args)

    monkeypatch.setattr(TopImages, "update", give_up)
    with pytest.raises(KeyboardInterrupt):
        Rank.at(cut, 0).get()
    resumed = Rank.at(Context(make_tiny_config(tmp_path / "cut"), Recorder()), 0).get()
    assert n_updates == 6 + (N_TRAIN - 16) // 4  # 16 of the images were ranked for good
    for name, entry in whole.manifest["files"].items():
        assert name == "config.yaml" or resumed.manifest["files"][name] == entry


def test_tokens_that_are_never_stored_change_no_result(tmp_path: Path) -> None:
    """From the SAE to probes and predictions; only rounding may differ, since batches do."""

    def make(name: str, *overrides: str) -> Context:
        options = ["model=scenes_clip", "data.n_workers=0", "probe.n_draws=0", "sae.n_tokens=8000", *overrides]
        return Context(make_tiny_config(tmp_path / name, *options), Recorder())

    stored, live = make("stored"), make("live", "data.store_tokens=false")
    for ctx in (stored, live):
        Probe().make(ctx, 0)
        Predict.at(ctx, 0).get()
    files = {path.name for path in (tmp_path / "live" / "artifacts" / "tokens").rglob("*.npy")}
    assert files == {"norms.npy", "mean.npy", "image_index.npy"}

    figures = [TrainSAE.at(ctx, 0).get().read_json("metrics.json") for ctx in (stored, live)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-3)
    rankings = [Rank.at(ctx, 0).load() for ctx in (stored, live)]
    assert np.mean(rankings[0].top_images == rankings[1].top_images) > 0.98
    assert rankings[1].mean_act == pytest.approx(rankings[0].mean_act, rel=0.02, abs=1e-3)
    scores = [Score.at(ctx, 0).load().cds(2).values for ctx in (stored, live)]
    assert np.nanmedian(np.abs(scores[0] - scores[1])) < 1e-3
    activations = [group_activation_of(ctx, 0) for ctx in (stored, live)]
    assert activations[1].everyone.on_normal == pytest.approx(activations[0].everyone.on_normal, rel=0.01)
    confounds = [Confounds.at(ctx, 0).load().properties for ctx in (stored, live)]
    assert confounds[1].firing_rate == pytest.approx(confounds[0].firing_rate, abs=0.01)
    probed = []
    for ctx in (stored, live):
        original, *_ = found = Probe().make(ctx, 0)
        probed.append(load_results([one.folder for one in found[original]], original).metrics)
    for task, metrics in probed[0].items():
        assert probed[1][task] == pytest.approx(metrics, rel=0.02, abs=0.02), task
    predictions = [Predict.at(ctx, 0).load().metrics(0) for ctx in (stored, live)]
    assert predictions[1] == pytest.approx(predictions[0], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("choice", ["true", "false", "null"])
def test_blocks_are_compiled_where_that_is_asked_for_or_pays(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str
) -> None:
    """On a CPU it is asked for alone. Where they cannot be compiled, that is said once, and tokens are made."""
    asked: list[int] = []

    def refuse(self: Backbone, batch_images: int) -> None:
        asked.append(batch_images)
        raise InputError("The backbone's blocks cannot be compiled (no C++ compiler): set trainer.compile=false.")

    monkeypatch.setattr(Backbone, "compile_blocks", refuse)
    monkeypatch.setattr(backbone_module, "COMPILING_PAYS", 1)
    ctx = make_context(photographs, tmp_path, f"trainer.compile={choice}", "data.store_tokens=false")
    Tokens.at(ctx, "train").load()
    assert Tokens.at(make_context(photographs, tmp_path, "data.store_tokens=false"), "train").find() is not None
    assert isinstance(ctx.display, Recorder)
    assert asked == ([source.BATCH_IMAGES] if choice == "true" else [])
    assert ctx.display.text.count("blocks cannot be compiled (no C++ compiler)") == len(asked)


def test_helpers_that_read_for_tokens_stay_and_end_with_them(photographs: Path, tmp_path: Path) -> None:
    (photographs / f"{BROKEN:02}.png").unlink()
    images = open_split(make_context(photographs, tmp_path), "train")
    before = set(multiprocessing.active_children())
    read = keep_open(images, 32, 2, torch.device("cpu"))
    expected = torch.cat([batch for _, batch in iterate_images(images, 32, 4)])
    helpers = []
    for _ in range(2):
        found = list(read(np.arange(len(images)), 4))
        helpers.append(set(multiprocessing.active_children()) - before)
        assert torch.equal(torch.cat([batch for _, batch in found]), expected)
    assert helpers[0] == helpers[1]
    assert len(helpers[0]) == 2

    outer = read(np.arange(len(images)), 4)
    first = next(outer)[1]
    inner = torch.cat([batch for _, batch in read(np.arange(8), 4)])
    assert torch.equal(inner, expected[:8])
    assert torch.equal(torch.cat([first, *(batch for _, batch in outer)]), expected)
    broken_off = read(np.arange(len(images)), 4)
    next(broken_off)
    broken_off.close()
    assert torch.equal(torch.cat([batch for _, batch in read(np.arange(len(images)), 4)]), expected)
    del read, outer, broken_off
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it may be had")
@pytest.mark.parametrize("override", ["plan=false", "plan=true"])
def test_a_decoder_that_is_not_here_is_refused_before_anything_is_built(tmp_path: Path, override: str) -> None:
    (tmp_path / "photographs").mkdir()
    for i in range(40):
        Image.new("RGB", (30, 20), (i, 0, 0)).save(tmp_path / "photographs" / f"{i}.jpg")
    data = ("data=image_folder", f"data.root={tmp_path / 'photographs'}", "data.decoder=nvjpeg")
    with pytest.raises(InputError, match=r"on a GPU for data\.decoder=nvjpeg, got: no GPU"):
        run_tiny(tmp_path / "out", *data, "stage=score", override)
    assert not list((tmp_path / "out").glob("artifacts/*/*"))


def test_layers_of_a_sweep_come_from_one_reading_of_the_images(photographs: Path, tmp_path: Path):
    together = make_context(
        photographs, tmp_path / "together", "model=planted_registers", "stage=rank", "model.layer=0"
    )
    together.job = Job(layers=(1, -2, -1, 7))  # one block and another, twice each, and one that does not exist
    first = Tokens.at(together, "train").get()
    assert load_backbone(together).n_images_encoded == N_PHOTOGRAPHS - 1
    second = make_context(photographs, tmp_path / "together", "model=planted_registers", "stage=rank", "model.layer=-1")
    assert second.store.find(Tokens.at(second, "train").spec) is not None
    for layer, found in ((0, first.folder), (-1, Tokens.at(second, "train").folder)):
        alone = make_context(
            photographs, tmp_path / "alone", "model=planted_registers", "stage=rank", f"model.layer={layer}"
        )
        expected = Tokens.at(alone, "train").folder
        assert found.name == expected.name
        for file in ("patches-00000.npy", "prefix-00000.npy", "tokens.json", "skipped.json", "image_index.npy"):
            assert (found / file).read_bytes() == (expected / file).read_bytes()
    manifests = [json.loads((folder / "manifest.json").read_text()) for folder in (first.folder, found)]
    assert all(manifest["work"]["n"] == N_PHOTOGRAPHS for manifest in manifests)


def test_a_layer_that_cannot_be_kept_does_not_take_others_with_it(photographs: Path, tmp_path: Path, monkeypatch):
    overrides = ["model=planted_registers", "stage=rank", "data.cache_dtype=float16"]
    original = PlantedRegisters._tokens

    def spoil(self: PlantedRegisters, pixels: torch.Tensor, layers: Sequence[int]) -> list[TokenBatch]:
        found = original(self, pixels, layers)
        return [
            one._replace(patches=one.patches + 1e5 * (layer == 1)) for one, layer in zip(found, layers, strict=True)
        ]

    monkeypatch.setattr(PlantedRegisters, "_tokens", spoil)
    first = make_context(photographs, tmp_path, *overrides, "model.layer=0")
    first.job = Job(layers=(-1,))
    made = Tokens.at(first, "train").get()
    assert set(made.manifest["upstream"]) == set()
    assert made.read_json("tokens.json")["layer"] == 0
    second = make_context(photographs, tmp_path, *overrides, "model.layer=-1")
    second.job = Job(layers=(0,))
    with pytest.raises(InputError, match="too large for float16"):
        Tokens.at(second, "train").get()
