"""Tokens in shards, an encoding that goes on where it was cut off, and tokens that are never stored."""

from __future__ import annotations

import errno
import math
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from infoscope.runtime import copies
from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.tokens import extract, shards, source
from infoscope.vision.tokens.extract import ShardedRows, TokenCache, Wanted, extract_layers, extract_tokens
from infoscope.vision.tokens.source import LiveTokens, ReadImages
from tests.support.clip_samples import GRID, MEAN, STD, WIDTH, make_backbone, make_images
from tests.support.late_copies import Far, copying_late

N, LAYER, BATCH = 23, -2, 4
IMAGE_BYTES = (GRID**2 + 1) * WIDTH * 4


@pytest.fixture(autouse=True)
def _shards_of_eight_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "SHARD_BYTES", 8 * IMAGE_BYTES)
    monkeypatch.setattr(extract, "N_SHARDS", 1)


def make_reader(unreadable: tuple[int, ...] = (), until: int = N) -> ReadImages:
    """Reads images, and is cut off at the batch of one of them."""

    def read(positions: np.ndarray, batch_images: int) -> Iterator[tuple[Tensor, Tensor]]:
        images = make_images(N)
        for start in range(0, len(positions), batch_images):
            index = [i for i in positions[start : start + batch_images].tolist() if i not in unreadable]
            if positions[start] >= until:
                raise KeyboardInterrupt
            if index:
                yield torch.tensor(index), images[index]

    return read


def extract_all(backbone: Backbone, read: ReadImages, folder: Path, *options: Any) -> TokenCache:
    return extract_tokens(backbone, read, N, LAYER, folder, *options, batch_images=BATCH)


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_folders(root: Path) -> tuple[Path, Path]:
    for name in ("folder", "progress"):
        (root / name).mkdir()
    return root / "folder", root / "progress"


class TestLayers:
    def test_layers_together_give_what_each_gives_alone(self, tmp_path: Path) -> None:
        backbone = make_backbone()
        folders = [*make_folders(tmp_path), tmp_path / "third"]
        folders[2].mkdir()
        wanted = [Wanted(layer, folder) for layer, folder in zip((LAYER, 0, 2), folders, strict=True)]
        caches = extract_layers(backbone, make_reader((5,)), N, wanted, batch_images=BATCH)
        assert backbone.n_images_encoded == N - 1
        for layer, cache in zip((LAYER, 0, 2), caches, strict=True):
            alone = tmp_path / f"alone{layer}"
            alone.mkdir()
            extract_tokens(make_backbone(), make_reader((5,)), N, layer, alone, batch_images=BATCH)
            assert read_folder(cache.folder) == read_folder(alone)

    def test_layers_of_which_one_has_a_shard_more_go_on_together(self, tmp_path: Path) -> None:
        wanted, read = [], []
        for layer in (0, LAYER):
            (tmp_path / str(layer)).mkdir()
            folder, progress = make_folders(tmp_path / str(layer))
            wanted.append(Wanted(layer, folder, progress))
        with pytest.raises(KeyboardInterrupt):
            extract_layers(make_backbone(), make_reader(until=16), N, wanted, batch_images=BATCH)
        finished = [path for one in wanted for path in sorted((one.progress or one.folder).glob("*/facts-*"))]
        assert [path.name for path in finished] == ["facts-00000.npz", "facts-00001.npz"] * 2
        finished[3].unlink()

        def note(positions: np.ndarray, batch_images: int) -> Iterator[tuple[Tensor, Tensor]]:
            read.extend(positions.tolist())
            return make_reader()(positions, batch_images)

        caches = extract_layers(make_backbone(), note, N, wanted, batch_images=BATCH)
        assert read == list(range(8, N))
        for layer, cache in zip((0, LAYER), caches, strict=True):
            alone = tmp_path / f"alone{layer}"
            alone.mkdir()
            extract_tokens(make_backbone(), make_reader(), N, layer, alone, batch_images=BATCH)
            assert read_folder(cache.folder) == read_folder(alone)


