from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.analyses import levels
from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.levels import (
    AT,
    N_BINS,
    N_RANDOM,
    Levels,
    choose_rows,
    compute_spread,
    draw_sample,
    measure_levels,
)
from infoscope.runtime import parts
from infoscope.sae import passes
from infoscope.sae.activations import TopK
from infoscope.sae.model import SparseAutoencoder, TokenNorm
from infoscope.vision.tokens.extract import extract_tokens
from infoscope.vision.tokens.source import LiveTokens
from tests.support import imported_samples
from tests.support.imported_samples import D_SAE, DEAD
from tests.support.live_samples import N as N_LIVE
from tests.support.live_samples import PixelBackbone, read_images
from tests.support.memory_tokens import MemoryTokens

N, GRID = 30, 3


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_IMAGES", (8, 8))
    monkeypatch.setattr(passes, "BATCH_IMAGES", 5)
    monkeypatch.setattr(levels, "_PAIRS_AT_ONCE", 7)


def make_patches(n: int = N) -> torch.Tensor:
    """Tokens of images of which some are silent for many latents."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.rand(n, 1, 1, generator=generator, dtype=torch.float64) * 2
    return torch.randn(n, GRID**2, imported_samples.D_IN, generator=generator, dtype=torch.float64) * lengths


def make_codes(peaks: list[list[float]]) -> ImageCodes:
    """Codes of images whose peaks [n_images, d_sae] these are."""
    table = np.array(peaks, dtype=np.float32)
    rows, latents = np.nonzero(table)
    starts = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(table)))])
    ones, index = np.ones(len(rows), np.uint16), np.arange(len(table)) + 100
    values = table[rows, latents]
    return ImageCodes(starts, latents.astype(np.int32), values / 4, values, ones, ones, index, table.shape[1], 4, 0.0)


def choose_by_hand(peaks: np.ndarray) -> list[int]:
    """Return the rows at each quantile of a latent that has these peaks, -1 for one that stands there already."""
    firing = sorted(np.flatnonzero(peaks > 0), key=lambda i: (peaks[i], -i))
    chosen: list[int] = []
    for q in AT:
        row = int(firing[int(q * (len(firing) - 1) + 0.5)]) if firing else -1
        chosen.append(-1 if row in chosen else row)
    return chosen


@pytest.mark.parametrize("name", imported_samples.ACTIVATIONS)
@pytest.mark.parametrize("n_images", [None, 17, N + 1])
def test_levels_are_what_brute_force_finds(name: str, n_images: int | None, tmp_path: Path) -> None:
    sae, patches = imported_samples.make_sae(name, TokenNorm.none, torch.float32), make_patches()
    tokens = MemoryTokens(patches, first=N + 5)
    measure_levels(sae, tokens, n_images, seed=4).save(tmp_path)
    found = Levels.load(tmp_path)
    sample = draw_sample(N, n_images, 4)
    z = sae.encode(patches[sample]).clamp_min(0).numpy()
    peaks = z.max(axis=1)
    assert found.codes.image_index.tolist() == [N + 5 - i for i in sample]
    np.testing.assert_allclose(found.codes.matrix("peaks").toarray(), peaks, rtol=1e-6)
    assert (found.rows[DEAD, : len(AT)] == -1).all()
    for latent in range(D_SAE):
        at, drawn = np.split(found.rows[latent], [len(AT)])
        assert at.tolist() == choose_by_hand(peaks[:, latent])
        assert len(set(drawn)) == N_RANDOM
        assert ((drawn >= 0) & (drawn < len(sample))).all()
        for slot, row in enumerate(found.rows[latent]):
            expected = z[row, :, latent].reshape(1, GRID, GRID) if row >= 0 else np.zeros((1, GRID, GRID))
            np.testing.assert_allclose(found.maps[latent, slot], expected, rtol=1e-6, atol=0)
            assert found.images[latent, slot] == (N + 5 - sample[row] if row >= 0 else -1)


def test_few_images_are_each_shown_once() -> None:
    peaks = np.zeros((12, 8))
    for n in range(1, 8):  # latent n fires in n images
        peaks[np.random.default_rng(n).permutation(12)[:n], n] = np.arange(1, n + 1)
    rows = choose_rows(make_codes(peaks.tolist()), 0)[:, : len(AT)]
    for n in range(8):
        shown = rows[n][rows[n] >= 0]
        values = peaks[shown, n].tolist()
        assert len(values) == min(n, len(AT))
        assert values == sorted(set(values), reverse=True)
    assert peaks[rows[7], 7].tolist() == [7, 6, 4, 3, 1]
    assert [int(slot) for slot in np.flatnonzero(rows[1] >= 0)] == [0]


def test_of_equal_peaks_the_earlier_image_is_the_stronger() -> None:
    rows = choose_rows(make_codes([[1.0]] * 5), 0)[0, : len(AT)]
    assert rows.tolist() == [0, 1, 2, 3, 4]


def test_one_image_is_a_sample() -> None:
    sae = imported_samples.make_sae("relu", TokenNorm.none)
    found = measure_levels(sae, MemoryTokens(make_patches(1)), None)
    fires = found.codes.matrix("peaks").toarray()[0] > 0
    assert not fires.all()
    assert found.rows[fires, 0].tolist() == [0] * fires.sum()
    assert (found.rows[~fires, 0] == -1).all()
    assert (found.rows[:, 1 : len(AT)] == -1).all()
    assert (found.rows[:, len(AT)] == 0).all()
    assert (found.rows[:, len(AT) + 1 :] == -1).all()
    assert np.isfinite(np.asarray(found.maps)).all()


def test_images_at_random_are_drawn_evenly() -> None:
    n_images, n_latents = 10, 4000
    rows = choose_rows(make_codes(np.zeros((n_images, n_latents)).tolist()), 1)[:, len(AT) :]
    counts = np.bincount(rows.ravel(), minlength=n_images)
    expected = n_latents * N_RANDOM / n_images
    assert np.abs(counts / expected - 1).max() < 0.1
    assert (np.diff(rows, axis=1) > 0).all()
    assert not np.array_equal(rows, choose_rows(make_codes(np.zeros((n_images, n_latents)).tolist()), 2)[:, len(AT) :])


def test_a_larger_sample_holds_a_smaller_one() -> None:
    few, many = draw_sample(100, 10, 3), draw_sample(100, 40, 3)
    assert set(few) < set(many)
    assert draw_sample(5, None, 3).tolist() == draw_sample(5, 9, 3).tolist() == [0, 1, 2, 3, 4]


def test_an_interrupted_measurement_ends_the_same(tmp_path: Path) -> None:
    sae, tokens = imported_samples.make_sae("topk", TokenNorm.none), MemoryTokens(make_patches())
    whole = measure_levels(sae, tokens, 20)
    measure_levels(sae, tokens, 20, folder=tmp_path)
    for name in ("codes-00001.pt", "maps-00002.pt"):
        (tmp_path / name).unlink()
    tokens.read.clear()
    again = measure_levels(sae, tokens, 20, folder=tmp_path)
    sample = draw_sample(N, 20, 0)
    assert [row for batch in tokens.read for row in batch] == [*sample[8:16], *sample[16:20]]
    np.testing.assert_array_equal(again.rows, whole.rows)
    np.testing.assert_array_equal(np.asarray(again.maps), np.asarray(whole.maps))


def test_the_spread_is_the_histogram_of_what_fires() -> None:
    peaks = np.random.default_rng(2).gamma(0.4, 2, (200, 6)) * (np.random.default_rng(3).random((200, 6)) < 0.5)
    peaks[:, 4], peaks[:, 5] = 0, 0
    peaks[7, 5] = 3.0
    found = compute_spread(make_codes(peaks.tolist()))
    for latent in range(6):
        fires = peaks[:, latent][peaks[:, latent] > 0]
        expected = np.histogram(fires, N_BINS, (0, fires.max(initial=0) or 1))[0]
        assert found.counts[latent].tolist() == expected.tolist()
        assert found.n_firing[latent] == len(fires)
        assert found.largest[latent] == np.float32(fires.max(initial=0))
    assert found.counts[5].tolist() == [0] * (N_BINS - 1) + [1]


def test_images_that_are_encoded_anew_give_the_levels_of_kept_tokens(tmp_path: Path) -> None:
    (tmp_path / "stored").mkdir()
    (tmp_path / "live").mkdir()
    stored = extract_tokens(PixelBackbone(), read_images, N_LIVE, 0, tmp_path / "stored", batch_images=8)
    extract_tokens(PixelBackbone(), read_images, N_LIVE, 0, tmp_path / "live", None, batch_images=8)
    live = LiveTokens(tmp_path / "live", PixelBackbone(), read_images)
    sae = SparseAutoencoder(PixelBackbone().d_in, 12, TopK(2)).requires_grad_(False)
    kept, anew = (measure_levels(sae, tokens, 21) for tokens in (stored, live))
    np.testing.assert_array_equal(kept.rows, anew.rows)
    np.testing.assert_allclose(np.asarray(kept.maps), np.asarray(anew.maps), rtol=1e-5)
    assert kept.images.max() > 21
