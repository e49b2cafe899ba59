"""Which latents are alike, of one SAE or of two: by what they write into tokens, or by the images they fire on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64
from scipy.sparse import csr_array
from torch import Tensor

from infoscope.analyses.alignment import MIN_IMAGES
from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.labels import select
from infoscope.analyses.top_sets import TopSets, find_top
from infoscope.runtime.parts import cut
from infoscope.runtime.progress import Advance, ignore

CHUNK_VALUES = 2**24
"""Cosines held at a time (64 MiB), or sums of products of activations (256 MiB), at most."""
_CONSTANT = 1e-9
"""Share of a latent's sum of squares below which its deviations are rounding: it is the same in every image."""


def find_decoder_neighbours(
    W_dec: Float[Tensor, "d_sae d_in"], is_alive: Bool[np.ndarray, " d_sae"], n: int, progress: Advance = ignore
) -> TopSets:
    """Return the n other latents whose decoder rows have the largest cosine with each latent's, where it is above 0.

    Latents that are not alive, and those whose row is 0, have no neighbours and are none. Of equal cosines the lower
    latent comes first. Cosines are products in float32, made where W_dec lies, `CHUNK_VALUES` at a time.
    """
    rows = _make_unit(W_dec, is_alive)
    return _find_nearest_rows(rows, rows, n, is_same=True, progress=progress)


def find_coactive(codes: ImageCodes, n: int, progress: Advance = ignore) -> TopSets:
    """Return the n other latents that go most with each latent over the images, where they do: the largest correlation.

    It is Pearson's, of the mean activation over the patches of an image, over all images of the codes: the
    correlation by which stage=describe matches latents of two SAEs. Latents that fire in fewer than `MIN_IMAGES`
    images, or the same in all, have no neighbours and are none: two that fire in one and the same image alone would
    have a correlation of 1. Of equal correlations the lower latent comes first.
    """
    table = codes.matrix("means")
    return _find_correlated(table, table, n, is_same=True, progress=progress)


def compute_class_shares(codes: ImageCodes, labels: Int64[np.ndarray, " n_images"], n_classes: int, n: int) -> TopSets:
    """Return the n classes that hold most of each latent's activation, and their shares of it, 0..1.

    The share is the sum of its mean activation over the images of the class, over that of all images. Where classes
    have unequally many images, larger ones have larger shares. Of equal shares the lower class comes first; a latent
    that never fires has none.

    Args:
        labels: of the rows of the codes.
    """
    sums = csr_array(csr_array(codes.matrix("means").T) @ select(labels, n_classes))
    sums.sort_indices()
    of_all, n_held = np.asarray(sums.sum(axis=1)), np.diff(np.asarray(sums.indptr))
    shares = np.asarray(sums.data) / np.repeat(of_all, n_held)
    return find_top(csr_array((shares, sums.indices, sums.indptr), shape=_size(sums)), n)


@dataclass(frozen=True)
class Matchable:
    """An SAE, as far as its latents can be matched with those of another.

    sae: identifies it, such as the hash of its artifact: the same of two views of one SAE.
    reads: identifies the tokens it reads, but for the images: the same backbone, block and site.
    images: identifies the image set that the codes are of, in which `codes.image_index` counts.
    W_dec: raw decoder rows.
    is_alive: whether a latent ever fires.
    codes: None: they were not measured.
    """

    sae: str
    reads: str
    images: str
    W_dec: Float[Tensor, "d_sae d_in"]
    is_alive: Bool[np.ndarray, " d_sae"]
    codes: ImageCodes | None


class ViewMatches(NamedTuple):
    """The best match of each latent of one SAE among those of another; not one to one.

    latents: -1 for none.
    values: by which they were matched, above 0 and at most 1; NaN without a match.
    how: by what, in words.
    """

    latents: Int32[np.ndarray, " d_sae"]
    values: Float32[np.ndarray, " d_sae"]
    how: str


def find_matches(one: Matchable | str, other: Matchable | str, progress: Advance = ignore) -> ViewMatches | str:
    """Return for each latent of one SAE the latent of the other that is most like it; or why nothing can be matched.

    Of the same SAE it is the latent itself. Of SAEs of the same tokens, that of the largest cosine of decoder rows, see
    `find_decoder_neighbours`: rows are directions among the tokens, whatever images the SAEs were trained on. Else, of
    SAEs that saw the same images, that of the largest correlation of activation over them, see `find_coactive`. Else
    there is none.

    Args:
        one, other: a sentence: why that SAE can be matched with none.
    """
    if isinstance(one, str) or isinstance(other, str):
        return one if isinstance(one, str) else str(other)
    if one.sae == other.sae:
        n = len(one.W_dec)
        return ViewMatches(np.arange(n, dtype=np.int32), np.ones(n, np.float32), "the same SAE: each latent is itself")
    if one.reads == other.reads and one.W_dec.shape[1] == other.W_dec.shape[1]:
        rows = _make_unit(one.W_dec, one.is_alive)
        found = _find_nearest_rows(rows, _make_unit(other.W_dec, other.is_alive).to(rows.device), 1, progress=progress)
        return _take_best(found, "largest cosine of decoder rows, for both SAEs read the same tokens")
    if one.images != other.images:
        return "They read different tokens, and each was shown different images."
    if one.codes is None or other.codes is None:
        return "They read different tokens, and of one of them it was not measured what fires in each image."
    here, there = (np.asarray(of.image_index) for of in (one.codes, other.codes))
    shared, rows_here, rows_there = np.intersect1d(here, there, assume_unique=True, return_indices=True)
    if len(shared) < MIN_IMAGES:
        return (
            f"They read different tokens, and only {len(shared)} images were shown to both, of at least {MIN_IMAGES}"
            " that it takes."
        )
    tables = [csr_array(of.matrix("means")[rows]) for of, rows in ((one.codes, rows_here), (other.codes, rows_there))]
    found = _find_correlated(tables[0], tables[1], 1, progress=progress)
    return _take_best(found, f"largest correlation of mean activation over {len(shared):,} images that both were shown")