class TestShards:
    def test_rows_are_the_same_however_many_shards_hold_them(self, tmp_path: Path) -> None:
        cache = extract_all(make_backbone(), make_reader(), tmp_path)
        assert [len(shard) for shard in cache.patches.shards] == [8, 8, 7]
        batches = make_reader()(np.arange(N), BATCH)
        expected = torch.cat([make_backbone().tokens(images, LAYER).patches for _, images in batches])
        assert torch.equal(cache.tokens(slice(None)).patches, expected)
        rows = np.array([22, 0, 7, 8, 9, 8, 15, 16])
        assert torch.equal(cache.tokens(rows).patches, expected[rows])
        places = np.array([3, 1, 0, 15, 2, 2, 4, 4])
        assert np.array_equal(cache.patches.take(rows, places), expected[rows, places].numpy())
        assert np.array_equal(cache.patches[:], expected.numpy())
        batches = list(cache.iterate(rows, 3))
        assert [batch.tolist() for batch, _ in batches] == [[22, 0, 7], [8, 9, 8], [15, 16]]
        assert torch.equal(torch.cat([tokens.patches for _, tokens in batches]), expected[rows])

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_patches_are_read_ahead_as_they_are_stored(self, tmp_path: Path, dtype: str) -> None:
        cache, cpu = extract_all(make_backbone(), make_reader(), tmp_path, dtype), torch.device("cpu")
        rows = np.array([22, 0, 7, 8, 9, 8, 15, 16])
        found = list(cache.iterate_patches(rows, 3, cpu))
        assert [batch.tolist() for batch, _ in found] == [[22, 0, 7], [8, 9, 8], [15, 16]]
        patches = torch.cat([patches for _, patches in found])
        assert patches.dtype == getattr(torch, dtype)
        assert torch.equal(patches.float(), cache.tokens(rows).patches)
        assert list(cache.iterate_patches(rows[:0], 3, cpu)) == []
        (tmp_path / "patches-00002.npy").unlink()
        again = TokenCache(tmp_path).iterate_patches(np.arange(16, 20), 2, cpu)
        next(cache.iterate_patches(np.arange(N), 3, cpu))  # left off: the thread ends
        assert "tokens_0" not in {thread.name for thread in threading.enumerate()}
        with pytest.raises(IndexError):  # what fails in the thread fails here
            list(again)

    def test_random_rows_of_random_shards(self) -> None:
        rng = np.random.default_rng(0)
        whole = rng.normal(size=(50, 3, 2)).astype(np.float16)
        sharded = ShardedRows(np.split(whole, [7, 8, 30]))
        assert (len(sharded), sharded.shape, sharded.dtype) == (50, whole.shape, np.float16)
        for _ in range(20):
            rows, places = rng.integers(50, size=17), rng.integers(3, size=17)
            assert np.array_equal(sharded[rows], whole[rows])
            assert np.array_equal(sharded.take(rows, places), whole[rows, places].astype(np.float32))
            start, stop = sorted(rng.integers(51, size=2))
            assert np.array_equal(sharded[start:stop], whole[start:stop])

    def test_there_are_enough_shards_to_share_out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for n_shards, expected in ((16, [4] * 5 + [3]), (4, [8, 8, 7]), (1, [12, 11])):
            monkeypatch.setattr(extract, "N_SHARDS", n_shards)
            monkeypatch.setattr(extract, "SHARD_BYTES", 11 * IMAGE_BYTES)
            (tmp_path / str(n_shards)).mkdir()
            cache = extract_all(make_backbone(), make_reader(), tmp_path / str(n_shards))
            assert [len(shard) for shard in cache.patches.shards] == expected


class TestResume:
    @pytest.mark.parametrize("dtype", ["float32", None])
    @pytest.mark.parametrize("unreadable", [(), (0, 7, 14, 15), tuple(range(8, 16)), tuple(range(16, 23))])
    def test_it_ends_as_if_it_had_never_stopped(
        self, tmp_path: Path, dtype: str | None, unreadable: tuple[int, ...]
    ) -> None:
        folder, progress = make_folders(tmp_path)
        whole = tmp_path / "whole"
        whole.mkdir()
        extract_all(make_backbone(), make_reader(unreadable), whole, dtype)

        with pytest.raises(KeyboardInterrupt):
            extract_all(make_backbone(), make_reader(unreadable, until=20), folder, dtype, progress)
        assert not list(folder.iterdir())
        n_finished = 16 if set(range(16, 20)) - set(unreadable) or 15 not in unreadable else 8
        assert len(list(progress.glob("shards-of-8/facts-*"))) == n_finished / 8
        backbone = make_backbone()
        cache = extract_all(backbone, make_reader(unreadable), folder, dtype, progress)
        assert backbone.n_images_encoded == sum(i not in unreadable for i in range(n_finished, N))
        assert len(cache) == N - len(unreadable)
        assert read_folder(folder) == read_folder(whole)
        assert not list((progress / "shards-of-8").iterdir())

    def test_a_shard_without_its_facts_counts_for_nothing(self, tmp_path: Path) -> None:
        folder, progress = make_folders(tmp_path)
        (progress / "shards-of-8").mkdir()
        for number in range(3):
            (progress / "shards-of-8" / f"patches-{number:05d}.npy").write_bytes(b"half a shard of a killed process")
        cache = extract_all(make_backbone(), make_reader(tuple(range(8, 16))), folder, "float32", progress)
        assert len(cache) == len(cache.patches) == N - 8
        assert [path.name for path in sorted(folder.glob("patches-*"))] == ["patches-00000.npy", "patches-00002.npy"]


