"""The text tower's prompts: class names, and the sentences they stand in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from infoscope.data.images import ImageSet, Truth
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.predictions.config import PredictConfig, Templates
from infoscope.runtime.errors import InputError

SCENE_TEMPLATES = ("a {}", "a small {}", "a medium {}", "a large {}")
"""As the captions name an object. On 400 training scenes the shipped scenes_clip is right in 98.2% by these, and in
89.5% by "a photo of a {}", which no caption says."""


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
        names = read_class_names(Path(config.class_names))
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
    if len(names) > np.iinfo(np.int16).max:  # of which predictions are kept
        raise InputError(f"Expected at most {np.iinfo(np.int16).max} classes, got {len(names)}.")
    return names


def get_imagenet_names() -> tuple[str, ...]:
    """Return open_clip's names of the 1,000 ImageNet classes."""
    from open_clip import zero_shot_metadata

    return tuple(zero_shot_metadata.IMAGENET_CLASSNAMES)


def get_imagenet_templates() -> tuple[str, ...]:
    """Return OpenAI's 80 sentences for ImageNet, as open_clip has them."""
    from open_clip import zero_shot_metadata

    return tuple(template("{}") for template in zero_shot_metadata.OPENAI_IMAGENET_TEMPLATES)


def read_class_names(file: Path, setting: str = "predict.class_names") -> tuple[str, ...]:
    """Return the lines of a text file without the empty ones.

    Args:
        setting: that names the file, for the error.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        lines = file.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"Expected {setting} to be a text file with one class per line, but {file} cannot be read"
            f" ({type(error).__name__})."
        ) from error
    return tuple(line.strip() for line in lines if line.strip())
