import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance_nd

from infoscope.data.pictures import Pictures
from infoscope.runtime import parts
from infoscope.runtime.errors import InputError
from infoscope.sae import model
from infoscope.sae.activations import TopK
from infoscope.scope import maps, scoring
from infoscope.scope.cds import compute_cds_with_zeros, compute_one_sided_share, count_zero_maps, position_locked_score
from infoscope.scope.crops import shared_region
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import EMDMethod, ScopeConfig, compute_scores, next_valid_ranks, score_latents
from infoscope.vision.planted import PlantedRegisters
from tests.support.closed_forms import PlantedJump
from tests.support.scope_samples import GRID, PATCH_PX, make_jump_pictures, make_noise, make_sae, measure


def test_planted_jump_scores_its_offset_over_d_grid():
    backbone = PlantedJump(GRID, PATCH_PX, offsets=[(3, 4), (0, 0), (1, 0)])
    _, scores = measure(backbone, make_sae(3), make_jump_pictures(9), ScopeConfig(k_cds=8))
    diagonal = 14.142135623730951  # between opposite corners of the 11 x 11 shared patches
    np.testing.assert_allclose(scores.cds(8).values, [5 / diagonal, 0, 1 / diagonal], atol=1e-9)


def test_last_incomplete_batch_is_scored():
    backbone = PlantedJump(GRID, PATCH_PX, offsets=[(0, 1)])
    config = ScopeConfig(k_cds=1, k_max=9, batch_images=4)
    ranking, scores = measure(backbone, make_sae(1), make_jump_pictures(9), config)
    assert (ranking.top_images >= 0).all()
    assert (scores.maps[:].sum(axis=(3, 4)) > 0).all()
    assert np.isfinite(scores.emd).all()
    assert scores.cds(9).n_valid.tolist() == [9]


def list_images(ranking: Ranking) -> np.ndarray:
    """Return every image that any latent ranks, ascending."""
    images = np.unique(ranking.top_images)
    return images[images >= 0]


def make_registers():
    backbone = PlantedRegisters(grid=6, patch_px=4, d_in=32)
    return backbone, make_sae(32, 40, TopK(4))


def test_each_crop_is_encoded_once_for_all_latents():
    backbone, sae = make_registers()
    config = ScopeConfig(k_cds=2, k_max=3, batch_images=4)
    ranking, _ = measure(backbone, sae, make_noise(11), config)
    n_unique = len(list_images(ranking))
    assert n_unique < (ranking.top_images >= 0).sum()
    assert backbone.n_images_encoded == 2 * n_unique


def reference_scores(backbone, sae, pictures, ranking, shift):
    """DESIGN's definition, one latent and rank at a time, every crop encoded anew."""
    images, p, n = Pictures(list(pictures)), backbone.grid, backbone.patch_px
    maps = np.zeros((*ranking.top_images.shape, 2, p, p), np.float32)
    for (latent, rank), image in np.ndenumerate(ranking.top_images):
        if image < 0:
            continue
        whole = torch.from_numpy(images.load(image, (p + shift) * n)).permute(2, 0, 1)[None]
        for side, origin in enumerate((0, shift * n)):
            crop = whole[..., origin : origin + p * n, origin : origin + p * n]
            acts = sae.encode(backbone.tokens(crop, -2).patches)
            maps[latent, rank, side] = acts[0, :, latent].clamp_min(0).reshape(p, p)
    return maps


def reference_emd(first, second):
    places = np.stack(np.divmod(np.arange(first.size), len(first)), axis=1)
    keep = [m.ravel() > 0 for m in (first, second)]
    if not (keep[0].any() and keep[1].any()):
        return np.nan
    weights = [m.ravel()[kept].astype(float) for m, kept in zip((first, second), keep, strict=True)]
    return wasserstein_distance_nd(places[keep[0]], places[keep[1]], *weights)


