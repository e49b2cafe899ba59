"""The token stream: every token once per epoch, in an order that only seed and step decide."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from infoscope.runtime import copies
from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice, TopKConfig
from infoscope.sae.stream import TokenStream
from infoscope.sae.token_sets import StoredTokens
from infoscope.sae.train import TokenData

N_IMAGES, N_PATCHES, N_PREFIX = 11, 6, 2


def make_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Tokens that carry their own name: component 0 the image, component 1 the place (prefix first)."""
    image, place = np.meshgrid(np.arange(N_IMAGES), np.arange(N_PREFIX + N_PATCHES), indexing="ij")
    tokens = np.stack([image, place], axis=-1).astype(np.float16)
    return np.ascontiguousarray(tokens[:, N_PREFIX:]), np.ascontiguousarray(tokens[:, :N_PREFIX])


def make_stream(choice: TokenChoice = TokenChoice.patch, **options) -> TokenStream:
    patches, prefix = make_arrays()
    settings = {"batch_tokens": 7, "n_steps": 40, "seed": 3} | options
    return TokenStream(StoredTokens(patches, prefix, choice), **settings)


@pytest.mark.parametrize("choice", list(TokenChoice))
@pytest.mark.parametrize("pool_images", [1, 4, 100])
def test_each_epoch_shows_every_token_once(choice: TokenChoice, pool_images: int) -> None:
    stream = make_stream(choice, pool_images=pool_images)
    places = {TokenChoice.patch: range(2, 8), TokenChoice.all: range(8), TokenChoice.cls: range(1)}[choice]
    n_tokens = N_IMAGES * len(places)
    seen = torch.cat(list(stream))
    assert seen.dtype == torch.float32
    expected = sorted((i, p) for i in range(N_IMAGES) for p in places)
    n_epochs = len(seen) // n_tokens
    assert n_epochs >= 3
    epochs = [seen[e * n_tokens : (e + 1) * n_tokens].int().tolist() for e in range(n_epochs)]
    for epoch in epochs:
        assert sorted(map(tuple, epoch)) == expected
    assert epochs[0] != epochs[1]


def test_last_incomplete_batch_is_filled_from_the_next_epoch() -> None:
    stream = make_stream(n_steps=20)
    n_full, n_left = divmod(stream.source.n_tokens, 7)
    assert n_left > 0
    tokens = [list(map(tuple, batch.int().tolist())) for batch in stream]
    assert all(len(batch) == 7 for batch in tokens)
    seen_before = {token for batch in tokens[:n_full] for token in batch}
    assert len(set(tokens[n_full][:n_left]) - seen_before) == n_left  # the epoch's last tokens are not dropped
    assert set(tokens[n_full][n_left:]) <= seen_before


def test_tokens_of_a_pool_are_mixed() -> None:
    patches = np.arange(400 * 10, dtype=np.float32).reshape(400, 10, 1)
    for pool_images, spread in ((400, 4000), (100, 1000)):
        seen = torch.cat(list(TokenStream(StoredTokens(patches), 100, 40, seed=0, pool_images=pool_images))).flatten()
        first_pool = seen[: pool_images * 10]
        assert len(first_pool.unique()) == spread
        neighbours = torch.corrcoef(torch.stack([first_pool[:-1], first_pool[1:]]))[0, 1]
        assert abs(neighbours) < 0.1


def test_batch_larger_than_the_data_set() -> None:
    stream = make_stream(batch_tokens=150, n_steps=2)
    first, _ = list(stream)
    counts = np.unique(first.int().numpy(), axis=0, return_counts=True)[1]
    assert counts.min() >= 2
    assert counts.max() <= 3


@pytest.mark.parametrize("first_step", [0, 1, 13, 40])
def test_order_depends_on_seed_and_step_only(first_step: int) -> None:
    whole, later = list(make_stream()), list(make_stream(first_step=first_step))
    assert len(later) == 40 - first_step
    for a, b in zip(whole[first_step:], later, strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(whole[0], next(iter(make_stream(seed=4))))


def test_range_of_images_and_iteration_in_order() -> None:
    patches, prefix = make_arrays()
    part = StoredTokens(patches, prefix, images=range(8, 11))
    batches = list(part.iterate(5, n_tokens=12))
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert torch.cat(batches)[:, 0].tolist() == [8.0] * 6 + [9.0] * 6
    stream = TokenStream(part, 6, 3, seed=0)
    assert set(torch.cat(list(stream))[:, 0].tolist()) == {8.0, 9.0, 10.0}


def test_reads_from_a_file(tmp_path) -> None:
    patches, _ = make_arrays()
    np.save(tmp_path / "patches.npy", patches)
    mapped = StoredTokens(np.load(tmp_path / "patches.npy", mmap_mode="r"))
    in_memory = StoredTokens(patches)
    for a, b in zip(TokenStream(mapped, 7, 5, seed=0), TokenStream(in_memory, 7, 5, seed=0), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("choice", list(TokenChoice))
@pytest.mark.parametrize("pool_images", [1, 4, 100])
def test_a_gpu_gets_the_same_tokens_in_the_type_on_disk(
    monkeypatch: pytest.MonkeyPatch, choice: TokenChoice, pool_images: int
) -> None:
    """Read by several threads; it makes them float32 itself."""
    monkeypatch.setattr(copies, "_warn_once", lambda reason: None)  # without a GPU nothing can be locked
    expected = list(make_stream(choice, pool_images=pool_images, first_step=3))
    stream = make_stream(choice, pool_images=pool_images, first_step=3, pin_memory=True)
    data = TokenData(stream.source, TopKConfig(), 0)
    found = list(stream)
    assert {batch.dtype for batch in found} == {torch.float16}
    found = [data.on_after_batch_transfer(batch, 0) for batch in found]
    assert {batch.dtype for batch in found} == {torch.float32}
    assert torch.equal(torch.stack(found), torch.stack(expected))
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("token_stream")]


def test_what_cannot_be_read_is_refused() -> None:
    patches, prefix = make_arrays()
    with pytest.raises(InputError, match=r"sae\.tokens=cls"):
        StoredTokens(patches, prefix[:, :0], TokenChoice.cls)
    with pytest.raises(InputError, match="at least one image"):
        StoredTokens(patches[:0])


def test_some_tokens_of_each_image_are_drawn_afresh_in_every_epoch() -> None:
    stream = make_stream(n_steps=40, batch_tokens=11, tokens_per_image=2, pool_images=4)
    seen = torch.cat(list(stream)).int()
    epochs = seen[: len(seen) // 22 * 22].view(-1, 22, 2)
    assert len(epochs) == 20
    for epoch in epochs:
        images, counts = epoch[:, 0].unique(return_counts=True)
        assert images.tolist() == list(range(N_IMAGES))
        assert counts.tolist() == [2] * N_IMAGES
        assert len({tuple(token) for token in epoch.tolist()}) == 22  # no token twice
    drawn = [{tuple(token) for token in epoch.tolist()} for epoch in epochs]
    assert len(set.union(*drawn)) == N_IMAGES * N_PATCHES
    later = make_stream(n_steps=40, batch_tokens=11, tokens_per_image=2, pool_images=4, first_step=17)
    assert torch.equal(torch.cat(list(later)).int(), seen[17 * 11 :])
