"""Activation maps kept as what is not 0 in them: a tenth of the room, and no value is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, UInt8
from torch import Tensor

from infoscope.runtime.files import atomic_write

ACTIVE_SHARE = 0.15
"""Share of the patches that is active in the maps of top images, for estimates: rather high, see `count_bytes`."""
CHUNK_PAIRS = 2048
"""Pairs that are looked at at a time: 4 MiB, were maps of 16 x 16 dense."""
_N_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)


class SparseMaps:
    """The maps of both crops of many pairs: for each a bit per patch, whether it is active, and the active values.

    Reads as an array [..., 2, grid, grid] of float32 does: `maps[latents, ranks]` makes those maps dense, and so do
    numbers, slices and an array for each axis before the last three; other indices make all maps dense first, as
    `np.asarray(maps)` does.

    Args:
        shape: [..., 2, grid, grid].
        counts: active patches of each pair, both crops together.
        bits: of each pair, the patches of crop 1 and then of crop 2, as `np.packbits` packs them.
        values: those of the active patches.
        starts: where in `values` those of each pair begin; None: one pair after the other.
    """

    dtype = np.dtype(np.float32)
    NAMES: ClassVar = ("counts", "bits", "values")
    """The arrays that they are, where the values of pair after pair lie in order."""

    def __init__(
        self,
        shape: tuple[int, ...],
        counts: Int[np.ndarray, " n_pairs"],
        bits: UInt8[np.ndarray, "n_pairs n_bytes"],
        values: Float32[np.ndarray, " n_active"],
        starts: Int[np.ndarray, " n_pairs"] | None = None,
    ) -> None:
        self.shape, self.counts, self.bits, self.values = shape, counts, bits, values
        self.starts = np.cumsum(counts, dtype=np.int64) - counts if starts is None else starts
        self._n_put = 0
        assert len(counts) == len(bits) == prod(shape[:-3]), (len(counts), bits.shape, shape)
        assert bits.shape[1] == -(-prod(shape[-3:]) // 8), (bits.shape, shape)

    @classmethod
    def of(cls, dense: Float[np.ndarray, "... 2 grid grid"]) -> SparseMaps:
        """Return dense maps as sparse ones, in float32; -0 becomes 0."""
        flat = dense.reshape(prod(dense.shape[:-3]), prod(dense.shape[-3:]))
        is_active = flat != 0
        bits, values = np.packbits(is_active, axis=1), flat.reshape(-1)[np.flatnonzero(is_active)]
        return cls(dense.shape, _count_ones(bits), bits, values.astype(np.float32, copy=False))

    @classmethod
    def make_room(cls, shape: tuple[int, ...], n_pairs: int) -> SparseMaps:
        """Return maps that are 0, in which `put` will fill so many; where these are fuller than most, room is made."""
        n, n_patches = prod(shape[:-3]), prod(shape[-3:])
        values, starts = np.empty(int(n_pairs * n_patches * ACTIVE_SHARE), np.float32), np.zeros(n, np.int64)
        return cls(shape, np.zeros(n, np.int32), np.zeros((n, -(-n_patches // 8)), np.uint8), values, starts)

    @classmethod
    def join(cls, parts: Sequence[SparseMaps]) -> SparseMaps:
        """Return maps [n_pairs, 2, grid, grid], one after the other, of at least one part."""
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        return cls(shape, *(np.concatenate([getattr(part, name) for part in parts]) for name in cls.NAMES))

    def put(self, rows: Int[np.ndarray, " n"], maps: SparseMaps) -> None:
        """Fill pairs that are 0, counted through the axes before the last three, of what `make_room` returned."""
        start, stop = self._n_put, self._n_put + len(maps.values)
        if stop > len(self.values):
            values = np.empty(stop * 3 // 2, np.float32)
            values[:start] = self.values[:start]
            self.values = values  # who takes some meanwhile finds theirs in either
        self.values[start:stop], self._n_put = maps.values, stop
        self.starts[rows], self.bits[rows], self.counts[rows] = start + maps.starts, maps.bits, maps.counts

    def take(self, rows: Int[np.ndarray, " n"]) -> SparseMaps:
        """Return those pairs as maps [n, 2, grid, grid] of their own, sparse as they are."""
        counts = self.counts[rows]
        values = self.values[_list_places(self.starts[rows], counts)]
        return SparseMaps((len(rows), *self.shape[-3:]), counts, self.bits[rows], values)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> Float32[np.ndarray, "..."]:
        if not _is_simple(key, self.ndim):
            return np.asarray(self)[key]
        key, n_lead = _spell_out(key, self.ndim), self.ndim - 3
        rows = np.arange(len(self.counts)).reshape(self.shape[:-3])[key[:n_lead]]
        dense = self._make_dense(np.ravel(rows)).reshape(*np.shape(rows), *self.shape[-3:])
        return dense[(*(slice(None),) * np.ndim(rows), *key[n_lead:])]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("Sparse maps cannot be an array without a copy.")
        return self[:].astype(dtype or np.float32, copy=False)

    def _make_dense(self, rows: Int[np.ndarray, " n"]) -> Float32[np.ndarray, "n n_patches"]:
        dense = np.zeros((len(rows), prod(self.shape[-3:])), np.float32)
        for start in range(0, len(rows), CHUNK_PAIRS):
            some, into = rows[start : start + CHUNK_PAIRS], dense[start : start + CHUNK_PAIRS].reshape(-1)
            into[self._find_active(some)] = self.values[_list_places(self.starts[some], self.counts[some])]
        return dense

    def sum_over(self, inside: Bool[np.ndarray, "2 grid grid"]) -> Float64[np.ndarray, "... 2"]:
        """Return the sum of each map over the patches that count."""
        n_patches, sums = inside[0].size, np.zeros((len(self.counts), 2))
        for start in range(0, len(sums), CHUNK_PAIRS):
            some = np.arange(start, min(start + CHUNK_PAIRS, len(sums)))
            active = self._find_active(some)
            values = self.values[_list_places(self.starts[some], self.counts[some])].astype(np.float64)
            values *= inside.reshape(-1)[active % inside.size]
            sums[some] = np.bincount(active // n_patches, values, minlength=2 * len(some)).reshape(-1, 2)
        return sums.reshape(*self.shape[:-3], 2)

    def _find_active(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n_active"]:
        """Return the active patches of some pairs, counted through all patches of these pairs."""
        return np.flatnonzero(np.unpackbits(self.bits[rows], axis=1, count=prod(self.shape[-3:])))

    def to_tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` makes them of again, of maps that lie one after the other."""
        return {name: torch.from_numpy(getattr(self, name)) for name in self.NAMES}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], grid: int, n_crops: int = 2) -> SparseMaps:
        """Return the maps [n_pairs, n_crops, grid, grid] of `to_tensors`."""
        return cls((len(tensors["counts"]), n_crops, grid, grid), *(tensors[name].numpy() for name in cls.NAMES))

    def save(self, folder: Path) -> None:
        """Write maps_counts.npy, maps_bits.npy and maps_values.npy: the latter pair after pair, as `counts` says."""
        shape = self.shape[:-3]
        for name, array in (("counts", self.counts.reshape(shape)), ("bits", self.bits.reshape(*shape, -1))):
            with atomic_write(folder / f"maps_{name}.npy") as unfinished, unfinished.open("wb") as out:
                np.save(out, array)
        with atomic_write(folder / "maps_values.npy") as unfinished, unfinished.open("wb") as out:
            facts = {"descr": "<f4", "fortran_order": False, "shape": (int(self.counts.sum(dtype=np.int64)),)}
            np.lib.format.write_array_header_1_0(out, facts)
            for start in range(0, len(self.counts), CHUNK_PAIRS):
                some = slice(start, start + CHUNK_PAIRS)
                self.values[_list_places(self.starts[some], self.counts[some])].astype("<f4", copy=False).tofile(out)

    @classmethod
    def load(cls, folder: Path, grid: int, n_crops: int = 2) -> SparseMaps:
        """Read what `save` wrote; bits and values stay on the disk, memory-mapped and read-only."""
        counts = np.load(folder / "maps_counts.npy")
        bits, values = (np.load(folder / f"maps_{name}.npy", mmap_mode="r") for name in ("bits", "values"))
        return cls((*counts.shape, n_crops, grid, grid), counts.reshape(-1), bits.reshape(counts.size, -1), values)


