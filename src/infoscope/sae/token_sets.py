"""The tokens that an SAE learns from: the chosen ones of some images, from a cache or encoded as they are needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.runtime import collective, processes
from infoscope.runtime.behind import Behind
from infoscope.runtime.copies import Leaver, Leaving
from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.vision.backbone import Tokens
from infoscope.vision.tokens.extract import ShardedRows, TokenCache
from infoscope.vision.tokens.shards import N_BEHIND
from infoscope.vision.tokens.source import LiveTokens, choose_batch_images

Places = Int[np.ndarray, "n_images n_chosen"]
Gather = Callable[[slice], Float[Tensor, "n d_in"]]
"""Which of the tokens of a pool that this process shows, in the order it shows them -> those tokens, as they are kept:
float32, or float16 from the disk."""

LIVE_STATISTICS_IMAGES = 4096
"""Images on which mean and scale are measured where tokens are not stored, evenly spread."""


def check_prefix(choice: TokenChoice, n_prefix: int) -> None:
    """Refuse to choose prefix tokens of a model that has none.

    Raises:
        InputError: such a choice.
    """
    if choice is not TokenChoice.patch and n_prefix == 0:
        raise InputError(
            f"Expected prefix tokens for sae.tokens={choice.name}, but the model has none: use sae.tokens=patch."
        )


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
        check_prefix(choice, n_prefix)
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
    def open_pool(self, images: Int[np.ndarray, " n_images"], places: Places, shown: list[np.ndarray]) -> Gather:
        """Return how to read those tokens of some images that this process shows; all processes open it together.

        Args:
            images: positions in `images`.
            shown: for each process, by rank, which of the n_images * n_chosen places it shows, in its order.
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

    def open_pool(self, images: Int[np.ndarray, " n_images"], places: Places, shown: list[np.ndarray]) -> Gather:
        order = shown[processes.current().rank]

        def gather(part: slice) -> Float[Tensor, "n d_in"]:
            image, number = np.divmod(order[part], places.shape[1])
            return self.gather(images[image], places[image, number])

        return gather

    def gather(self, image: Int[np.ndarray, " n"], place: Int[np.ndarray, " n"]) -> Float[Tensor, "n d_in"]:
        """Return tokens by image (position in `images`) and place within the image, in the type they are kept in."""
        row = self.images[image]
        if len(self.parts) == 1:
            return torch.from_numpy(self.parts[0].take(row, place))
        out = np.empty((len(row), self.d_in), self.parts[0].dtype)
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
            yield self.gather(position // self.tokens_per_image, position % self.tokens_per_image).float()

    def thin_for_statistics(self) -> TokenSet:
        return self


class LiveTokenSet(TokenSet):
    """Tokens encoded from the images as they are needed.

    A pool is encoded when its first token is asked for and then held: pool images * tokens per image * d_in * 4 bytes,
    twice while the next one takes its place. Several processes encode a part of its images each and exchange tokens;
    each holds those that it shows.

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
        # at a time; of a fixed number, for other batches would be rounded otherwise
        self.batch_images = choose_batch_images(source.backbone.mean.device.type)

    def open_pool(self, images: Int[np.ndarray, " n_images"], places: Places, shown: list[np.ndarray]) -> Gather:
        here, n_chosen = processes.current(), places.shape[1]
        holder = np.arange(len(images)) // self.batch_images % here.size  # whole batches are dealt out
        mine = np.flatnonzero(holder == here.rank)
        encoded = self._encode(images[mine], places[mine]).flatten(0, 1)
        if here.size == 1:
            order = torch.from_numpy(shown[0]).to(encoded.device)
            return lambda part: encoded[order[part]]
        row = np.full(len(images), -1)
        row[mine] = np.arange(len(mine))
        sent = []
        for wanted in shown:
            image, number = np.divmod(wanted[holder[wanted // n_chosen] == here.rank], n_chosen)
            sent.append(encoded[torch.from_numpy(row[image] * n_chosen + number).to(encoded.device)])
        comes_from = holder[shown[here.rank] // n_chosen]
        received = collective.exchange_rows(sent, np.bincount(comes_from, minlength=here.size).tolist())
        buffer = encoded.new_empty(len(comes_from), self.d_in)
        for rank, part in enumerate(received):
            buffer[torch.from_numpy(np.flatnonzero(comes_from == rank)).to(buffer.device)] = part
        return lambda part: buffer[part]

    def _encode(self, images: Int[np.ndarray, " n_images"], places: Places) -> Float[Tensor, "n_images n_chosen d_in"]:
        """Return some tokens of some images, on the buffer's device."""
        buffer = torch.empty(*places.shape, self.d_in, device=self.buffer_device)
        n_done, leaver = 0, Leaver()
        with closing(Behind("keep_tokens", N_BEHIND)) as behind:
            for rows, tokens in self.source.iterate(self.images[images], self.batch_images):
                chosen = self._choose(tokens)
                part = slice(n_done, n_done + len(rows))
                index = torch.from_numpy(np.array(places[part])).to(chosen.device, non_blocking=True)
                picked = chosen.gather(1, index[:, :, None].expand(-1, -1, self.d_in))
                if buffer.is_cuda:
                    buffer[part] = picked
                else:
                    leaving = leaver.start({"tokens": picked})
                    behind.n_waiting = leaving.count_behind(N_BEHIND)
                    behind.submit(_keep, buffer[part], leaving)
                n_done = part.stop
            behind.finish()
        return buffer

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
        for _, tokens in self.source.iterate(rows, self.batch_images):
            left = torch.cat([left, self._choose(tokens).flatten(0, 1).cpu()])[: end - n_given]
            while len(left) >= min(batch_tokens, end - n_given) > 0:
                batch, left = left[:batch_tokens], left[batch_tokens:]
                n_given += len(batch)
                yield batch

    def thin_for_statistics(self) -> TokenSet:
        n = min(self.n_images, LIVE_STATISTICS_IMAGES)
        images = self.images[np.arange(n) * self.n_images // n]
        return LiveTokenSet(self.source, self.choice, images, self.buffer_device)


def _keep(room: Tensor, leaving: Leaving) -> None:
    """Put tokens that leave a GPU where they are kept."""
    room.copy_(leaving.wait()["tokens"])
    leaving.release()


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