@pytest.mark.parametrize(("shift", "signed"), [(1, False), (2, False), (1, True)])
def test_scores_equal_the_definition_taken_literally(shift, signed, monkeypatch):
    backbone, sae = make_registers()
    if signed:
        sae.activation = TopK(30, signed=True)  # more than half: some are below 0, and no part of a map
    pictures = make_noise(8)
    monkeypatch.setattr(model, "MAX_PRE_ACTS", 36 * 40 * 2)  # a batch is encoded in parts
    config = ScopeConfig(k_cds=2, k_max=3, shift_patches=shift, batch_images=5)
    ranking, scores = measure(backbone, sae, pictures, config)
    maps = reference_scores(backbone, sae, pictures, ranking, shift)
    np.testing.assert_allclose(scores.maps, maps, atol=1e-4)

    d_grid = np.sqrt(2) * (6 - shift - 1)
    first, second = shared_region(scores.maps[:, :, 0], shift, 1), shared_region(scores.maps[:, :, 1], shift, 2)
    ranked = ranking.top_images >= 0
    np.testing.assert_allclose(scores.mass1, np.where(ranked, first.sum((2, 3)), np.nan), rtol=1e-5)
    np.testing.assert_allclose(scores.mass2, np.where(ranked, second.sum((2, 3)), np.nan), rtol=1e-5)
    for latent in range(0, 40, 5):
        emd = [reference_emd(first[latent, m], second[latent, m]) for m in range(3)]
        np.testing.assert_allclose(scores.emd[latent] * d_grid, emd, atol=1e-7)
        valid = np.flatnonzero(np.isfinite(emd))
        chance = np.full(3, np.nan)
        for at, rank in enumerate(valid if len(valid) > 1 else []):
            chance[rank] = reference_emd(first[latent, rank], second[latent, valid[(at + 1) % len(valid)]])
        np.testing.assert_allclose(scores.chance_emd[latent] * d_grid, chance, atol=1e-7)


def test_next_valid_rank_goes_round_within_a_latent():
    latents = np.array([0, 0, 0, 2, 5, 5])
    ranks = np.array([0, 2, 3, 1, 0, 1])
    assert next_valid_ranks(latents, ranks).tolist() == [2, 3, 0, -1, 1, 0]
    assert next_valid_ranks(latents[:0], ranks[:0]).tolist() == []


def test_zero_maps_and_missing_ranks_have_no_distance():
    maps = np.zeros((1, 5, 2, 4, 4), np.float32)
    maps[0, 0, :, 2, 2] = 1  # valid: the same place in the grid of both crops
    maps[0, 1, 0, 0, 0] = maps[0, 1, 1, 1, 1] = 1  # crop 1 fires outside the shared region: one-sided
    maps[0, 2, 0, 0, 3] = 1  # outside, and nothing: two-sided
    maps[0, 3, :, 1, 1] = 2  # valid
    ranked = np.array([[True, True, True, True, False]])
    scores = compute_scores(maps, ranked, ScopeConfig(k_cds=4, k_max=5))
    assert np.isnan(scores.emd).tolist() == [[False, True, True, False, True]]
    np.testing.assert_allclose(scores.mass1, [[1, 0, 0, 2, np.nan]])
    np.testing.assert_allclose(scores.mass2, [[1, 1, 0, 2, np.nan]])
    np.testing.assert_allclose(scores.emd[0, [0, 3]], position_locked_score(4, 1))
    # map 1 of rank 0 is at (1, 1) of the shared region, map 2 of rank 3 at (1, 1): that pair is a chance hit
    np.testing.assert_allclose(scores.chance_emd[0, [0, 3]], [0, 1])
    one_sided, two_sided = count_zero_maps(scores.mass1, scores.mass2, 5)
    assert (one_sided.tolist(), two_sided.tolist()) == ([1], [1])
    assert compute_one_sided_share(scores.mass1, scores.mass2, 5).tolist() == [0.25]  # of four pairs
    none = np.full((1, 5), np.nan)
    assert np.isnan(compute_one_sided_share(none, none, 5)).all()
    assert scores.cds(4).n_valid.tolist() == [2]
    np.testing.assert_allclose(
        compute_cds_with_zeros(scores.emd, scores.mass1, scores.mass2, 4).values, [(0.5 + 0.5 + 1) / 3]
    )