def count_bytes(n_pairs: int, grid: int, active_share: float = ACTIVE_SHARE) -> int:
    """Return about what maps of both crops take, on the disk and in memory, where such a share of patches is active.

    Of scenes and their CLIP it is 0.09; of photographs, DINOv2-S/14 and an SAE of 3,072 latents (k 32) it is 0.08.
    """
    n_patches = 2 * grid**2
    return n_pairs * (4 + -(-n_patches // 8) + round(4 * n_patches * active_share))


def _count_ones(bits: UInt8[np.ndarray, "n n_bytes"]) -> Int[np.ndarray, " n"]:
    return _N_ONES[bits].sum(axis=1, dtype=np.int32)


def _list_places(starts: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]) -> Int[np.ndarray, " total"]:
    """Return starts[0], starts[0] + 1, ... (counts[0] of them), starts[1], ..."""
    before = np.cumsum(counts, dtype=np.int64) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum(dtype=np.int64))


def _is_simple(key: Any, n_axes: int) -> bool:
    """Whether the axes before the last three can be indexed first, and then those: so numpy itself would have it.

    numpy treats arrays and numbers in one index together, and puts their axis in front where a slice lies between.
    """
    key = key if isinstance(key, tuple) else (key,)
    if any(one is None or isinstance(one, bool | np.bool_) for one in key) or sum(one is Ellipsis for one in key) > 1:
        return False
    arrays = [one for one in key if not (one is Ellipsis or isinstance(one, int | np.integer | slice))]
    if not arrays:
        return True
    if len(key) > 1 and any(np.asarray(one).dtype == bool for one in arrays):
        return False
    key = _spell_out(key, n_axes)
    chosen = [axis for axis, one in enumerate(key) if not isinstance(one, slice)]
    last_array = max(axis for axis in chosen if not isinstance(key[axis], int | np.integer))
    return last_array < n_axes - 3 and (chosen[-1] < n_axes - 3 or chosen[-1] - chosen[0] + 1 == len(chosen))


def _spell_out(key: Any, n_axes: int) -> tuple[Any, ...]:
    """Return an index as a tuple without an ellipsis."""
    key = key if isinstance(key, tuple) else (key,)
    dots = [place for place, one in enumerate(key) if one is Ellipsis]
    if not dots:
        return key
    (place,) = dots
    return (*key[:place], *(slice(None),) * (n_axes - len(key) + 1), *key[place + 1 :])
