"""Shuffled batches of tokens from arrays on disk; batch t is a function of (seed, t) alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.data import IterableDataset

from infoscope.errors import InputError
from infoscope.sae.config import TokenChoice


class TokenArray:
    """The chosen tokens of each image, read from arrays that may lie on disk.

    Args:
        patches: [n_images, n_patches, d_in], any float type.
        prefix: [n_images, n_prefix, d_in]; needed unless only patches are chosen.
        images: the range of images that are used; all by default.

    Raises:
        InputError: if the choice needs prefix tokens and there are none, or the range is empty.
    """

    def __init__(
        self,
        patches: np.ndarray,
        prefix: np.ndarray | None = None,
        choice: TokenChoice = TokenChoice.patch,
        images: range | None = None,
    ) -> None:
        n_prefix = 0 if prefix is None else prefix.shape[1]
        if choice is not TokenChoice.patch and n_prefix == 0:
            raise InputError(
                f"Expected prefix tokens for sae.tokens={choice.name}, but the model has none: use sae.tokens=patch."
            )
        self.images = range(len(patches)) if images is None else images
        if len(self.images) == 0 or patches.shape[1] == 0:
            raise InputError("Expected at least one image of tokens to train on, got none.")
        # Each part's tokens of one image come after those of the parts before it.
        parts = {TokenChoice.patch: [patches], TokenChoice.all: [prefix, patches], TokenChoice.cls: [prefix]}[choice]
        self.parts: list[np.ndarray] = [part for part in parts if part is not None]
        self.d_in = int(patches.shape[-1])
        self.tokens_per_image = 1 if choice is TokenChoice.cls else sum(part.shape[1] for part in self.parts)

    @property
    def n_images(self) -> int:
        """Images in use."""
        return len(self.images)

    @property
    def n_tokens(self) -> int:
        """Tokens in use."""
        return self.n_images * self.tokens_per_image

    def gather(self, image: np.ndarray, token: np.ndarray) -> Float[Tensor, "n d_in"]:
        """Return tokens by image (0-based within the range) and place within the image, as float32."""
        image = image + self.images.start
        if len(self.parts) == 1:
            return torch.from_numpy(_take(self.parts[0], image, token))
        out = np.empty((len(image), self.d_in), dtype=np.float32)
        first = 0
        for part in self.parts:
            mine = (token >= first) & (token < first + part.shape[1])
            out[mine] = _take(part, image[mine], token[mine] - first)
            first += part.shape[1]
        return torch.from_numpy(out)

    def iterate(self, batch_tokens: int, n_tokens: int | None = None) -> Iterator[Float[Tensor, "n d_in"]]:
        """Yield the first `n_tokens` tokens (all by default) in their order on disk, the last batch as it is left."""
        end = self.n_tokens if n_tokens is None else min(n_tokens, self.n_tokens)
        for start in range(0, end, batch_tokens):
            position = np.arange(start, min(start + batch_tokens, end))
            yield self.gather(position // self.tokens_per_image, position % self.tokens_per_image)


def _take(part: np.ndarray, image: np.ndarray, token: np.ndarray) -> np.ndarray:
    """Return part[image, token] as float32, by one index into rows (faster than two)."""
    return part.reshape(-1, part.shape[-1])[image * part.shape[1] + token].astype(np.float32, copy=False)


class TokenStream(IterableDataset):
    """Ready-made batches of tokens for steps first_step .. n_steps - 1.

    Each epoch shows every token once, in a fresh order: images are shuffled and dealt into pools of `pool_images`, the
    tokens of a pool are shuffled among themselves (one pool: every token among all). Within an epoch, disk pages of
    one pool at a time are in use. A batch that an epoch cannot fill takes the rest from the next epoch, so no token is
    dropped.

    Args:
        pin_memory: put batches into page-locked memory, for copies to a GPU.
    """

    def __init__(
        self,
        source: TokenArray,
        batch_tokens: int,
        n_steps: int,
        seed: int,
        first_step: int = 0,
        pool_images: int = 4096,
        pin_memory: bool = False,
    ) -> None:
        self.source, self.batch_tokens, self.seed = source, batch_tokens, seed
        self.first_step, self.n_steps, self.pin_memory = first_step, n_steps, pin_memory
        self.pool_images = min(pool_images, source.n_images)
        self._orders: dict[tuple[int, ...], np.ndarray] = {}

    def __iter__(self) -> Iterator[Float[Tensor, "batch_tokens d_in"]]:
        # One thread reads the next batch while this one is used.
        with ThreadPoolExecutor(1, thread_name_prefix="token_stream") as reader:
            ahead = reader.submit(self.batch, self.first_step) if self.first_step < self.n_steps else None
            for step in range(self.first_step, self.n_steps):
                assert ahead is not None
                batch = ahead.result()
                ahead = reader.submit(self.batch, step + 1) if step + 1 < self.n_steps else None
                yield batch

    def batch(self, step: int) -> Float[Tensor, "batch_tokens d_in"]:
        """Return the batch of this step."""
        image, token = self.places(step)
        batch = self.source.gather(image, token)
        return batch.pin_memory() if self.pin_memory else batch

    def places(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (image, place within the image) of each token of this step's batch."""
        pool_tokens = self.pool_images * self.source.tokens_per_image
        start, end = step * self.batch_tokens, (step + 1) * self.batch_tokens
        images, tokens = [], []
        while start < end:  # once, or once more for each pool that ends within the batch
            epoch, within = divmod(start, self.source.n_tokens)
            pool, offset = divmod(within, pool_tokens)
            image, token = self._places_in_pool(epoch, pool, offset, offset + end - start)
            images.append(image)
            tokens.append(token)
            start += len(image)
        return np.concatenate(images), np.concatenate(tokens)

    def _places_in_pool(self, epoch: int, pool: int, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the places of a pool's tokens start..end, or up to the pool's own end."""
        first = pool * self.pool_images
        n_images = min(self.pool_images, self.source.n_images - first)
        images = self._order(self.source.n_images, epoch, 0)
        tokens = self._order(n_images * self.source.tokens_per_image, epoch, 1, pool)
        place, token = np.divmod(tokens[start:end], self.source.tokens_per_image)
        return images[first + place], token

    def _order(self, n: int, *key: int) -> np.ndarray:
        """Return the permutation of 0..n-1 that belongs to a key; the few in use are kept."""
        if key not in self._orders:
            while len(self._orders) >= 4:  # at an epoch's end: its images and pool, and those of the next
                del self._orders[next(iter(self._orders))]
            self._orders[key] = np.random.default_rng([self.seed, *key]).permutation(n)
        return self._orders[key]