def test_scores_are_read_as_they_were_written(tmp_path):
    backbone, sae = make_registers()
    config = ScopeConfig(k_cds=2, k_max=2)
    _, in_memory = measure(backbone, sae, make_noise(6), config)
    dense = replace(in_memory, maps=np.asarray(in_memory.maps))
    for scores, folder in ((in_memory, tmp_path / "sparse"), (dense, tmp_path / "dense")):
        scores.save(folder)
        read = Scores.load(folder)
        assert isinstance(read.maps.values, np.memmap)
        read.save(folder)  # over what is mapped
        assert_same(read, in_memory)
        assert (read.grid, read.shift_patches, read.k_max) == (6, 1, 2)
    assert (read.emd.dtype, read.mass1.dtype, read.maps.dtype) == (np.float64, np.float32, np.float32)


def test_early_scores_have_dense_maps(tmp_path):
    _, scores = measure(*make_registers(), make_noise(6), ScopeConfig(k_cds=2, k_max=2))
    scores.save(tmp_path)
    for file in tmp_path.glob("maps_*"):
        file.unlink()
    np.save(tmp_path / "maps.npy", scores.maps)
    read = Scores.load(tmp_path)
    assert isinstance(read.maps, np.memmap)
    assert_same(read, scores)


def assert_same(found, expected):
    for name in ("emd", "mass1", "mass2", "chance_emd", "maps"):
        np.testing.assert_array_equal(np.asarray(getattr(found, name)), np.asarray(getattr(expected, name)))


def test_progress_is_told():
    backbone, sae = make_registers()
    seen = {"encoding crops": [], "computing EMD": []}
    ranking, scores = measure(
        backbone,
        sae,
        make_noise(6),
        ScopeConfig(k_cds=2, k_max=2, batch_images=4, emd=EMDMethod.sinkhorn),
        progress=lambda done, total, part: seen[part].append((done, total)),
    )
    encoded, moved = seen.values()
    n_images = len(list_images(ranking))
    assert encoded == [(4, n_images), (n_images, n_images)]
    n_pairs = int(np.isfinite(scores.emd).sum() + np.isfinite(scores.chance_emd).sum())
    assert moved[-1] == (n_pairs, n_pairs)