def _take_best(found: TopSets, how: str) -> ViewMatches:
    latents = found.columns[:, 0].astype(np.int32)
    return ViewMatches(latents, np.where(latents >= 0, found.values[:, 0], np.nan).astype(np.float32), how)


def _make_unit(W_dec: Tensor, is_alive: np.ndarray) -> Tensor:
    """Return decoder rows of norm 1 in float32; 0 for those of latents that are not alive, and of rows of 0."""
    rows = W_dec.detach().float()
    norms = rows.norm(dim=1, keepdim=True)
    alive = torch.from_numpy(is_alive).to(rows.device).unsqueeze(1) & (norms > 0)
    return torch.where(alive, rows / norms.where(alive, 1), 0)


def _find_nearest_rows(
    rows: Tensor, others: Tensor, n: int, *, is_same: bool = False, progress: Advance = ignore
) -> TopSets:
    """Return the n largest products above 0 of each row with other rows.

    Args:
        is_same: whether the others are the rows themselves; then none is its own neighbour.
    """
    found: list[TopSets] = []
    for some in _cut_rows(len(rows), len(others)):
        products = (rows[some] @ others.T).clamp_max_(1)
        if is_same:
            products[:, some].fill_diagonal_(0)
        least = products.topk(min(n, len(others)), dim=1).values[:, -1:]
        near, columns = ((products >= least) & (products > 0)).nonzero(as_tuple=True)
        values = products[near, columns].cpu().numpy()
        table = csr_array((values, (near.cpu().numpy(), columns.cpu().numpy())), shape=tuple(products.shape))
        found.append(find_top(table, n))
        progress(some.stop, len(rows))
    return _join(found, n)


def _find_correlated(
    table: csr_array, others: csr_array, n: int, *, is_same: bool = False, progress: Advance = ignore
) -> TopSets:
    """Return the n largest correlations above 0 of each column with columns of another table of the same images.

    Two that never fire in one image have a correlation below 0, so that the sparse product has all that count.

    Args:
        is_same: whether the others are the columns themselves; then none is its own neighbour.
    """
    (table, levels), (others, other_levels) = map(_standardise, (table, others))
    by_latent = csr_array(table.T)
    n_latents = _size(by_latent)[0]
    found = TopSets(np.full((n_latents, n), -1), np.zeros((n_latents, n)))
    for some in _cut_products(by_latent, others):
        products = csr_array(by_latent[some] @ others)
        sums, indices = np.asarray(products.data), np.asarray(products.indices)
        for latent, (start, end) in enumerate(pairwise(np.asarray(products.indptr)), some.start):
            columns = indices[start:end]
            values = (sums[start:end] - levels[latent] * other_levels[columns]).astype(np.float32)
            if is_same:
                values[columns == latent] = 0
            least = np.partition(values, len(values) - n)[len(values) - n] if len(values) > n else 0
            places = np.flatnonzero((values >= least) & (values > 0))
            places = places[np.lexsort((columns[places], -values[places]))[:n]]
            found.columns[latent, : len(places)] = columns[places]
            found.values[latent, : len(places)] = np.minimum(values[places], 1)
        progress(some.stop, n_latents)
    return found


def _standardise(table: csr_array) -> tuple[csr_array, Float64[np.ndarray, " n"]]:
    """Return each column over the root of its sum of squared deviations, and its mean over the same, times the root of
    the number of images: the correlation of two columns is the product of the former less that of the latter.

    Both are 0 of columns that do not count.
    """
    n_images, n = _size(table)
    columns, values = np.asarray(table.indices), np.asarray(table.data)
    n_firing = np.bincount(columns, minlength=n)
    means = np.bincount(columns, values, n) / n_images
    deviations = np.bincount(columns, (values - means[columns]) ** 2, n) + (n_images - n_firing) * means**2
    counts = (n_firing >= MIN_IMAGES) & (deviations > _CONSTANT * np.bincount(columns, values**2, n))
    scale = np.divide(1, np.sqrt(deviations), out=np.zeros(n), where=counts)
    scaled = csr_array((values * scale[columns], columns, table.indptr), shape=(n_images, n), copy=True)
    scaled.eliminate_zeros()
    return scaled, np.sqrt(n_images) * means * scale


def _size(table: csr_array) -> tuple[int, int]:
    assert table.shape is not None
    return table.shape


def _cut_rows(n_rows: int, n_columns: int) -> list[slice]:
    return cut(n_rows, max(1, CHUNK_VALUES // max(1, n_columns)))


def _cut_products(by_latent: csr_array, others: csr_array) -> Iterator[slice]:
    """Yield slices of latents whose products with all others are not too many to hold."""
    n_others = np.diff(np.asarray(others.indptr))  # latents that fire in each image
    pairs = csr_array((n_others[np.asarray(by_latent.indices)], by_latent.indices, by_latent.indptr), _size(by_latent))
    most = np.minimum(np.asarray(pairs.sum(axis=1)), _size(others)[1])
    start, held = 0, 0
    for latent, n in enumerate(most.tolist()):
        if held + n > CHUNK_VALUES and latent > start:
            yield slice(start, latent)
            start, held = latent, 0
        held += n
    yield slice(start, len(most))


def _join(parts: list[TopSets], n: int) -> TopSets:
    """Return the sets of all rows, one part after the other."""
    if not parts:
        return TopSets(np.full((0, n), -1), np.zeros((0, n)))
    return TopSets(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