def list_threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(("write_tokens", "close_shards"))]


class TestBehind:
    """What threads do behind the loop: the bytes of a plain loop, and no trouble is lost or late."""

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_the_files_are_those_of_a_plain_loop(self, tmp_path: Path, dtype: str) -> None:
        cache = extract_all(make_backbone(), make_reader((5,)), tmp_path, dtype)
        backbone, index = make_backbone(), []
        parts: dict[str, list[np.ndarray]] = {"patches": [], "prefix": [], "norms": [], "total": []}
        for positions, images in make_reader((5,))(np.arange(N), BATCH):
            tokens = backbone.tokens(images, LAYER)
            index += positions.tolist()
            parts["patches"].append(tokens.patches.numpy().astype(dtype))
            parts["prefix"].append(tokens.prefix.numpy().astype(dtype))
            parts["norms"].append(tokens.patches.norm(dim=-1).numpy())
            parts["total"].append(tokens.patches.sum((0, 1), dtype=torch.float64).numpy())
        whole = {name: np.concatenate(values) for name, values in parts.items() if name != "total"}
        assert np.array_equal(cache.patches[:], whole["patches"])
        assert np.array_equal(cache.prefix[:], whole["prefix"])
        assert np.array_equal(cache.norms, whole["norms"])
        assert cache.image_index.tolist() == index
        of_shards = [np.sum(parts["total"][i : i + 2], axis=0) for i in range(0, len(parts["total"]), 2)]
        mean = np.divide(sum(of_shards), whole["norms"].size).astype(np.float32)
        assert np.array_equal(cache.mean, mean)
        distances = np.linalg.norm(whole["patches"].astype(np.float64) - mean, axis=-1)
        assert cache.meta["mean_norm"] == pytest.approx(distances.mean(), rel=1e-6)

    @pytest.mark.parametrize("fails_at", [0, 3])
    def test_a_disk_that_fails_stops_the_run_at_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
    ) -> None:
        folder, progress = make_folders(tmp_path)
        backbone, append, n_written = make_backbone(), shards.RowWriter.append, 0

        def write(self: shards.RowWriter, rows: np.ndarray) -> None:
            nonlocal n_written
            if n_written >= 2 * fails_at:  # of each batch patches and prefix
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            n_written += 1
            append(self, rows)

        monkeypatch.setattr(shards.RowWriter, "append", write)
        with pytest.raises(OSError, match="No space left"):
            extract_all(backbone, make_reader(), folder, "float32", progress)
        assert backbone.n_images_encoded <= BATCH * (fails_at + shards.N_BEHIND + 1)
        finished = sorted(path.name for path in progress.rglob("facts-*"))
        assert finished == ["facts-00000.npz"][: fails_at // 2]  # of the shard that was whole, if one was
        assert not list_threads()
        monkeypatch.undo()
        monkeypatch.setattr(extract, "SHARD_BYTES", 8 * IMAGE_BYTES)
        monkeypatch.setattr(extract, "N_SHARDS", 1)
        assert len(extract_all(make_backbone(), make_reader(), folder, "float32", progress)) == N

    def test_facts_that_cannot_be_written_stop_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(np, "savez", fail)
        with pytest.raises(OSError, match="No space left"):
            extract_all(make_backbone(), make_reader(), tmp_path)
        assert not list_threads()

    @pytest.mark.parametrize("error", [KeyboardInterrupt, InputError("Cannot read the image b.jpg.")])
    def test_whatever_ends_the_reader_ends_the_threads(
        self, tmp_path: Path, error: type[BaseException] | BaseException
    ) -> None:
        def read(positions: np.ndarray, batch_images: int) -> Iterator[tuple[Tensor, Tensor]]:
            yield from make_reader()(positions[: 3 * batch_images], batch_images)
            raise error

        with pytest.raises(type(error) if isinstance(error, BaseException) else error):
            extract_all(make_backbone(), read, tmp_path)
        assert not list_threads()
        assert [path.name for path in tmp_path.glob("facts-*")] == ["facts-00000.npz"]

    def test_nan_in_a_later_shard_leaves_the_ones_before(self, tmp_path: Path) -> None:
        class Spoilt(OpenClipBackbone):
            def _tokens(self, pixels: Tensor, layers: Sequence[int]) -> list[Tokens]:
                found = super()._tokens(pixels, layers)
                if self.n_images_encoded > 12:
                    found[0].patches[1, 2, 3] = torch.nan
                return found

        backbone = Spoilt(make_backbone().clip, mean=(0.5,) * 3, std=(0.5,) * 3, fingerprint={})
        with pytest.raises(InputError, match="NaN or Inf after block 2"):
            extract_all(backbone, make_reader(), tmp_path)
        assert [path.name for path in tmp_path.glob("facts-*")] == ["facts-00000.npz"]
        assert not list_threads()


class FarBackbone(OpenClipBackbone):
    """Its tokens are far away, and one of the fourth batch is what it is told to be."""

    value: float = 0.0

    def _tokens(self, pixels: Tensor, layers: Sequence[int]) -> list[Tokens]:
        (tokens,) = super()._tokens(pixels, layers)
        if self.value and self.n_images_encoded == 4 * BATCH:
            tokens.patches[1, 2, 3] = self.value
        return [Tokens(*(part.as_subclass(Far) for part in tokens))]


@pytest.mark.parametrize(("dtype", "n_behind"), [("float16", 4), ("float16", 1), (None, 4)])
def test_copies_into_page_locked_memory_that_is_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None, n_behind: int
) -> None:
    """The way from a GPU, with a stream that is as late as can be; large batches are fewer at a time."""
    monkeypatch.setattr(extract, "EXACT_SCALE_IMAGES", 0)
    if n_behind < shards.N_BEHIND:
        monkeypatch.setattr(copies, "LOCKED_BYTES", 1)
    for name in ("expected", "found"):
        (tmp_path / name).mkdir()
    extract_all(make_backbone(), make_reader((5,)), tmp_path / "expected", dtype)

    with copying_late() as locked:
        backbone = FarBackbone(make_backbone().clip, mean=MEAN, std=STD, fingerprint={"seed": 0})
        extract_all(backbone, make_reader((5,)), tmp_path / "found", dtype)
    assert read_folder(tmp_path / "found") == read_folder(tmp_path / "expected")
    assert len(locked) <= 2 * (n_behind + 1) + 5 * 3  # of batches; of the facts of shards


