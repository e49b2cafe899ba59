"""Images that show a latent over the whole range in which it fires, and not at its top alone.

Of a sample of the images: those at some quantiles of its activation, and some at random, with the latent's map on each.
The sample is read twice: for what fires in each image, from which the images are chosen, and for the maps of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int32, Int64
from torch import Tensor

from infoscope.analyses.image_codes import ImageCodes, measure_image_codes
from infoscope.runtime.parts import Part
from infoscope.runtime.progress import ShowBar, show_nothing
from infoscope.sae.activation import find_rows
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import LatentBatch, Measurement, Meter, measure_one
from infoscope.scope.sparse_maps import SparseMaps
from infoscope.vision.backbone import Tokens
from infoscope.vision.tokens.source import TokenRows

AT = (0.95, 0.75, 0.5, 0.25, 0.05)
"""Quantiles of a latent's largest activation in an image, over the images in which it fires."""
N_RANDOM = 4
"""Images of each latent that are drawn without regard to what it does there."""
N_SLOTS = len(AT) + N_RANDOM
N_BINS = 10
"""Of the histogram of a latent's peaks."""
_PAIRS_AT_ONCE = 2**14
"""Maps that are dense at a time: 16 MiB of 16 x 16 patches."""


@dataclass(frozen=True)
class Levels:
    """What each latent does in a sample of the images, with its map on some of them.

    codes: what fires in each image of the sample.
    rows: rows of `codes`. First, for each quantile of `AT`, the image whose peak (largest activation of the latent on a
        patch) has as many below it: of n images in which it fires, from the weakest, number floor(q (n - 1) + 1/2); of
        equal peaks the earlier image counts as the stronger. An image that stands at a higher quantile already is not
        repeated: -1, as all are where the latent never fires. So fewer images than quantiles are all shown, once each.
        Then `N_RANDOM` images drawn from the sample for each latent, each once, ascending; -1 where it has fewer.
    maps: [d_sae, n_slots, 1, grid, grid] the latent's activation on every patch of the whole image, in the SAE's own
        units, of signed codes the positive part alone; 0 where it is silent, and where there is no image.
    """

    codes: ImageCodes
    rows: Int32[np.ndarray, "d_sae n_slots"]
    maps: SparseMaps

    @cached_property
    def images(self) -> Int64[np.ndarray, "d_sae n_slots"]:
        """The images of `rows` as positions in the image set; -1 for none."""
        return np.where(self.rows >= 0, np.asarray(self.codes.image_index)[self.rows], -1)

    def save(self, folder: Path) -> None:
        """Write `codes`, rows.npy and the maps into an existing folder."""
        (folder / "codes").mkdir(exist_ok=True)
        self.codes.save(folder / "codes")
        np.save(folder / "rows.npy", self.rows)
        self.maps.save(folder)

    @classmethod
    def load(cls, folder: Path) -> Levels:
        """Open what `save` wrote; maps and codes are read from the disk where they are used."""
        codes = ImageCodes.load(folder / "codes")
        return cls(codes, np.load(folder / "rows.npy"), SparseMaps.load(folder, isqrt(codes.n_patches), n_crops=1))


class Spread(NamedTuple):
    """How strongly each latent fires in the images of a sample in which it fires, by its peak there.

    largest: of all its peaks; 0 where it never fires.
    counts: images in each of `N_BINS` bins of equal width from 0 to `largest`, which is in the last.
    n_firing: images in which it fires.
    """

    largest: Float32[np.ndarray, " d_sae"]
    counts: Int64[np.ndarray, "d_sae n_bins"]

    @property
    def n_firing(self) -> Int64[np.ndarray, " d_sae"]:
        return self.counts.sum(axis=1)


def compute_spread(codes: ImageCodes) -> Spread:
    """Return how strongly each latent fires, see `Spread`."""
    latents, peaks = np.asarray(codes.latents, dtype=np.int64), np.asarray(codes.peaks, dtype=np.float32)
    largest = np.zeros(codes.d_sae, dtype=np.float32)
    np.maximum.at(largest, latents, peaks)
    bins = np.minimum((peaks / largest[latents] * N_BINS).astype(np.int64), N_BINS - 1)
    counts = np.bincount(latents * N_BINS + bins, minlength=codes.d_sae * N_BINS)
    return Spread(largest, counts.reshape(codes.d_sae, N_BINS))


class Rows(TokenRows):
    """Some rows of tokens, as if there were no others.

    Args:
        rows: ascending.
    """

    def __init__(self, tokens: TokenRows, rows: Int[np.ndarray, " n"]) -> None:
        self.tokens, self.rows = tokens, rows
        self.meta: dict[str, Any] = getattr(tokens, "meta", {})

    @property
    def image_index(self) -> Int[np.ndarray, " n_images"]:
        return self.tokens.image_index[self.rows]

    def __len__(self) -> int:
        return len(self.rows)

    def iterate(
        self, rows: Int[np.ndarray, " n"], batch_images: int
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Tokens]]:
        for batch, tokens in self.tokens.iterate(self.rows[rows], batch_images):
            yield np.searchsorted(self.rows, batch), tokens

    def iterate_patches(
        self, rows: Int[np.ndarray, " n"], batch_images: int, device: torch.device
    ) -> Iterator[tuple[Int[np.ndarray, " batch"], Float[Tensor, "batch n_patches d_in"]]]:
        for batch, patches in self.tokens.iterate_patches(self.rows[rows], batch_images, device):
            yield np.searchsorted(self.rows, batch), patches


def draw_sample(n_all: int, n_images: int | None, seed: int) -> Int64[np.ndarray, " n"]:
    """Return which of `n_all` rows are in the sample, ascending; a larger sample of the same seed holds a smaller one.

    Args:
        n_images: how many are drawn; None, or more than there are: all.
    """
    return np.sort(np.random.default_rng(seed).permutation(n_all)[:n_images])


