"""The token cache holds what the backbone gave, whole or not at all, and its mean and scale are those of DESIGN."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.tokens.extract import TokenCache, compute_cache_bytes, extract_tokens
from infoscope.vision.tokens.source import ReadImages
from tests.support.clip_samples import GRID, WIDTH, make_backbone, make_images

N, LAYER = 11, -2


@pytest.fixture(scope="module")
def backbone() -> OpenClipBackbone:
    return make_backbone()


def make_reader(skipped: tuple[int, ...] = ()) -> ReadImages:
    """As `iterate_images` reads: skipped images leave shorter batches."""

    def read(positions: np.ndarray, batch_images: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        images = make_images(N)
        for start in range(0, len(positions), batch_images):
            index = [i for i in positions[start : start + batch_images].tolist() if i not in skipped]
            if index:
                yield torch.tensor(index), images[index]

    return read


def extract(backbone: Backbone, folder: Path, skipped: tuple[int, ...] = (), **options: Any) -> TokenCache:
    settings = {"n_images": N, "layer": LAYER, "batch_images": 4, **options}
    return extract_tokens(backbone, make_reader(skipped), folder=folder, **settings)


@pytest.fixture(scope="module")
def cache(backbone, tmp_path_factory) -> TokenCache:
    return extract(backbone, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def expected(backbone):
    return backbone.tokens(make_images(N), LAYER)


class TestContent:
    def test_every_image_has_its_row_the_last_incomplete_batch_too(self, cache, expected):
        assert len(cache) == N
        assert cache.image_index.tolist() == list(range(N))
        tokens = cache.tokens(slice(None))
        assert tokens.patches.shape == (N, GRID**2, WIDTH)
        assert tokens.prefix.shape == (N, 1, WIDTH)
        torch.testing.assert_close(tokens.patches, expected.patches, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens.prefix, expected.prefix, rtol=1e-5, atol=1e-5)

    def test_files_are_memory_mapped(self, cache):
        for part in (cache.patches, cache.prefix):
            assert all(isinstance(shard, np.memmap) and not shard.flags.writeable for shard in part.shards)
        assert cache.patches.dtype == np.float32

    def test_rows_are_copies_in_any_order(self, cache):
        rows = cache.tokens([7, 2])
        assert torch.equal(rows.patches[1], torch.from_numpy(cache.patches[[2]])[0])
        rows.patches.zero_()
        assert np.abs(cache.patches[[7]]).max() > 0

    def test_norms_are_those_of_the_tokens(self, cache):
        assert cache.norms.shape == (N, GRID**2)
        assert cache.norms == pytest.approx(np.linalg.norm(cache.patches[:].astype(np.float64), axis=-1), rel=1e-6)

    def test_mean_and_scale(self, cache):
        tokens = cache.patches[:].astype(np.float64).reshape(-1, WIDTH)
        assert np.abs(cache.mean - tokens.mean(0)).max() < 1e-6
        norms = np.linalg.norm(cache.scale * (tokens - cache.mean), axis=1)
        assert norms.mean() == pytest.approx(math.sqrt(WIDTH), rel=1e-5)

    def test_the_description(self, cache, backbone):
        described = {name: cache.meta[name] for name in ("n_images", "grid", "d_in", "patch_px", "n_prefix", "layer")}
        assert described == {"n_images": N, "grid": 4, "d_in": WIDTH, "patch_px": 8, "n_prefix": 1, "layer": 2}
        assert cache.grid == 4
        shards = {f"{part}-{number:05d}.npy" for part in ("patches", "prefix") for number in range(3)}
        facts = {"norms.npy", "image_index.npy", "mean.npy", "tokens.json"}
        assert {path.name for path in cache.folder.iterdir()} == shards | facts
        again = TokenCache(cache.folder)
        assert (len(again), again.scale) == (N, cache.scale)

    def test_batches_cover_every_row_once(self, cache):
        batches = list(cache.batches(4))
        assert [index.tolist() for index, _ in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
        assert torch.equal(torch.cat([patches for _, patches in batches]), cache.tokens(slice(None)).patches)

    def test_the_batch_size_changes_nothing_but_rounding(self, backbone, cache, tmp_path):
        other = extract(backbone, tmp_path, batch_images=3)
        assert np.abs(other.patches[:] - cache.patches[:]).max() < 1e-5
        assert other.scale == pytest.approx(cache.scale, rel=1e-6)

    def test_images_are_encoded_once(self, tmp_path):
        backbone = make_backbone()
        extract(backbone, tmp_path)
        assert backbone.n_images_encoded == N

    def test_its_size_is_known_before(self, backbone, cache):
        announced = compute_cache_bytes(backbone, N, "float32")
        assert announced == N * (GRID**2 + 1) * WIDTH * 4
        assert compute_cache_bytes(backbone, N, "float16") == announced // 2
        on_disk = sum(path.stat().st_size for path in cache.folder.glob("p*-*.npy"))
        assert 0 < on_disk - announced <= 6 * 128  # headers


class TestFloat16:
    def test_half_the_size_and_close(self, backbone, cache, tmp_path):
        half = extract(backbone, tmp_path, dtype="float16")
        assert half.patches.dtype == np.float16
        assert half.tokens([0]).patches.dtype == torch.float32
        assert np.abs(half.tokens(slice(None)).patches.numpy() - cache.patches[:]).max() < 2e-3
        assert np.array_equal(half.norms, cache.norms)  # of the tokens before rounding
        assert np.array_equal(half.mean, cache.mean)
        assert half.scale == pytest.approx(cache.scale, rel=1e-4)
        assert half.meta["dtype"] == "float16"

    def test_tokens_beyond_its_range_are_refused(self, tmp_path):
        backbone = make_backbone()
        with torch.no_grad():
            backbone.visual.positional_embedding[3] = 1e6
            backbone.visual.ln_pre = torch.nn.Identity()
        with pytest.raises(InputError, match=r"too large for float16: set data\.cache_dtype=float32"):
            extract(backbone, tmp_path, layer=0, dtype="float16")


class TestFewerImages:
    def test_the_header_tells_how_many_came(self, backbone, tmp_path):
        skipped = (0, 4, 5, 6, 7, 10)
        cache = extract(backbone, tmp_path, skipped)
        assert cache.image_index.tolist() == [1, 2, 3, 8, 9]
        assert cache.patches.shape == (5, GRID**2, WIDTH)
        assert cache.prefix.shape == (5, 1, WIDTH)
        assert cache.norms.shape == (5, GRID**2)
        assert len(cache) == 5
        expected = backbone.tokens(make_images(N)[[1, 2, 3, 8, 9]], LAYER).patches
        torch.testing.assert_close(cache.tokens(slice(None)).patches, expected, rtol=1e-5, atol=1e-5)
        norms = np.linalg.norm(cache.scale * (cache.patches[:].astype(np.float64) - cache.mean), axis=-1)
        assert norms.mean() == pytest.approx(math.sqrt(WIDTH), rel=1e-5)

    def test_none_at_all_is_refused(self, backbone, tmp_path):
        with pytest.raises(InputError, match="at least one readable image, got none"):
            extract(backbone, tmp_path, tuple(range(N)))
        assert not (tmp_path / "tokens.json").exists()


class TestTrouble:
    def test_nan_stops_it(self, tmp_path):
        backbone = make_backbone()
        with torch.no_grad():
            backbone.visual.positional_embedding[3] = torch.nan
        with pytest.raises(InputError, match="NaN or Inf after block 2"):
            extract(backbone, tmp_path)
        assert not (tmp_path / "tokens.json").exists()

    def test_a_layer_that_does_not_exist_stops_it_before_it_starts(self, backbone, tmp_path):
        with pytest.raises(InputError, match="got 4"):
            extract(backbone, tmp_path, layer=4)
        assert not list(tmp_path.iterdir())

    def test_an_error_of_the_reader_passes_through(self, backbone, tmp_path):
        def read(positions, batch_images):
            yield from make_reader()(positions[:batch_images], batch_images)
            raise InputError("Cannot read the image b.jpg.")

        with pytest.raises(InputError, match=r"b\.jpg"):
            extract_tokens(backbone, read, N, LAYER, tmp_path)

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
    @pytest.mark.parametrize("name", ["patches-00000.npy", "prefix-00000.npy"])
    def test_a_full_disk_is_an_error_not_a_dead_process(self, backbone, tmp_path, name):
        (tmp_path / name).symlink_to("/dev/full")
        with pytest.raises(OSError, match="No space left"):
            extract(backbone, tmp_path)
        assert not (tmp_path / "tokens.json").exists()


def test_equal_tokens_have_scale_one(backbone, tmp_path):
    """Nothing to scale by: the norm of x - mu is zero."""

    class Constant(OpenClipBackbone):
        def _tokens(self, pixels, layers):
            found = super()._tokens(pixels, layers)
            return [tokens._replace(patches=torch.ones_like(tokens.patches)) for tokens in found]

    constant = Constant(backbone.clip, mean=(0.5,) * 3, std=(0.5,) * 3, fingerprint={})
    cache = extract(constant, tmp_path)
    assert cache.scale == 1.0
    assert json.loads((tmp_path / "tokens.json").read_text())["mean_norm"] == 0.0
