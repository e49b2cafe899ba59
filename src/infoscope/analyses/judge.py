"""How alike images are to a judge: a vector of unit norm per image, of a backbone that may be another one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Int64

from infoscope.data.images import ImageBatch
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part, compute_parts, cut_images
from infoscope.runtime.profile import Kind, spent_on
from infoscope.vision.backbone import Backbone


@dataclass(frozen=True)
class JudgedImages:
    """The images of a split as a judge sees them.

    embeddings: [n_images, d_judge], rows of unit norm.
    image_index: position of each row's image in its image set; images that could not be read have no row.
    """

    embeddings: Float32[np.ndarray, "n_images d_judge"]
    image_index: Int64[np.ndarray, " n_images"]

    def of_images(self, image_index: Int64[np.ndarray, " n"]) -> Float32[np.ndarray, "n d_judge"]:
        """Return the rows of some images, by their positions in the image set.

        Raises:
            InputError: the judge has not seen one of them.
        """
        rows = np.searchsorted(self.image_index, image_index)
        if not np.array_equal(self.image_index[np.minimum(rows, len(self.image_index) - 1)], image_index):
            raise InputError(
                "Expected the judge to have seen every image whose tokens were measured, but some could not be read"
                " when it looked: check the disk, delete its artifact (kind judge) and run again."
            )
        return self.embeddings[rows]

    def save(self, folder: Path) -> None:
        """Write embeddings.npy and image_index.npy into an existing folder."""
        save_result(folder, "judge", vars(self), one_by_one=True)

    @classmethod
    def load(cls, folder: Path) -> JudgedImages:
        """Read what `save` wrote."""
        arrays, _ = load_result(folder, "judge", ("embeddings", "image_index"))
        return cls(**arrays)


def judge_images(
    backbone: Backbone, read: Callable[[Int64[np.ndarray, " n"]], Iterator[ImageBatch]], n_images: int, place: Path
) -> JudgedImages:
    """Return the images of a set as a backbone sees them.

    Args:
        read: some positions of the set -> its images there, uint8 [batch, 3, image_px, image_px] of the backbone's own
            side; images that cannot be read may be left out.
        n_images: of the set.
        place: <folder>/<name> of the files of finished parts, see `compute_parts`.

    Raises:
        InputError: no image, an embedding that is not finite, or as `Backbone.pool_images`.
    """
    parts = cut_images(n_images)

    def judge(number: int) -> Part:
        index, vectors = [torch.zeros(0, dtype=torch.int64)], []
        for batch in read(np.arange(n_images)[parts[number]]):
            with spent_on(Kind.forward):
                vectors.append(backbone.pool_images(batch.images).float().cpu())
            index.append(batch.index)
        return {"image_index": torch.cat(index), **({"embeddings": torch.cat(vectors)} if vectors else {})}

    found = list(compute_parts(len(parts), judge, place.parent, place.name))
    index = torch.cat([part["image_index"] for part in found])
    if len(index) == 0:
        raise InputError("Expected images for the judge to look at, got none: check the data set and its split.")
    embeddings = torch.cat([part["embeddings"] for part in found if "embeddings" in part])
    if not torch.isfinite(embeddings).all():
        raise InputError("The judge gave NaN or Inf for an image: check its weights, or use judge.precision=float32.")
    return JudgedImages(embeddings.numpy(), index.numpy())
