"""Shuffled batches of tokens, from a cache or straight from images; batch t is a function of (seed, t) alone."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import IterableDataset

from infoscope.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.vision.backbone import Tokens
from infoscope.vision.extract import ShardedRows, TokenCache
from infoscope.vision.live_tokens import LiveTokens

Places = Int[np.ndarray, "n_images n_chosen"]
Gather = Callable[[Int[np.ndarray, " n"]], Float[Tensor, "n d_in"]]
"""Positions among the n_images * n_chosen tokens of a pool -> those tokens, float32."""

LIVE_BATCH_IMAGES = 64
"""Images encoded at a time; part of what makes a resumed training bit for bit the same."""
LIVE_STATISTICS_IMAGES = 4096
"""Images on which mean and scale are measured where tokens are not stored, evenly spread."""


class TokenSet(ABC):
    """The chosen tokens of some images of a token source. A token's place counts prefix tokens first, if chosen.

    Args:
        images: rows of the source.
        choice: which tokens.
        n_prefix, n_patches, d_in: of the source.

    Raises:
        InputError: if the choice needs prefix tokens and there are none, or no image is left.
    """

    def __init__(
        self, images: Int[np.ndarray, " n"], choice: TokenChoice, n_prefix: int, n_patches: int, d_in: int
    ) -> None:
        if choice is not TokenChoice.patch and n_prefix == 0:
            raise InputError(
                f"Expected prefix tokens for sae.tokens={choice.name}, but the model has none: use sae.tokens=patch."
            )
        if len(images) == 0 or n_patches == 0:
            raise InputError("Expected at least one image of tokens to train on, got none.")
        self.images, self.choice, self.d_in = np.asarray(images, dtype=np.int64), choice, d_in
        self.tokens_per_image = {
            TokenChoice.patch: n_patches,
            TokenChoice.all: n_prefix + n_patches,
            TokenChoice.cls: 1,
        }[choice]

    @property
    def n_images(self) -> int:
        """Images in use."""
        return len(self.images)

    @property
    def n_tokens(self) -> int:
        """Tokens in use."""
        return self.n_images * self.tokens_per_image

    @abstractmethod
    def open_pool(self, images: Int[np.ndarray, " n_images"], places: Places, stopping: threading.Event) -> Gather:
        """Return how to read some tokens of some images (positions in `images`), in any order.

        Args:
            stopping: when set, an opening that takes long may end with an error: nobody waits for it any more.
        """

    @abstractmethod
    def iterate(self, batch_tokens: int, n_tokens: int | None = None) -> Iterator[Float[Tensor, "n d_in"]]:
        """Yield the first `n_tokens` tokens (all by default) in their order, the last batch as it is left."""

    @abstractmethod
    def thin_for_statistics(self) -> TokenSet:
        """Return the images on which mean and scale of the chosen tokens are measured."""


class StoredTokens(TokenSet):
    """Tokens read from arrays that may lie on disk.

    Args:
        patches: [n_rows, n_patches, d_in], any float type.
        prefix: [n_rows, n_prefix, d_in]; needed unless only patches are chosen.
        images: rows in use; all by default.

    Raises:
        InputError: as `TokenSet`.
    """

    def __init__(
        self,
        patches: np.ndarray | ShardedRows,
        prefix: np.ndarray | ShardedRows | None = None,
        choice: TokenChoice = TokenChoice.patch,
        images: Int[np.ndarray, " n"] | range | None = None,
    ) -> None:
        images = np.arange(len(patches)) if images is None else np.asarray(images)
        n_prefix = 0 if prefix is None else prefix.shape[1]
        super().__init__(images, choice, n_prefix, patches.shape[1], patches.shape[2])
        # Each part's tokens of one image come after those of the parts before it.
        parts = {TokenChoice.patch: [patches], TokenChoice.all: [prefix, patches], TokenChoice.cls: [prefix]}[choice]
        parts = [part for part in parts if part is not None]
        self.parts = [ShardedRows([part]) if isinstance(part, np.ndarray) else part for part in parts]

    def open_pool(self, images: Int[np.ndarray, " n_images"], places: Places, stopping: threading.Event) -> Gather:
        def gather(order: Int[np.ndarray, " n"]) -> Float[Tensor, "n d_in"]:
            image, number = np.divmod(order, places.shape[1])
            return self.gather(images[image], places[image, number])

        return gather

    def gather(self, image: Int[np.ndarray, " n"], place: Int[np.ndarray, " n"]) -> Float[Tensor, "n d_in"]:
        """Return tokens by image (position in `images`) and place within the image, as float32."""
        row = self.images[image]
        if len(self.parts) == 1:
            return torch.from_numpy(self.parts[0].take(row, place))
        out = np.empty((len(row), self.d_in), dtype=np.float32)
        first = 0
        for part in self.parts:
            mine = (place >= first) & (place < first + part.shape[1])
            out[mine] = part.take(row[mine], place[mine] - first)
            first += part.shape[1]
        return torch.from_numpy(out)

    def iterate(self, batch_tokens: int, n_tokens: int | None = None) -> Iterator[Float[Tensor, "n d_in"]]:
        end = self.n_tokens if n_tokens is None else min(n_tokens, self.n_tokens)
        for start in range(0, end, batch_tokens):
            position = np.arange(start, min(start + batch_tokens, end))
            yield self.gather(position // self.tokens_per_image, position % self.tokens_per_image)

    def thin_for_statistics(self) -> TokenSet:
        return self


class LiveTokenSet(TokenSet):
    """Tokens encoded from the images as they are needed.

    A pool is encoded when its first token is asked for and then held: pool images * tokens per image * d_in * 4 bytes,
    twice while the next one takes its place.

    Args:
        images: rows in use; all by default.
        buffer_device: where pools are held; the CPU by default.

    Raises:
        InputError: as `TokenSet`.
    """

    def __init__(
        self,
        source: LiveTokens,
        choice: TokenChoice = TokenChoice.patch,
        images: Int[np.ndarray, " n"] | None = None,
        buffer_device: torch.device | str = "cpu",
    ) -> None:
        images = np.arange(len(source)) if images is None else images
        super().__init__(images, choice, source.meta["n_prefix"], source.grid**2, source.meta["d_in"])
        self.source, self.buffer_device = source, torch.device(buffer_device)

    def open_pool(self, images: Int[np.ndarray, " n_images"], places: Places, stopping: threading.Event) -> Gather:
        n_chosen = places.shape[1]
        buffer = torch.empty(len(images), n_chosen, self.d_in, device=self.buffer_device)
        n_done = 0
        for rows, tokens in self.source.iterate(self.images[images], LIVE_BATCH_IMAGES):
            if stopping.is_set():
                raise InterruptedError("the training that these tokens were for has ended")
            chosen = self._choose(tokens)
            part = slice(n_done, n_done + len(rows))
            index = torch.from_numpy(np.array(places[part])).to(chosen.device)[:, :, None].expand(-1, -1, self.d_in)
            buffer[part] = chosen.gather(1, index).to(buffer.device)
            n_done = part.stop
        flat = buffer.flatten(0, 1)
        return lambda order: flat[torch.from_numpy(order).to(flat.device)]

    def _choose(self, tokens: Tokens) -> Float[Tensor, "batch n_places d_in"]:
        match self.choice:
            case TokenChoice.patch:
                return tokens.patches
            case TokenChoice.cls:
                return tokens.prefix[:, :1]
            case TokenChoice.all:
                return torch.cat([tokens.prefix, tokens.patches], dim=1)

    def iterate(self, batch_tokens: int, n_tokens: int | None = None) -> Iterator[Float[Tensor, "n d_in"]]:
        end = self.n_tokens if n_tokens is None else min(n_tokens, self.n_tokens)
        rows = self.images[: -(-end // self.tokens_per_image)]
        n_given, left = 0, torch.empty(0, self.d_in)
        for _, tokens in self.source.iterate(rows, LIVE_BATCH_IMAGES):
            left = torch.cat([left, self._choose(tokens).flatten(0, 1).cpu()])[: end - n_given]
            while len(left) >= min(batch_tokens, end - n_given) > 0:
                batch, left = left[:batch_tokens], left[batch_tokens:]
                n_given += len(batch)
                yield batch

    def thin_for_statistics(self) -> TokenSet:
        n = min(self.n_images, LIVE_STATISTICS_IMAGES)
        images = self.images[np.arange(n) * self.n_images // n]
        return LiveTokenSet(self.source, self.choice, images, self.buffer_device)


def make_token_set(
    source: TokenCache | LiveTokens,
    choice: TokenChoice,
    images: Int[np.ndarray, " n"] | None = None,
    buffer_device: torch.device | str = "cpu",
) -> TokenSet:
    """Return the chosen tokens of some rows of a source, whichever kind of source it is; see the two kinds of set."""
    if isinstance(source, LiveTokens):
        return LiveTokenSet(source, choice, images, buffer_device)
    return StoredTokens(source.patches, source.prefix, choice, images)


class _Pool(NamedTuple):
    order: Int[np.ndarray, " n_tokens"]
    """In which its tokens are shown."""
    gather: Gather


class TokenStream(IterableDataset):
    """Ready-made batches of tokens for steps first_step .. n_steps - 1.

    Each epoch shows `tokens_per_image` tokens of every image once (all by default; else drawn afresh in every epoch),
    in a fresh order: images are shuffled and dealt into pools of `pool_images`, the tokens of a pool are shuffled among
    themselves (one pool: every token among all). Within an epoch, one pool at a time is in use. A batch that an epoch
    cannot fill takes the rest from the next epoch, so no token is dropped.

    Args:
        tokens_per_image: None: all.
        pin_memory: put batches into page-locked memory, for copies to a GPU.
    """

    def __init__(
        self,
        source: TokenSet,
        batch_tokens: int,
        n_steps: int,
        seed: int,
        first_step: int = 0,
        pool_images: int = 4096,
        tokens_per_image: int | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.source, self.batch_tokens, self.seed = source, batch_tokens, seed
        self.first_step, self.n_steps, self.pin_memory = first_step, n_steps, pin_memory
        self.pool_images = min(pool_images, source.n_images)
        self.tokens_per_image = min(tokens_per_image or source.tokens_per_image, source.tokens_per_image)
        self._stopping = threading.Event()
        self._image_order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._pool: tuple[tuple[int, int], _Pool] | None = None

    def __iter__(self) -> Iterator[Float[Tensor, "batch_tokens d_in"]]:
        # One thread reads the next batch while this one is used.
        with ThreadPoolExecutor(1, thread_name_prefix="token_stream") as reader:
            try:
                ahead = reader.submit(self.batch, self.first_step) if self.first_step < self.n_steps else None
                for step in range(self.first_step, self.n_steps):
                    assert ahead is not None
                    batch = ahead.result()
                    ahead = reader.submit(self.batch, step + 1) if step + 1 < self.n_steps else None
                    yield batch
            finally:
                self._stopping.set()

    def batch(self, step: int) -> Float[Tensor, "batch_tokens d_in"]:
        """Return the batch of this step."""
        n_epoch = self.source.n_images * self.tokens_per_image
        n_pool = self.pool_images * self.tokens_per_image
        start, end = step * self.batch_tokens, (step + 1) * self.batch_tokens
        parts = []
        while start < end:  # once, or once more for each pool that ends within the batch
            epoch, within = divmod(start, n_epoch)
            number, offset = divmod(within, n_pool)
            pool = self._open(epoch, number)
            order = pool.order[offset : offset + end - start]
            parts.append(pool.gather(order))
            start += len(order)
        batch = torch.cat(parts) if len(parts) > 1 else parts[0]
        return batch.pin_memory() if self.pin_memory and batch.device.type == "cpu" else batch

    def _open(self, epoch: int, number: int) -> _Pool:
        """Return a pool; the one in use is kept."""
        if self._pool is None or self._pool[0] != (epoch, number):
            if self._image_order[0] != epoch:
                self._image_order = epoch, self._rng(epoch, 0).permutation(self.source.n_images)
            first = number * self.pool_images
            images = self._image_order[1][first : first + self.pool_images]
            places = self._choose_places(len(images), epoch, number)
            order = self._rng(epoch, 1, number).permutation(places.size)
            self._pool = (epoch, number), _Pool(order, self.source.open_pool(images, places, self._stopping))
        return self._pool[1]

    def _choose_places(self, n_images: int, epoch: int, number: int) -> Places:
        n_all, n_chosen = self.source.tokens_per_image, self.tokens_per_image
        if n_chosen == n_all:
            return np.broadcast_to(np.arange(n_all), (n_images, n_all))
        drawn = self._rng(epoch, 2, number).random((n_images, n_all), dtype=np.float32)
        return np.argpartition(drawn, n_chosen - 1, axis=1)[:, :n_chosen]

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])