@pytest.mark.parametrize(
    ("stops_after", "solves_ahead"), [(0, False), (1, False), (3, False), (4, False), (6, False), (2, True), (5, True)]
)
def test_an_interrupted_scoring_goes_on_and_ends_the_same(tmp_path, monkeypatch, stops_after, solves_ahead):
    monkeypatch.setattr(parts, "PART_IMAGES", (3, 3))
    monkeypatch.setattr(scoring, "PART_PAIRS", {EMDMethod.exact: 50})
    (backbone, sae), config = make_registers(), ScopeConfig(k_cds=2, k_max=3, batch_images=2, n_workers=2)
    ranking, expected = measure(backbone, sae, make_noise(11), config)
    save, saved = parts.save_state, []

    def save_some(path, state):
        if len(saved) == stops_after:
            raise KeyboardInterrupt
        save(path, state)
        saved.append(path.name)

    def score():
        options = {"layer": -2, "progress_folder": tmp_path, "solves_ahead": solves_ahead}
        return score_latents(backbone, sae, Pictures(list(make_noise(11))), ranking, config, **options)

    monkeypatch.setattr(parts, "save_state", save_some)
    with pytest.raises(KeyboardInterrupt):
        score()
    monkeypatch.setattr(parts, "save_state", save)
    n_parts = -(-len(list_images(ranking)) // 3)
    n_left = sum(len(part) for part in np.split(list_images(ranking), range(3, 3 * n_parts, 3))[stops_after:])
    backbone.n_images_encoded = 0
    found = score()
    assert backbone.n_images_encoded == 2 * n_left
    assert_same(found, expected)


def test_a_part_that_another_process_has_made_meanwhile_is_taken(tmp_path, monkeypatch):
    """Two work on one artifact where a lock was lost."""
    monkeypatch.setattr(parts, "PART_IMAGES", (2, 2))
    (backbone, sae), config = make_registers(), ScopeConfig(k_cds=2, k_max=3, batch_images=2)
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.mkdir()
    others.mkdir()
    _, expected = measure(backbone, sae, make_noise(11), config, progress_folder=others)
    save, made = parts.save_state, []

    def save_beside_another(path, state):
        made.append(path.name)
        save(path, state)
        for name in ("maps-00002.pt", "maps-00003.pt"):
            if not (ours / name).exists():
                shutil.copy(others / name, ours / name)

    monkeypatch.setattr(parts, "save_state", save_beside_another)
    _, found = measure(backbone, sae, make_noise(11), config, progress_folder=ours)
    assert {"maps-00000.pt", "maps-00001.pt", "maps-00004.pt"} <= {*made}
    assert "maps-00003.pt" not in made
    assert_same(found, expected)


def test_parts_of_a_version_that_kept_dense_maps_are_made_anew(tmp_path, monkeypatch):
    (backbone, sae), config = make_registers(), ScopeConfig(k_cds=2, k_max=3)
    _, expected = measure(backbone, sae, make_noise(11), config, progress_folder=tmp_path)
    for file in tmp_path.glob("maps-*.pt"):
        file.rename(file.with_name(file.name.replace("maps", "crops")))
    (file,) = tmp_path.glob("distances-*.pt")
    old = parts.load_state(file)["distances"]
    parts.save_state(file, {"distances": old.roll(1)})  # the maps of then had another pair with mass
    with pytest.warns(UserWarning, match="are of an earlier version of infoscope: they are made anew"):
        _, found = measure(backbone, sae, make_noise(11), config, progress_folder=tmp_path)
    assert_same(found, expected)
    assert not [*tmp_path.glob("crops-*")]


def test_parts_of_the_encoding_are_bounded_by_their_maps(tmp_path, monkeypatch):
    backbone, sae = make_registers()
    _, expected = measure(backbone, sae, make_noise(8), ScopeConfig(k_cds=2, k_max=3, batch_images=1))
    monkeypatch.setattr(maps, "PART_BYTES", 20 * 2 * 6 * 6 * 4)  # some 20 pairs: an image or two
    made, save = [], parts.save_state

    def note(path, state):
        save(path, state)
        made.extend(len(state[name]) for name in state if name == "0 counts")

    monkeypatch.setattr(parts, "save_state", note)
    ranking, found = measure(
        backbone, sae, make_noise(8), ScopeConfig(k_cds=2, k_max=3, batch_images=1), progress_folder=tmp_path
    )
    assert sum(made) == (ranking.top_images >= 0).sum()
    assert len(made) > 4
    assert_same(found, expected)


def test_latents_that_never_fire_need_no_images():
    backbone = PlantedJump(GRID, PATCH_PX, offsets=[(0, 1)])
    ranking, scores = measure(backbone, make_sae(1), np.full((3, 26, 26, 3), 90, np.uint8), ScopeConfig(k_cds=2))
    assert backbone.n_images_encoded == 0
    assert (ranking.top_images == -1).all()
    assert np.isnan(scores.cds(2).values).all()
    assert scores.cds(2).n_valid.tolist() == [0]


@pytest.mark.parametrize(
    ("bad", "key"),
    [
        ({"k_cds": 0}, "k_cds"),
        ({"k_max": 4}, "k_max"),
        ({"shift_patches": 0}, "shift_patches"),
        ({"batch_images": 0}, "batch_images"),
        ({"sinkhorn_blur": 0.0}, "sinkhorn_blur"),
        ({"n_workers": -1}, "n_workers"),
    ],
)
def test_values_out_of_range_are_refused(bad, key):
    with pytest.raises(InputError, match=f"scope.{key}"):
        ScopeConfig(**bad)


def test_as_many_images_at_a_time_as_suit_the_device():
    devices = ("cpu", "cuda")
    assert [ScopeConfig().choose_batch(device) for device in devices] == [16, 128]
    assert [ScopeConfig(batch_images=7).choose_batch(device) for device in devices] == [7, 7]


def test_readers_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "PART_IMAGES", (4, 4))
    (backbone, sae), config = make_registers(), ScopeConfig(k_cds=2, k_max=3, batch_images=2)
    _, expected = measure(backbone, sae, make_noise(11), config)
    _, found = measure(backbone, sae, make_noise(11), config, n_readers=2, progress_folder=tmp_path)
    assert_same(found, expected)


def test_k_max_defaults_to_sixteen_or_k_cds():
    assert [ScopeConfig(k_cds=k).n_ranks for k in (1, 16, 32)] == [16, 16, 32]
    assert ScopeConfig(k_cds=4, k_max=4).n_ranks == 4
