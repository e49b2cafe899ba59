"""Shuffled batches of tokens, from a cache or straight from images; batch t is a function of (seed, t) alone.

Several processes have a part of every batch each; together the parts are the batch of one process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import IterableDataset

from infoscope.runtime import processes
from infoscope.runtime.copies import lock
from infoscope.runtime.errors import InputError
from infoscope.runtime.profile import Kind, spent_on
from infoscope.sae.token_sets import Gather, Places, TokenSet

N_AHEAD_OF_GPU = 4
"""Batches that are read at the same time, each by a thread, where a GPU trains; elsewhere it is one."""


class _Pool(NamedTuple):
    first: int
    """Place of its first token among all that are ever shown."""
    end: int
    mine: Int[np.ndarray, " n_mine"]
    """Which of its tokens this process shows, counted from the first in the order they are shown; ascending."""
    gather: Gather


def check_batch(batch_tokens: int, n_processes: int) -> None:
    """Refuse a batch that its processes cannot share evenly.

    Raises:
        InputError: such a batch.
    """
    if batch_tokens % n_processes:
        raise InputError(
            f"Expected sae.batch_tokens to be a multiple of the {n_processes} processes that share each batch, got"
            f" {batch_tokens}."
        )


class TokenStream(IterableDataset):
    """Ready-made batches of tokens, or this process's part of them, for steps first_step .. n_steps - 1.

    Each epoch shows `tokens_per_image` tokens of every image once (all by default; else drawn afresh in every epoch),
    in a fresh order: images are shuffled and dealt into pools of `pool_images`, the tokens of a pool are shuffled among
    themselves (one pool: every token among all). Within an epoch, one pool at a time is in use. A batch that an epoch
    cannot fill takes the rest from the next epoch, so no token is dropped.

    Args:
        tokens_per_image: None: all.
        pin_memory: put batches into page-locked memory (`lock`), for copies to a GPU, in the type that they are stored
            in: there they become float32 faster. Without it they are float32.

    Raises:
        InputError: if the processes cannot have parts of one size.
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
        self.here = processes.current()
        check_batch(batch_tokens, self.here.size)
        self.part_tokens = batch_tokens // self.here.size
        self.pool_images = min(pool_images, source.n_images)
        self.tokens_per_image = min(tokens_per_image or source.tokens_per_image, source.tokens_per_image)
        self._image_order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._pool: _Pool | None = None

    def __iter__(self) -> Iterator[Float[Tensor, "part_tokens d_in"]]:
        # Threads read the next batches while this one is used. Pools are opened here: processes do that together.
        n_ahead = N_AHEAD_OF_GPU if self.pin_memory else 1
        with ThreadPoolExecutor(n_ahead, thread_name_prefix="token_stream") as readers:
            ahead: deque[Future[Tensor]] = deque()
            for step in range(self.first_step, self.n_steps):
                with spent_on(Kind.reading):
                    batch = ahead.popleft().result() if ahead else self.batch(step)
                while len(ahead) < n_ahead and self._is_open(step + 1 + len(ahead)):
                    ahead.append(readers.submit(self.batch, step + 1 + len(ahead)))
                yield batch

    def batch(self, step: int) -> Float[Tensor, "part_tokens d_in"]:
        """Return this process's part of the batch of this step, see `pin_memory` for its type."""
        start, end = step * self.batch_tokens, (step + 1) * self.batch_tokens
        my_start = start + self.here.rank * self.part_tokens
        parts = []
        while start < end:  # once, or once more for each pool that ends within the batch
            pool = self._open(start)
            window = [max(my_start, start) - pool.first, min(my_start + self.part_tokens, pool.end) - pool.first]
            if window[0] < window[1]:
                parts.append(pool.gather(slice(*np.searchsorted(pool.mine, window).tolist())))
            start = pool.end
        batch = torch.cat(parts) if len(parts) > 1 else parts[0]
        if not self.pin_memory:
            return batch.float()
        return lock(batch) if batch.device.type == "cpu" else batch

    def _is_open(self, step: int) -> bool:
        """Whether there is such a batch, and the pool in use holds all of it."""
        start, end = step * self.batch_tokens, (step + 1) * self.batch_tokens
        return self._pool is not None and self._pool.first <= start and end <= self._pool.end and step < self.n_steps

    def _open(self, start: int) -> _Pool:
        """Return the pool that holds a token, by its place among all that are ever shown; the one in use is kept."""
        if self._pool is None or not self._pool.first <= start < self._pool.end:
            epoch, within = divmod(start, self.source.n_images * self.tokens_per_image)
            number = within // (self.pool_images * self.tokens_per_image)
            if self._image_order[0] != epoch:
                self._image_order = epoch, self._rng(epoch, 0).permutation(self.source.n_images)
            first_image = number * self.pool_images
            images = self._image_order[1][first_image : first_image + self.pool_images]
            places = self._choose_places(len(images), epoch, number)
            order = self._rng(epoch, 1, number).permutation(places.size)
            first = start - within + first_image * self.tokens_per_image
            shower = (first + np.arange(len(order))) % self.batch_tokens // self.part_tokens
            shown = [np.flatnonzero(shower == rank) for rank in range(self.here.size)]
            gather = self.source.open_pool(images, places, [order[mine] for mine in shown])
            self._pool = _Pool(first, first + len(order), shown[self.here.rank], gather)
        return self._pool

    def _choose_places(self, n_images: int, epoch: int, number: int) -> Places:
        n_all, n_chosen = self.source.tokens_per_image, self.tokens_per_image
        if n_chosen == n_all:
            return np.broadcast_to(np.arange(n_all), (n_images, n_all))
        drawn = self._rng(epoch, 2, number).random((n_images, n_all), dtype=np.float32)
        return np.argpartition(drawn, n_chosen - 1, axis=1)[:, :n_chosen]

    def _rng(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])
