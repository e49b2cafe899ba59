"""CLIP's zero-shot head: one direction per class, the mean of what its sentences say (Radford et al., 2021)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from infoscope.predictions.prompts import Prompts, name_classes
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import write_json
from infoscope.runtime.parts import Part, compute_parts, cut
from infoscope.vision.backbone import Backbone

_HEAD_ARRAYS, _HEAD_NAMES = "zero_shot.npz", "zero_shot.json"
CLASSES_PER_CALL = 16


@dataclass(frozen=True)
class ZeroShotHead:
    """From image embeddings to class probabilities.

    A logit bias, where a model has one, moves all classes alike: softmax ignores it, so there is none here.

    Args:
        class_names: in the order of the rows.
        weights: the mean text embedding of each class, of unit norm.
        logit_scale: the model's own, 1 / temperature.
    """

    class_names: tuple[str, ...]
    weights: Float[Tensor, "n_classes embed_dim"]
    logit_scale: float

    def log_probabilities(self, embeddings: Float[Tensor, "n embed_dim"]) -> Float[Tensor, "n n_classes"]:
        """Return log softmax of the scaled cosines of image embeddings of unit norm."""
        weights = self.weights.to(embeddings.device)
        return F.log_softmax(self.logit_scale * embeddings.float() @ weights.T, dim=-1)

    def save(self, folder: Path) -> None:
        """Write `zero_shot.npz` and `zero_shot.json` into an existing folder."""
        np.savez(folder / _HEAD_ARRAYS, weights=self.weights.cpu().numpy())
        content = {"class_names": self.class_names, "logit_scale": self.logit_scale}
        write_json(folder / _HEAD_NAMES, content)

    @classmethod
    def load(cls, folder: Path) -> ZeroShotHead:
        """Return what `save` wrote.

        Raises:
            InputError: if a file is missing or damaged.
        """
        try:
            content = json.loads((folder / _HEAD_NAMES).read_text(encoding="utf-8"))
            with (folder / _HEAD_ARRAYS).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                weights = torch.from_numpy(arrays["weights"])
            return cls(tuple(content["class_names"]), weights, content["logit_scale"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise InputError(f"Expected a zero-shot head in {folder}, found none that can be read: {error}.") from error


def check_prompts(backbone: Backbone, prompts: Prompts, what: str | None = None) -> None:
    """Refuse prompts that a model's text tower cannot read; none is embedded.

    Args:
        what: the classes are, and the setting that gives them, for the error; by default as `name_classes`.

    Raises:
        InputError: a model without a text tower, words that its tokenizer does not know, or sentences that are longer
            than the tower reads.
    """
    what = what or name_classes(prompts)
    texts = [text for i in range(len(prompts.class_names)) for text in prompts.texts(i)]
    backbone.check_texts(texts, f"{what} and templates")
    n_read, cut = backbone.find_cut(texts)
    if cut:
        raise InputError(
            f"Expected {what} and templates to make sentences of at most {n_read} tokens, as many as the text tower"
            f" reads, got {len(cut):,} longer, first {texts[cut[0]][:60]!r}...: choose shorter ones."
        )


@torch.inference_mode()
def make_zero_shot_head(
    backbone: Backbone,
    prompts: Prompts,
    progress: Callable[[int, int], None] | None = None,
    progress_folder: Path | None = None,
) -> ZeroShotHead:
    """Return the head of a CLIP for these classes: all sentences of a class embedded, averaged, set to unit norm.

    Args:
        progress: called with (classes done, all classes); ImageNet's 80,000 sentences take a while.
        progress_folder: see `compute_parts`.

    Raises:
        InputError: a model without a text tower, or words that its tokenizer does not know.
    """
    n_classes, n_templates = len(prompts.class_names), len(prompts.templates)
    scale, parts = backbone.logit_scale, cut(n_classes, CLASSES_PER_CALL)

    def embed(number: int) -> Part:
        classes = range(n_classes)[parts[number]]
        embedded = backbone.embed_texts([text for index in classes for text in prompts.texts(index)])
        if progress:
            progress(classes.stop, n_classes)
        return {"weights": F.normalize(embedded.unflatten(0, (len(classes), n_templates)).mean(1), dim=-1)}

    weights = [part["weights"] for part in compute_parts(len(parts), embed, progress_folder, "classes")]
    return ZeroShotHead(prompts.class_names, torch.cat(weights), scale)
