import numpy as np
import pytest
import torch

from infoscope.scope import sparse_maps
from infoscope.scope.sparse_maps import SparseMaps

SHAPE = (5, 3, 2, 5, 5)  # 50 patches of a pair: not whole bytes
KEYS = {
    "all": slice(None),
    "a latent": 3,
    "a pair": (1, 2),
    "a pair's crop": (1, 2, 0),
    "latents, first ranks": (np.array([4, 0, 0]), slice(None, 2)),
    "one rank each": (np.arange(5), np.array([0, 2, 1, 1, 0])),
    "a mask": np.arange(15).reshape(5, 3) % 4 == 0,
    "a mask of latents": np.arange(5) > 2,
    "a crop": (..., 1, slice(None), slice(None)),
    "some patches": (slice(1, 4), -1, ..., slice(1, 3), 2),
    "none": slice(0, 0),
    "negative": (-1, slice(None, None, -1)),
    "arrays of all axes": (np.arange(2), np.arange(2), [0, 1]),
    "arrays apart": (slice(None), np.arange(2), 0, np.arange(2)),
    "a number apart from an array": (np.arange(2), slice(None), slice(None), 1),
    "a number beside arrays": (np.arange(2), [2, 0], 1),
    "an array and a number before": (1, np.arange(2), 0),
    "a new axis": (None, 0, 0, 1),
    "a mask of pairs and a crop": (np.arange(15).reshape(5, 3) % 4 == 0, 0),
    "a mask of patches": (..., np.arange(25).reshape(5, 5) % 2 == 0),
    "true": True,
}


def make_dense(shape=SHAPE, seed=0, share=0.2):
    rng = np.random.default_rng(seed)
    dense = np.where(rng.random(shape) < share, rng.lognormal(0, 3, shape), 0).astype(np.float32)
    dense[0, 0], dense[1, 0] = 0, np.float32(1e-42)  # nothing, and everywhere something that is nearly 0
    return dense


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_they_are_read_as_an_array_is(key, monkeypatch):
    monkeypatch.setattr(sparse_maps, "CHUNK_PAIRS", 4)
    dense = make_dense()
    maps = SparseMaps.of(dense)
    assert (maps.shape, maps.ndim, len(maps), maps.dtype) == (dense.shape, 5, 5, dense.dtype)
    found = maps[key]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, dense[key], strict=True)
    np.testing.assert_array_equal(np.asarray(maps), dense)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_they_are_put_together_and_read_again_bit_for_bit(share, tmp_path, monkeypatch):
    monkeypatch.setattr(sparse_maps, "CHUNK_PAIRS", 4)
    dense = make_dense(share=share)
    pairs, order = dense.reshape(15, 2, 5, 5), np.random.default_rng(1).permutation(15)[:13]
    room = SparseMaps.make_room(SHAPE, 13)
    for rows in np.split(order, [0, 4, 9]):  # the first part has no pair
        tensors = SparseMaps.of(pairs[rows]).to_tensors()
        room.put(rows, SparseMaps.from_tensors(tensors, grid=5))
    pairs[np.setdiff1d(np.arange(15), order)] = 0  # of which nothing was put
    room.save(tmp_path)
    for maps in (
        room,
        SparseMaps.load(tmp_path, 5),
        SparseMaps.join([room.take(np.arange(6)), room.take(np.arange(6, 15))]),
    ):
        np.testing.assert_array_equal(np.asarray(maps).reshape(dense.shape).view(np.int32), dense.view(np.int32))
    np.testing.assert_array_equal(room.take(order)[:], pairs[order])
    values = np.load(tmp_path / "maps_values.npy")
    np.testing.assert_array_equal(values, dense[dense != 0])  # pair after pair: others can read them


def test_sums_are_over_the_patches_that_count(monkeypatch):
    monkeypatch.setattr(sparse_maps, "CHUNK_PAIRS", 4)
    dense, inside = make_dense(), np.random.default_rng(2).random((2, 5, 5)) < 0.5
    expected = (dense.astype(np.float64) * inside).sum(axis=(3, 4))
    found = SparseMaps.of(dense).sum_over(inside)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_array_equal(found > 0, expected > 0)


def test_a_tenth_of_the_patches_takes_a_seventh_of_the_room():
    dense = make_dense((40, 16, 2, 16, 16), share=0.1)[2:]
    maps = SparseMaps.of(dense)
    n_bytes = sum(array.numel() * array.element_size() for array in maps.to_tensors().values())
    assert n_bytes == dense.size / 512 * (4 + 64) + 4 * (dense != 0).sum()
    assert n_bytes < dense.nbytes / 7
    assert all(isinstance(array, torch.Tensor) for array in maps.to_tensors().values())
