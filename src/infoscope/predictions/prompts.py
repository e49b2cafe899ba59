"""The text tower's prompts: class names, and the sentences they stand in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from infoscope.data.images import ImageSet, Truth
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.predictions.config import PredictConfig, Templates
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import read_text

SCENE_TEMPLATES = ("a {}", "a small {}", "a medium {}", "a large {}")
"""As the captions name an object. On 400 training scenes the shipped scenes_clip is right in 98.2% by these, and in
89.5% by "a photo of a {}", which no caption says."""
N_IMAGENET = 1000
MAX_CLASSES = np.iinfo(np.int16).max
"""As which predictions are kept."""
_EMBEDDED = {".json", ".npz", ".npy", ".pt", ".pth", ".safetensors", ".parquet", ".pkl"}
"""Files of embeddings, not of words."""


@dataclass(frozen=True)
class Prompts:
    """What is asked.

    Args:
        class_names: at least two; ImageNet has two of its names twice.
        templates: sentences with one {} each.
        target: which labels the classes are.
        labels: of every image of the test set, 0..n_classes - 1; None without ground truth.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    target: str = "class"
    labels: Int64[np.ndarray, " n_images"] | None = None

    def cache_key_fields(self) -> dict[str, Any]:
        """Return what decides the head and what it is held against, as plain JSON types; labels belong to the data."""
        return {
            "class_names": list(self.class_names),
            "templates": list(self.templates),
            "target": self.target if self.labels is not None else None,
        }

    def texts(self, class_index: int) -> list[str]:
        """Return the sentences about one class."""
        return [template.replace("{}", self.class_names[class_index]) for template in self.templates]


def make_prompts(config: PredictConfig, images: ImageSet) -> Prompts:
    """Return what the head is asked about a test set.

    Raises:
        InputError: unknown target, a file of class names that cannot be read or does not fit the labels, fewer than
            two classes.
    """
    labelled = images if Truth.labels in images.truths else None
    names = choose_class_names(config, labelled)
    labels = None if labelled is None else labelled.labels(config.target)
    return Prompts(names, choose_templates(config), config.target, labels)


def choose_templates(config: PredictConfig) -> tuple[str, ...]:
    """Return the sentences into which class names are put."""
    match config.templates:
        case Templates.scenes:
            return SCENE_TEMPLATES
        case Templates.imagenet:
            return get_imagenet_templates()
        case Templates.list:
            return tuple(config.template_list)


def choose_class_names(config: PredictConfig, labelled: ImageSet | type[SceneSet] | None) -> tuple[str, ...]:
    """Return the classes to choose from.

    Args:
        labelled: the data, if they know labels; the scenes need not be rendered for it.

    Raises:
        InputError: as `make_prompts`.
    """
    if config.class_names is not None:
        names = tuple(_read_lines(Path(config.class_names), "predict.class_names", "class").values())
        if labelled is not None and len(names) != labelled.n_target_classes(config.target):
            raise InputError(
                f"Expected predict.class_names to hold the {labelled.n_target_classes(config.target)} classes of the"
                f" target {config.target!r}, one per line, got {len(names)}."
            )
    elif labelled is None:
        names = get_imagenet_names()
    elif config.target == "class":
        names = tuple(labelled.class_names)
    else:
        labelled.n_target_classes(config.target)  # an unknown target is refused as such
        raise InputError(
            f"Expected predict.class_names for predict.target={config.target}: only the target 'class' has names."
        )
    if len(names) < 2:
        raise InputError(f"Expected at least two classes to choose from, got {len(names)}: give predict.class_names.")
    if len(names) > MAX_CLASSES:
        raise InputError(f"Expected at most {MAX_CLASSES} classes, got {len(names)}.")
    return names


def has_class_names(config: PredictConfig, labelled: ImageSet | type[SceneSet] | None) -> bool:
    """Return whether there are names to choose from where `predict.class_names` gives none; else what it gives counts.

    Args:
        labelled: as of `choose_class_names`.

    Raises:
        InputError: a target that the data do not have.
    """
    if config.class_names is not None or labelled is None:
        return True
    return 2 <= labelled.n_target_classes(config.target) <= MAX_CLASSES and config.target == "class"


def get_imagenet_names() -> tuple[str, ...]:
    """Return open_clip's names of the 1,000 ImageNet classes."""
    from open_clip import zero_shot_metadata

    return tuple(zero_shot_metadata.IMAGENET_CLASSNAMES)


def count_names(names: Sequence[str], what: str) -> str:
    """Return how many names there are, such as "9 classes", and that they are ImageNet's where nobody gave others."""
    return f"{len(names):,} {what}{' (those of ImageNet)' * _are_imagenet(names)}"


def name_classes(prompts: Prompts) -> str:
    """Return what an error calls the class names: with the setting, and whose they are where nobody gave any."""
    if _are_imagenet(prompts.class_names):
        return "class names (ImageNet's, as for data without labels: predict.class_names=FILE gives others)"
    return "class names (predict.class_names=FILE)"


def _are_imagenet(names: Sequence[str]) -> bool:
    return len(names) == N_IMAGENET and tuple(names) == get_imagenet_names()


def get_imagenet_templates() -> tuple[str, ...]:
    """Return OpenAI's 80 sentences for ImageNet, as open_clip has them."""
    from open_clip import zero_shot_metadata

    return tuple(template("{}") for template in zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES)


def read_words(file: Path, setting: str) -> tuple[str, ...]:
    """Return the lines of a text file without the empty ones: words to choose from, each once.

    Args:
        setting: that names the file, for the error.

    Raises:
        InputError: if it cannot be read, holds embeddings, or has a word twice, whatever the case.
    """
    if file.suffix.lower() in _EMBEDDED:
        raise InputError(
            f"Expected {setting} to be a text file with a word on each line, got {file}: embeddings of another"
            " language model have nothing to do with those of this one, which embeds the words itself."
        )
    places: dict[str, list[int]] = {}
    lines = _read_lines(file, setting, "word")
    for number, word in lines.items():
        places.setdefault(word.casefold(), []).append(number)
    if repeated := [numbers for numbers in places.values() if len(numbers) > 1]:
        first, more = repeated[0], len(repeated) - 1
        raise InputError(
            f"Expected each word of {setting} once, for none of two that are the same can be chosen, got"
            f" {lines[first[0]]!r} in lines {' and '.join(map(str, first))} of {file}"
            f"{f', and {more} more twice' if more else ''}: remove them."
        )
    return tuple(lines.values())


def _read_lines(file: Path, setting: str, noun: str) -> dict[int, str]:
    """Return the lines of a text file that are not empty, by their number from 1, each with single spaces."""
    expected = f"{setting} to be a text file with a {noun} on each line"
    lines = read_text(file.expanduser(), expected, "give another file").splitlines()
    return {number: " ".join(line.split()) for number, line in enumerate(lines, 1) if line.strip()}