class TestChecksThatWait:
    @pytest.mark.parametrize(
        ("value", "dtype", "message"),
        [
            (math.nan, "float32", "NaN or Inf after block 2: check its weights"),
            (math.inf, "float16", "NaN or Inf after block 2: check its weights"),
            (1e6, "float16", r"too large for float16: set data\.cache_dtype=float32"),
        ],
    )
    def test_a_shard_with_a_bad_value_is_none(self, tmp_path: Path, value: float, dtype: str, message: str) -> None:
        options: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "fingerprint": {}}
        backbone = FarBackbone(make_backbone().clip, **options)
        backbone.value = value
        with pytest.raises(InputError, match=message):
            extract_all(backbone, make_reader(), tmp_path, dtype)
        assert backbone.n_images_encoded >= 4 * BATCH  # it was not asked for at once
        assert [path.name for path in tmp_path.glob("facts-*")] == ["facts-00000.npz"]
        assert not list_threads()
        backbone.value = 1.0
        backbone.n_images_encoded = 0
        (tmp_path / "again").mkdir()
        assert len(extract_all(backbone, make_reader(), tmp_path / "again", dtype)) == N

    def test_live_tokens_are_asked_for_at_the_end_of_a_reading(self, tmp_path: Path) -> None:
        extract_all(make_backbone(), make_reader(), tmp_path, None)
        backbone = FarBackbone(make_backbone().clip, mean=(0.5,) * 3, std=(0.5,) * 3, fingerprint={})
        backbone.value = math.nan
        reading = LiveTokens(tmp_path, backbone, make_reader()).iterate(np.arange(N), BATCH)
        assert sum(len(next(reading)[0]) for _ in range(-(-N // BATCH))) == N
        with pytest.raises(InputError, match="NaN or Inf after block 2"):
            next(reading)


class TestCuts:
    """Shards are the same for batches of every device, and those of sets that have few images as they always were."""

    @pytest.mark.parametrize(
        ("n_images", "shard_bytes", "expected"),
        [(40, 2**30, 64), (3000, 2**30, 192), (4096, 2**30, 256), (5000, 2**30, 512), (10**6, 700, 768), (600, 1, 64)],
    )
    def test_their_size(self, monkeypatch: pytest.MonkeyPatch, n_images: int, shard_bytes: int, expected: int) -> None:
        monkeypatch.setattr(extract, "N_SHARDS", 16)
        monkeypatch.setattr(extract, "SHARD_BYTES", shard_bytes * IMAGE_BYTES)
        cuts = extract._cut_shards(make_backbone(), n_images, 64, 256)
        assert cuts[0] == slice(0, min(n_images, expected))
        assert cuts[-1].stop == n_images
        assert expected % 64 == 0
        assert expected < 256 or expected % 256 == 0

    @pytest.mark.parametrize("dtype", ["float32", None])
    def test_a_run_may_go_on_with_other_batches(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str | None
    ) -> None:
        """As those of another device are."""
        folder, progress = make_folders(tmp_path)
        monkeypatch.setattr(source, "BATCH_IMAGES", 4)
        monkeypatch.setattr(source, "CUDA_BATCH_IMAGES", 8)
        with pytest.raises(KeyboardInterrupt):
            extract_tokens(make_backbone(), make_reader(until=12), N, LAYER, folder, dtype, progress)

        def read(positions: np.ndarray, batch_images: int) -> Iterator[tuple[Tensor, Tensor]]:
            assert (positions[0], batch_images) == (8, 4)
            yield from make_reader()(positions, 8)

        made = extract_tokens(make_backbone(), read, N, LAYER, folder, dtype, progress)
        assert made.image_index.tolist() == list(range(N))
        (tmp_path / "whole").mkdir()
        whole = extract_tokens(make_backbone(), make_reader(), N, LAYER, tmp_path / "whole", dtype)
        np.testing.assert_allclose(made.norms, whole.norms, rtol=1e-5)
        assert made.scale == pytest.approx(whole.scale, rel=1e-5)


def test_the_scale_of_a_large_set_is_that_of_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, sampled, unstored = (tmp_path / name for name in ("exact", "sampled", "unstored"))
    for folder in (exact, sampled, unstored):
        folder.mkdir()
    exact = extract_all(make_backbone(), make_reader(), exact)
    unstored = extract_all(make_backbone(), make_reader(), unstored, None)
    monkeypatch.setattr(extract, "EXACT_SCALE_IMAGES", N - 1)
    found = extract_all(make_backbone(), make_reader(), sampled)
    assert found.scale == unstored.scale
    assert found.scale == pytest.approx(exact.scale, rel=1e-5)  # here all tokens are in the sample
    assert read_folder(sampled).keys() == read_folder(exact.folder).keys()


def test_the_scale_of_as_many_images_as_are_read_again_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "EXACT_SCALE_IMAGES", N)
    monkeypatch.setattr(shards, "N_SAMPLE_TOKENS", 1)
    made = extract_all(make_backbone(), make_reader(), tmp_path)
    apart = np.linalg.norm(made.patches[:] - made.mean, axis=-1)
    assert made.scale == pytest.approx(WIDTH**0.5 / apart.mean(dtype=np.float64), rel=1e-6)


@pytest.mark.parametrize("grid", [4, 5, 7, 14, 16, 37])
def test_every_place_of_a_grid_is_in_the_sample(grid: int) -> None:
    """Of 14 x 14 places every seventh would be two columns alone, and borders differ from the rest."""
    places = shards._choose_places(torch.arange(2048)[:, None], grid**2)
    assert places.shape[1] == (grid**2 if grid <= 5 else pytest.approx(28, abs=4))
    assert all(len(set(row)) == len(row) for row in places[:100].tolist())
    counts = torch.bincount(places.flatten(), minlength=grid**2)
    assert len(counts) == grid**2
    assert counts.min() > 0
    assert (counts.view(grid, grid).sum(0) / counts.sum() * grid).numpy() == pytest.approx(1, abs=0.15)


class TestLive:
    @pytest.fixture
    def stored(self, tmp_path: Path) -> TokenCache:
        (tmp_path / "stored").mkdir()
        return extract_all(make_backbone(), make_reader(), tmp_path / "stored")

    @pytest.fixture
    def backbone(self) -> Backbone:
        return make_backbone()

    @pytest.fixture
    def live(self, tmp_path: Path, backbone: Backbone) -> LiveTokens:
        (tmp_path / "live").mkdir()
        extract_all(make_backbone(), make_reader((5,)), tmp_path / "live", None)
        return LiveTokens(tmp_path / "live", backbone, make_reader())

    def test_nothing_but_facts_is_on_the_disk(self, live: LiveTokens) -> None:
        assert live.meta["dtype"] is None
        names = {path.name for path in live.folder.iterdir()}
        assert names == {"norms.npy", "image_index.npy", "mean.npy", "tokens.json"}

    def test_the_tokens_are_those_of_a_cache(self, live: LiveTokens, stored: TokenCache, backbone: Backbone) -> None:
        assert 5 not in live.image_index
        rows = np.array([21, 3, 6, 5])
        found = live.tokens(rows)
        expected = stored.tokens(live.image_index[rows])
        torch.testing.assert_close(found.patches, expected.patches, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.prefix, expected.prefix, rtol=1e-5, atol=1e-5)
        assert backbone.n_images_encoded == 4
        indices = torch.cat([index for index, _ in live.batches(6)])
        assert indices.tolist() == [i for i in range(N) if i != 5]
        assert torch.equal(live.tokens(slice(3, 5)).patches, live.tokens([3, 4]).patches)

    def test_one_may_train_on_them(self, live: LiveTokens) -> None:
        weight = torch.ones(WIDTH, requires_grad=True)
        (live.tokens([0]).patches @ weight).sum().backward()
        assert weight.grad is not None

    def test_mean_and_norms_are_exact_and_the_scale_is_measured_on_a_sample(
        self, tmp_path: Path, stored: TokenCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        facts = []
        for name, n_tokens in (("all", 32), ("some", 4)):
            monkeypatch.setattr(shards, "N_SAMPLE_TOKENS", n_tokens)
            (tmp_path / name).mkdir()
            facts.append(extract_all(make_backbone(), make_reader(), tmp_path / name, None))
        for found in facts:
            assert np.array_equal(found.norms, stored.norms)
            assert np.array_equal(found.mean, stored.mean)
        assert facts[0].scale == pytest.approx(stored.scale, rel=1e-5)  # 16 tokens an image: all are in the sample
        assert facts[1].scale == pytest.approx(stored.scale, rel=1e-3)
        assert facts[1].scale != facts[0].scale

    def test_the_estimate_is_corrected_by_what_is_known_of_all_tokens(self) -> None:
        """Even a sample of lopsided places tells: here it holds the longer half of all tokens."""
        rng = np.random.default_rng(0)
        tokens = torch.from_numpy(rng.normal(size=(4000, WIDTH)) * rng.uniform(1, 3, size=(4000, 1)) + 0.5).float()
        norms, mean = tokens.norm(dim=-1), tokens.mean(0)
        expected = (tokens - mean).norm(dim=-1).mean().item()
        lopsided = tokens[norms > norms.median()]
        assert (lopsided - mean).norm(dim=-1).mean().item() > 1.2 * expected
        assert extract.estimate_mean_norm(lopsided, norms[:, None], mean) == pytest.approx(expected, rel=5e-3)
        assert extract.estimate_mean_norm(tokens, norms[:, None], mean) == pytest.approx(expected, rel=1e-6)
        same = torch.ones(7, WIDTH)
        assert extract.estimate_mean_norm(same, same.norm(dim=-1)[:, None], same[0]) == pytest.approx(0, abs=1e-6)
