"""What every CLIP has, with any image tower: a text tower, embeddings, the scale of its cosines."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infoscope.runtime.errors import InputError, get_first_line
from infoscope.vision.backbone import Backbone, Tokens
from infoscope.vision.open_clip.tokenizer import WordTokenizer

VOCABULARY = "vocabulary.json"
MAX_LOGIT_SCALE = 100.0
"""CLIP's own bound (Radford et al., 2021, 2.5); training of the scenes' CLIP clips the scale, not the parameter."""
_TEXT_BATCH = 256

Tokenizer = Callable[..., Tensor]
"""Texts, and context_length if it is not the tower's own, to token ids, int64 [n_texts, context_length]."""


class ClipBackbone(Backbone):
    """A CLIP: an image tower, which subclasses read, and the text tower that serves zero-shot heads.

    Args:
        clip: the whole model, open_clip's.
        make_tokenizer: makes the text tower's tokenizer when a text is embedded, not before.
        tower: what the image tower's own class takes.
    """

    has_text = True
    """Whether its weights brought a text tower."""
    has_projection = True
    """Whether its weights brought the projection into the space of texts."""

    def __init__(
        self, clip: torch.nn.Module, make_tokenizer: Callable[[], Tokenizer] | None = None, **tower: Any
    ) -> None:
        super().__init__(**tower)
        self.clip: Any = clip
        self._make_tokenizer = make_tokenizer

    @abstractmethod
    def _project(self, pooled: Float[Tensor, "batch d_out"]) -> Float[Tensor, "batch embed_dim"]: ...

    def _embed(self, tokens: Tokens) -> Float[Tensor, "batch d_embed"]:
        pooled = self._pool(tokens)
        return self._project(pooled) if self.has_projection else pooled

    @torch.inference_mode()
    def embed_images(self, images: Tensor) -> Float[Tensor, "batch embed_dim"]:
        """Return CLIP's image embeddings (unit norm) of uint8 images [batch, 3, image_px, image_px]."""
        if not self.has_projection:
            raise InputError("These weights have no projection, so images have no embeddings: give them with it.")
        self.n_images_encoded += len(images)
        with self._autocast(), self._plain():
            return self.clip.encode_image(self.normalise(images), normalize=True).float()

    def pool_images(self, images: Tensor) -> Tensor:
        return self.embed_images(images) if self.has_projection else super().pool_images(images)

    def embed_tokens(self, tokens: Tokens, layer: int, with_gradient: bool = False) -> Float[Tensor, "batch embed_dim"]:
        self._check_text()
        with torch.inference_mode(not with_gradient):
            return F.normalize(self._project(self.resume(tokens, layer, with_gradient)), dim=-1)

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n embed_dim"]:
        self.check_texts(texts)
        embedded = []
        for start in range(0, len(texts), _TEXT_BATCH):
            ids = self._tokenizer(list(texts[start : start + _TEXT_BATCH]))
            if int(ids.max()) >= self.clip.vocab_size:
                raise InputError(
                    f"The tokenizer gives ids up to {int(ids.max())}, but the text tower has {self.clip.vocab_size}:"
                    f" put the model's {VOCABULARY} next to its weights."
                )
            with self._autocast():
                embedded.append(self.clip.encode_text(ids.to(self.mean.device)).float())
        return torch.cat(embedded)

    def embed_texts(self, texts: Sequence[str]) -> Float[Tensor, "n embed_dim"]:
        return F.normalize(self.encode_texts(texts), dim=-1)

    def check_texts(self, texts: Sequence[str], what: str = "texts") -> None:
        self._check_text()
        self._check_words(texts, what)

    def find_cut(self, texts: Sequence[str]) -> tuple[int, list[int]]:
        self._check_text()
        n_read = self._tokenizer([""]).shape[1]
        # No tokenizer makes more tokens than a text has bytes, but for two marks: few texts need to be looked at.
        long = [place for place, text in enumerate(texts) if len(text.encode()) > n_read - 2]
        cut = list[int]()
        for start in range(0, len(long), _TEXT_BATCH):
            places = long[start : start + _TEXT_BATCH]
            some = [texts[place] for place in places]
            longer = self._tokenizer(some, context_length=n_read + 1)
            differs = (self._tokenizer(some) != longer[:, :n_read]).any(dim=1)
            cut += [place for place, is_cut in zip(places, differs.tolist(), strict=True) if is_cut]
        return n_read, cut

    @property
    def logit_scale(self) -> float:
        self._check_text()
        scale = float(self.clip.logit_scale.detach().exp())
        return scale if self.clip.logit_bias is not None else min(scale, MAX_LOGIT_SCALE)  # SigLIP's has no bound

    @property
    def logit_bias(self) -> float:
        """What SigLIP adds to the scaled cosines before its sigmoid, 0 elsewhere; a softmax over classes ignores it."""
        return 0.0 if self.clip.logit_bias is None else float(self.clip.logit_bias.detach())

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if self._make_tokenizer is None:
            raise InputError("This CLIP came without a tokenizer: load it by load_backbone, which brings the model's.")
        return self._make_tokenizer()

    def _check_text(self) -> None:
        if not self.has_text:
            raise InputError(
                "These weights hold an image tower alone, so there are no predictions from texts: give a file with the"
                " text tower by model.pretrained."
            )

    def _check_words(self, texts: Sequence[str], what: str) -> None:
        """A closed vocabulary would read every word that it does not know as the same one."""
        if isinstance(self._tokenizer, WordTokenizer):
            known = set(self._tokenizer.words)
            unknown = dict.fromkeys(word for text in texts for word in text.lower().split() if word not in known)
            if unknown:
                raise InputError(
                    f"Expected {what} in words of the model's own vocabulary ({len(known)} words), got"
                    f" {', '.join(map(repr, list(unknown)[:5]))}: choose others, of the words in"
                    f" {self._tokenizer.file or VOCABULARY}, or another model."
                )


def make_tokenizer(name: str) -> Tokenizer:
    """Return the tokenizer of a folder or an architecture; CLIP's own comes with open_clip, offline.

    Raises:
        InputError: if it cannot be had: a damaged file, or one of a hub's without network or library.
    """
    vocabulary = Path(name.removeprefix("local-dir:")) / VOCABULARY
    try:
        if name.startswith("local-dir:") and vocabulary.is_file():
            return WordTokenizer(**json.loads(vocabulary.read_text(encoding="utf-8")), file=vocabulary)
        return open_clip.get_tokenizer(name)
    except ModuleNotFoundError as error:  # SigLIP's tokenizers are Hugging Face's
        raise InputError(f"The tokenizer of {name} needs a package: pip install {error.name}.") from error
    except Exception as error:  # of the tokenizer's library, of every kind
        raise InputError(f"Cannot make the tokenizer of {name}: {get_first_line(error)}.") from error
