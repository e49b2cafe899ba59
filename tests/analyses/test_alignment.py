"""Latents of two SAEs: copies are found under permutation, scale and sign; values are those of brute force."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.analyses import alignment
from infoscope.analyses.alignment import MATCHINGS, Alignment, align_seeds
from infoscope.analyses.image_codes import ImageCodes, measure_image_codes
from infoscope.runtime.errors import InputError
from infoscope.sae.activations import TopK
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import measure_one
from infoscope.scope import agreement
from tests.support.probe_samples import D, SampleCache

D_SAE, N_IMAGES = 24, 40
CACHE = SampleCache(N_IMAGES, 5)


def make_sae(seed: int, d_sae: int = D_SAE, k: int = 6) -> SparseAutoencoder:
    return SparseAutoencoder(D, d_sae, TopK(k), seed=seed).eval().requires_grad_(False)


def copy_sae(sae: SparseAutoencoder, order: torch.Tensor, scale: torch.Tensor, sign: torch.Tensor) -> SparseAutoencoder:
    """Latents in another order; encoder columns times `scale`, decoder rows times `sign` and divided by it."""
    return SparseAutoencoder.of(
        (sae.W_enc * scale)[:, order],
        (sae.b_enc * scale)[order],
        (sae.W_dec * (sign / scale)[:, None])[order],
        sae.b_dec,
        sae.activation,
    ).requires_grad_(False)


def measure_codes(sae: SparseAutoencoder) -> ImageCodes:
    return measure_one(CACHE, measure_image_codes(sae, 0.2)).compute()  # pyright: ignore[reportArgumentType]


def align(one: SparseAutoencoder, other: SparseAutoencoder) -> Alignment:
    return align_seeds(one, other, measure_codes(one), measure_codes(other))


@pytest.mark.parametrize("max_assigned", [4096, 0], ids=["assignment", "mutual"])
def test_a_permuted_copy_is_matched_in_every_way(max_assigned: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "MAX_ASSIGNED", max_assigned)
    sae, order = make_sae(0), torch.randperm(D_SAE, generator=torch.Generator().manual_seed(1))
    found = align(sae, copy_sae(sae, order, torch.ones(D_SAE), torch.ones(D_SAE)))
    place = order.argsort().numpy()  # of each latent in the copy
    live = np.bincount(measure_codes(sae).latents, minlength=D_SAE) >= alignment.MIN_IMAGES
    for way in MATCHINGS:
        matched = found.partner[list(MATCHINGS).index(way)]
        known = live if way in ("activation", "correlation") else np.ones(D_SAE, bool)
        np.testing.assert_array_equal(matched, np.where(known, place, -1))
        np.testing.assert_allclose(found.values(way)[known], 1, rtol=1e-5)
        assert np.isnan(found.values(way)[~known]).all()
        assert found.n_pairs(way) == found.n_matchable[list(MATCHINGS).index(way)] == known.sum()
        assert found.mean(way) == pytest.approx(1, rel=1e-5)
        assert found.share_above(way, 0.9) == found.agreement(way, "decoder") == 1
        assert found.chance[list(MATCHINGS).index(way)] < found.mean(way)
        np.testing.assert_array_equal(found.values_of_other(way)[place], found.values(way))
    assert 0 < live.sum() < D_SAE  # both are seen


def test_scale_changes_nothing_and_sign_does() -> None:
    sae = make_sae(0, k=D_SAE)  # all that is above 0 is kept, at any scale
    copy = copy_sae(sae, torch.arange(D_SAE), torch.linspace(0.5, 2, D_SAE), -torch.ones(D_SAE))
    found = align(sae, copy)
    itself = np.arange(D_SAE)
    for place, way in enumerate(MATCHINGS):
        known = found.partner[place] >= 0
        if way == "decoder":
            assert (found.partner[place] != itself).all()  # the cosine with itself is -1, the least
            rows = sae.W_dec.numpy()
            expected = -(rows * rows[found.partner[place]]).sum(1)
        else:
            np.testing.assert_array_equal(found.partner[place][known], itself[known])
            expected = np.ones(D_SAE)
        np.testing.assert_allclose(found.values(way)[known], expected[known], rtol=1e-4)


def test_the_assignment_and_its_values_are_those_of_brute_force() -> None:
    one, other = make_sae(1, 6, 4), make_sae(2, 7, 4)
    codes = measure_codes(one), measure_codes(other)
    found = align_seeds(one, other, *codes)
    tables = [of.matrix("means").toarray() for of in codes]
    fires = [np.flatnonzero((table > 0).sum(0) >= alignment.MIN_IMAGES) for table in tables]
    cosines = {
        "decoder": compute_cosines(one.W_dec.numpy(), other.W_dec.numpy()),
        "encoder": compute_cosines(one.W_enc.T.numpy(), other.W_enc.T.numpy()),
        "activation": compute_cosines(*(table.T for table in tables)),
        "correlation": compute_cosines(*((table - table.mean(0)).T for table in tables)),
    }
    for place, (way, alike) in enumerate(cosines.items()):
        rows, columns = (np.arange(6), np.arange(7)) if place < 2 else fires
        assert len(rows) <= len(columns)
        best = max(alike[rows, list(chosen)].sum() for chosen in permutations(columns, len(rows)))
        partner = found.partner[place]
        assert alike[rows, partner[rows]].sum() == pytest.approx(best, rel=1e-5)
        np.testing.assert_allclose(found.values(way)[rows], alike[rows, partner[rows]], rtol=1e-4, atol=1e-6)
        assert len(set(partner[rows])) == len(rows)
    same = found.partner[0][fires[0]] == found.partner[2][fires[0]]
    assert found.agreement("decoder", "activation") == pytest.approx(same.mean())
    assert found.share_above("decoder", 0.1) == pytest.approx((found.values("decoder") > 0.1).mean())


def compute_cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return np.divide(a @ b.T, norms, out=np.zeros_like(norms), where=norms > 0)


def make_codes(latents: list[int], values: np.ndarray) -> ImageCodes:
    """Codes of 20 images, in each of which the same latents fire; values: [20, n_latents]."""
    n_entries, flat = 20 * len(latents), values.astype(np.float32).ravel()
    counts, starts = np.ones(n_entries, np.uint16), np.arange(21) * len(latents)
    entries = np.tile(latents, 20).astype(np.int32)
    return ImageCodes(starts, entries, flat, flat, counts, counts, np.arange(20), 3, 9, 0.2)


def test_latents_that_fire_nowhere_or_do_not_vary_have_no_partner() -> None:
    codes = make_codes([0, 2], np.stack([np.full(20, 0.5), np.linspace(0.1, 1, 20)], axis=1))
    one, other = make_sae(0, 3, 2), make_sae(1, 3, 2)
    found = align_seeds(one, other, codes, codes)
    assert found.partner[2].tolist() == [0, -1, 2]
    assert found.partner[3].tolist() == [-1, -1, 2]  # what does not vary correlates with nothing
    assert found.n_matchable.tolist() == [3, 3, 2, 1]
    found = align_seeds(one, other, codes, make_codes([], np.zeros((20, 0))))
    assert found.n_pairs("activation") == 0
    assert np.isnan([found.mean("activation"), found.share_above("activation", 0.7), found.chance[2]]).all()
    assert np.isnan(found.agreement("decoder", "activation"))


def test_some_images_count_where_all_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "MAX_VALUES", 20 * D_SAE)
    found = align(make_sae(0), make_sae(0))
    assert found.n_images == 20
    assert found.mean("activation") == pytest.approx(1, rel=1e-5)


def test_of_many_latents_some_say_what_chance_is_and_are_matched_by_correlation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agreement, "MAX_ASSIGNED", 0)
    sae, order = make_sae(0), torch.randperm(D_SAE, generator=torch.Generator().manual_seed(1))
    copy = copy_sae(sae, order, torch.ones(D_SAE), torch.ones(D_SAE))
    whole = align(sae, copy)
    monkeypatch.setattr(alignment, "MAX_MATCHED", 10)
    monkeypatch.setattr(alignment, "N_SAMPLED", 8)
    found = align(sae, copy)
    for place in range(3):
        np.testing.assert_array_equal(found.partner[place], whole.partner[place])
    tried = found.partner[3] >= 0
    assert tried.sum() == found.n_matchable[3] == 8 < whole.n_matchable[3]
    np.testing.assert_array_equal(found.partner[3][tried], whole.partner[3][tried])
    assert found.share_above("correlation", 0.9) == 1
    assert (found.chance != whole.chance).all()
    np.testing.assert_allclose(found.chance[:2], whole.chance[:2], atol=0.3)  # of some of the same latents


def test_an_alignment_is_kept(tmp_path: Path) -> None:
    found = align(make_sae(0), make_sae(1))
    found.save(tmp_path)
    loaded = Alignment.load(tmp_path)
    for name, value in vars(found).items():
        np.testing.assert_array_equal(getattr(loaded, name), value)


def test_codes_of_other_images_are_refused() -> None:
    one, other = measure_codes(make_sae(0)), measure_codes(make_sae(1))
    other.image_index[0] += 1
    with pytest.raises(InputError, match="activations on the same images"):
        align_seeds(make_sae(0), make_sae(1), one, other)
