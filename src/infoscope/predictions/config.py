"""What a zero-shot head is asked, and of how many images."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated, Any

from infoscope.runtime.bounds import Batch, Bounds, Count, FilePath, Seed, check
from infoscope.runtime.errors import InputError


class Templates(Enum):
    """Sentences into which class names are put: for the scenes, OpenAI's 80 for ImageNet, or a list of one's own."""

    scenes = "scenes"
    imagenet = "imagenet"
    list = "list"


@dataclass
class PredictConfig:
    """Zero-shot predictions; their temperature is the model's own."""

    templates: Templates = Templates.scenes
    template_list: list[str] = field(default_factory=list)
    """For templates=list: sentences with one {} each. With ImageNet, one instead of 80 spares a CPU an hour."""
    class_names: FilePath | None = None
    """A text file, one name per line, in the order of the target's labels where there are any (of class folders:
    ascending); null: the data's own classes, ImageNet's for data without labels."""
    target: str = "class"
    """Which labels predictions are held against. Only "class" has names of its own; others need `class_names`."""
    n_images: Count | None = None
    """Test images, drawn at random; null: all."""
    seed: Seed = 0
    """Of the images drawn."""
    batch_images: Batch = 32
    """Images sent through the remaining blocks at a time, or read by `stage=quality`: bounds memory, changes no result
    beyond rounding."""
    n_shown: Annotated[int, Bounds(0, 1000)] = 5
    """Images shown for each group: those whose prediction changes most."""
    n_candidates: Count = 64
    """Features tried, one by one, for each of those images: the group's most active ones in it."""

    def __post_init__(self) -> None:
        check(self, "predict")
        if (self.templates is Templates.list) != bool(self.template_list):
            raise InputError(
                "Expected predict.template_list for predict.templates=list and for nothing else, got"
                f" predict.templates={self.templates.name} with {len(self.template_list)} sentences."
            )
        for template in self.template_list:
            if template.count("{}") != 1:
                raise InputError(f"Expected one {{}} in each of predict.template_list, got {template!r}.")

    @property
    def unread(self) -> dict[str, str]:
        """The settings that are not read, and in words what would read them."""
        unread = {}
        if self.n_images is None:
            unread["seed"] = "where predict.n_images draws images: drop it, or give that"
        if self.n_shown == 0:
            unread["n_candidates"] = "where images are shown: drop it, or predict.n_shown=0"
        return unread

    def cache_key_fields(self) -> dict[str, Any]:
        """Return the settings that change results, apart from the prompts, as plain JSON: no path, no batch size."""
        return {name: getattr(self, name) for name in ("n_images", "seed", "n_shown", "n_candidates")}