def choose_rows(codes: ImageCodes, seed: int) -> Int32[np.ndarray, "d_sae n_slots"]:
    """Return the images of each latent, see `Levels.rows`.

    Args:
        seed: of those at random.
    """
    rows = np.full((codes.d_sae, N_SLOTS), -1, dtype=np.int32)
    by_latent = codes.matrix("peaks").tocsc()
    peaks, holders = np.asarray(by_latent.data, dtype=np.float64), np.asarray(by_latent.indices)
    quantiles = np.array(AT)
    for latent, (start, end) in enumerate(pairwise(np.asarray(by_latent.indptr))):
        n = end - start
        if n == 0:
            continue
        strongest_first = np.argsort(-peaks[start:end], kind="stable")
        places = n - 1 - np.floor(quantiles * (n - 1) + 0.5).astype(np.int64)
        _, slots = np.unique(places, return_index=True)  # the highest quantile of each image
        rows[latent, slots] = holders[start:end][strongest_first[places[slots]]]
    n_random = min(N_RANDOM, codes.n_images)
    rows[:, len(AT) : len(AT) + n_random] = _draw_each(codes.d_sae, n_random, codes.n_images, seed)
    return rows


def _draw_each(n: int, n_drawn: int, n_all: int, seed: int) -> Int64[np.ndarray, "n n_drawn"]:
    """Return numbers below `n_all` without repetition, ascending, drawn n times (Floyd's algorithm)."""
    rng, drawn = np.random.default_rng(seed), np.full((n, n_drawn), -1, dtype=np.int64)
    for place, largest in enumerate(range(n_all - n_drawn, n_all)):
        numbers = rng.integers(0, largest + 1, n)
        is_repeated = (drawn == numbers[:, None]).any(axis=1)
        drawn[:, place] = np.where(is_repeated, largest, numbers)
    return np.sort(drawn, axis=1)


class MapMeter(Meter):
    """Collects the maps of some latents on some images.

    Args:
        pairs: row times `d_sae` plus latent, ascending, each once.
    """

    reads_known = False

    def __init__(
        self, d_sae: int, pairs: Int64[np.ndarray, " n_pairs"], device: torch.device | str, known: MapMeter | None
    ) -> None:
        self.d_sae, self.pairs = d_sae, pairs
        self.parts: list[SparseMaps] = []

    def update(self, batch: LatentBatch) -> None:
        first, last = batch.rows[0], batch.rows[-1]
        assert last - first + 1 == batch.n_images, "a pass shows rows in order"
        start, stop = np.searchsorted(self.pairs, [first * self.d_sae, (last + 1) * self.d_sae])
        if start == stop:
            return
        wanted = torch.from_numpy(self.pairs[start:stop] - first * self.d_sae).to(batch.codes.values.device)
        tokens, latents, values = batch.entries
        cells = find_rows(tokens, batch.n_images, batch.n_patches) * self.d_sae + latents
        grid = isqrt(batch.n_patches)
        for some in wanted.split(_PAIRS_AT_ONCE):
            places = torch.searchsorted(some, cells).clamp_max_(len(some) - 1)
            fires = some[places] == cells
            maps = torch.zeros(len(some), batch.n_patches, device=some.device)
            maps[places[fires], tokens[fires] % batch.n_patches] = values[fires].float()
            self.parts.append(SparseMaps.of(maps.view(-1, 1, grid, grid).cpu().numpy()))

    def to_part(self) -> Part:
        return {**self.compute().to_tensors(), "grid": torch.tensor(self.parts[0].shape[-1])} if self.parts else {}

    def add(self, part: Part) -> None:
        if part:
            self.parts.append(SparseMaps.from_tensors(part, int(part["grid"]), n_crops=1))

    def compute(self) -> SparseMaps:
        """Return the maps [n_pairs, 1, grid, grid], in the order of `pairs`."""
        return SparseMaps.join(self.parts)


def measure_levels(
    sae: SparseAutoencoder,
    tokens: TokenRows,
    n_images: int | None,
    seed: int = 0,
    folder: Path | None = None,
    show_bar: ShowBar = show_nothing,
) -> Levels:
    """Return what each latent does in a sample of the images of some tokens.

    Args:
        n_images: in the sample; None: all.
        seed: of the sample and of the images that are drawn for each latent.
        folder: where finished parts of both readings are kept, see `compute_parts`; None: nowhere.

    Raises:
        InputError: as `run_pass`; or if there are no images.
    """
    sample = Rows(tokens, draw_sample(len(tokens), n_images, seed))

    def read(wanted: Measurement[Any], name: str, what: str) -> Any:
        kept = wanted if folder is None else wanted.kept_in(folder / name)
        with show_bar(f"reading {len(sample):,} images {what}") as advance:
            return measure_one(sample, kept, advance).compute()

    codes = read(measure_image_codes(sae, strong_above=0.0), "codes", "for levels of activation")
    rows = choose_rows(codes, seed)
    latents, slots = np.nonzero(rows >= 0)
    wanted = rows[latents, slots].astype(np.int64) * sae.d_sae + latents
    pairs, which = np.unique(wanted, return_inverse=True)
    meter = Measurement(sae, partial(MapMeter, sae.d_sae, pairs))
    found: SparseMaps = read(meter, "maps", "for maps at these levels")
    maps = SparseMaps.make_room((sae.d_sae, N_SLOTS, *found.shape[1:]), len(wanted))
    maps.put(latents * N_SLOTS + slots, found.take(which))
    return Levels(codes, rows, maps)
