"""A word tokenizer for CLIP models trained on a small, closed vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor


class WordTokenizer:
    """Maps words to ids: 0 = padding, 1 = unknown word, then the vocabulary, and the end mark as the highest id.

    open_clip's text tower pools where the token id is largest, so the end mark must be the last id. Words are split
    at white space and lower-cased.

    Args:
        words: the vocabulary, without duplicates.
        context_length: number of ids per text; longer texts are cut before the end mark.
        file: in which the words stand; None: in none.
    """

    def __init__(self, words: Sequence[str], context_length: int, file: Path | None = None) -> None:
        if len(set(words)) != len(words):
            raise ValueError("Expected a vocabulary without duplicates, got repeated words.")
        self.words = list(words)
        self.context_length, self.file = context_length, file
        self._ids = {word: i + 2 for i, word in enumerate(self.words)}

    @property
    def vocab_size(self) -> int:
        """Number of ids, special ones included."""
        return len(self.words) + 3

    def __call__(self, texts: str | Sequence[str], context_length: int | None = None) -> Tensor:
        """Return the ids of each text, int64 [n_texts, context_length], by default its own."""
        texts, n_ids = [texts] if isinstance(texts, str) else texts, context_length or self.context_length
        ids = torch.zeros(len(texts), n_ids, dtype=torch.int64)
        for row, text in enumerate(texts):
            known = [self._ids.get(word, 1) for word in text.lower().split()][: n_ids - 1]
            known.append(self.vocab_size - 1)
            ids[row, : len(known)] = torch.tensor(known)
        return ids
