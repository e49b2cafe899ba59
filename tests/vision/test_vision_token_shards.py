"""Tokens in shards, an encoding that goes on where it was cut off, and tokens that are never stored."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_samples import GRID, WIDTH, make_backbone, make_images
from torch import Tensor

from infoscope.vision import extract
from infoscope.vision.backbone import Backbone
from infoscope.vision.extract import ShardedRows, TokenCache, extract_tokens, find_finished_images
from infoscope.vision.live_tokens import LiveTokens

N, LAYER, BATCH = 23, -2, 4
IMAGE_BYTES = (GRID**2 + 1) * WIDTH * 4


@pytest.fixture(autouse=True)
def _shards_of_eight_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "SHARD_BYTES", 8 * IMAGE_BYTES)


def read_images(first: int = 0, until: int = N, unreadable: tuple[int, ...] = ()) -> Iterator[tuple[Tensor, Tensor]]:
    images = make_images(N)
    for start in range(first, until, BATCH):
        index = [i for i in range(start, min(start + BATCH, N)) if i not in unreadable]
        if index:
            yield torch.tensor(index), images[index]


def read_positions(positions: np.ndarray, batch_images: int) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(positions), batch_images):
        index = torch.from_numpy(positions[start : start + batch_images])
        yield index, make_images(N)[index]


def read_folder(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def make_folders(root: Path) -> tuple[Path, Path]:
    for name in ("folder", "progress"):
        (root / name).mkdir()
    return root / "folder", root / "progress"


class TestShards:
    def test_rows_are_the_same_however_many_shards_hold_them(self, tmp_path: Path) -> None:
        cache = extract_tokens(make_backbone(), read_images(), N, LAYER, tmp_path)
        assert [len(shard) for shard in cache.patches.shards] == [8, 8, 7]
        expected = torch.cat([make_backbone().tokens(images, LAYER).patches for _, images in read_images()])
        assert torch.equal(cache.tokens(slice(None)).patches, expected)
        rows = np.array([22, 0, 7, 8, 9, 8, 15, 16])
        assert torch.equal(cache.tokens(rows).patches, expected[rows])
        places = np.array([3, 1, 0, 15, 2, 2, 4, 4])
        assert np.array_equal(cache.patches.take(rows, places), expected[rows, places].numpy())
        assert np.array_equal(np.asarray(cache.patches), expected.numpy())
        batches = list(cache.iterate(rows, 3))
        assert [batch.tolist() for batch, _ in batches] == [[22, 0, 7], [8, 9, 8], [15, 16]]
        assert torch.equal(torch.cat([tokens.patches for _, tokens in batches]), expected[rows])

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


class TestResume:
    @pytest.mark.parametrize("dtype", ["float32", None])
    @pytest.mark.parametrize("unreadable", [(), (0, 7, 14, 15), tuple(range(16, 23))])
    def test_it_ends_as_if_it_had_never_stopped(
        self, tmp_path: Path, dtype: str | None, unreadable: tuple[int, ...]
    ) -> None:
        folder, progress = make_folders(tmp_path)
        whole = tmp_path / "whole"
        whole.mkdir()
        extract_tokens(make_backbone(), read_images(unreadable=unreadable), N, LAYER, whole, dtype)

        def cut_off() -> Iterator[tuple[Tensor, Tensor]]:
            yield from read_images(until=16, unreadable=unreadable)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            extract_tokens(make_backbone(), cut_off(), N, LAYER, folder, dtype, progress)
        assert not list(folder.iterdir())
        finished = find_finished_images(progress)
        assert len(finished) >= 8
        first = -(-(int(finished[-1]) + 1) // BATCH) * BATCH
        backbone = make_backbone()
        rest = read_images(first, unreadable=unreadable)
        cache = extract_tokens(backbone, rest, N, LAYER, folder, dtype, progress)
        assert backbone.n_images_encoded == len(cache) - len(finished)
        assert read_folder(folder) == read_folder(whole)
        assert not list(progress.iterdir())

    def test_a_shard_without_its_facts_counts_for_nothing(self, tmp_path: Path) -> None:
        folder, progress = make_folders(tmp_path)
        (progress / "patches-00000.npy").write_bytes(b"half a shard of a killed process")
        assert len(find_finished_images(progress)) == 0
        cache = extract_tokens(make_backbone(), read_images(), N, LAYER, folder, progress=progress)
        assert len(cache) == len(cache.patches) == N


class TestLive:
    @pytest.fixture
    def stored(self, tmp_path: Path) -> TokenCache:
        (tmp_path / "stored").mkdir()
        return extract_tokens(make_backbone(), read_images(), N, LAYER, tmp_path / "stored")

    @pytest.fixture
    def backbone(self) -> Backbone:
        return make_backbone()

    @pytest.fixture
    def live(self, tmp_path: Path, backbone: Backbone) -> LiveTokens:
        (tmp_path / "live").mkdir()
        extract_tokens(make_backbone(), read_images(unreadable=(5,)), N, LAYER, tmp_path / "live", None)
        return LiveTokens(tmp_path / "live", backbone, read_positions)

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
            monkeypatch.setattr(extract, "N_SAMPLE_TOKENS", n_tokens)
            (tmp_path / name).mkdir()
            facts.append(extract_tokens(make_backbone(), read_images(), N, LAYER, tmp_path / name, None))
        for found in facts:
            assert np.array_equal(found.norms, stored.norms)
            assert np.array_equal(found.mean, stored.mean)
        assert facts[0].scale == pytest.approx(stored.scale, rel=1e-5)  # 16 tokens an image: all are in the sample
        sample = stored.tokens(slice(None)).patches[:, ::4].flatten(0, 1) - torch.from_numpy(stored.mean)
        assert facts[1].scale == pytest.approx(math.sqrt(WIDTH) / sample.norm(dim=1).mean().item(), rel=1e-5)
        assert facts[1].scale != facts[0].scale
