"""Latents that carry what misleads, and predictions without them: worst-group accuracy before and after.

What misleads is a target that goes with the class in most images without being part of it, such as the place of a bird
or the texture of an object. Groups are (class, whether that target has the value which is most frequent in the class's
training images). The latents are chosen on training images alone, by how much more of their mean activation in an image
the target explains among images of one class than the class among images of one value of the target: components of
variance, times the squared norm of the decoder row. Random latents of equal activation mass, none of the chosen ones
among them, say what removing anything does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64

from infoscope.analyses.image_codes import ImageCodes
from infoscope.predictions.config import PredictConfig
from infoscope.predictions.inputs import PredictInputs, TokenEditor
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.parts import Part, compute_parts, cut_images
from infoscope.runtime.profile import Kind, counted, spent_on
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Progress, Role, make_ablations, no_progress
from infoscope.scope.config import Control

CHOSEN, CONTROL = "chosen", "random"


@dataclass(frozen=True)
class Suppressed:
    """What is removed: nothing, the first `n_latents` of the chosen order, or random latents of their mass.

    kind: "", `CHOSEN` or `CONTROL`. size: how many were asked for. draw: of random latents, else -1.
    mass: share of the removed latents in the activation mass of training images, 0..1.
    """

    kind: str = ""
    size: int = 0
    draw: int = -1
    n_latents: int = 0
    mass: float = 0.0


@dataclass(frozen=True)
class SuppressionResult:
    """Zero-shot predictions of test images without sets of latents, of one SAE.

    spurious: the target that misleads. class_names: of the classes.
    typical: its most frequent value in training images of each class.
    order: the latents that are removed, the first the one that carries most of it.
    image_index: position of each image in its set. classes: its label.
    is_typical: whether the target has the typical value there.
    variants: what is removed, nothing first. correct: whether predictions are right.
    """

    spurious: str
    class_names: tuple[str, ...]
    typical: Int64[np.ndarray, " n_classes"]
    order: Int64[np.ndarray, " n_order"]
    image_index: Int64[np.ndarray, " n_images"]
    classes: Int64[np.ndarray, " n_images"]
    is_typical: Bool[np.ndarray, " n_images"]
    variants: tuple[Suppressed, ...]
    correct: Bool[np.ndarray, "n_variants n_images"]

    def accuracy(self, is_typical: bool | None = None) -> Float64[np.ndarray, " n_variants"]:
        """Return the share of images that are predicted right: of all, or of typical or other ones; NaN of none."""
        chosen = np.ones_like(self.is_typical) if is_typical is None else self.is_typical == is_typical
        of = self.correct[:, chosen]
        return of.mean(axis=1) if of.shape[1] else np.full(len(of), np.nan)

    def groups(self) -> Int64[np.ndarray, " n_images"]:
        """Return 2 class + (0: typical, 1: not) of each image."""
        return 2 * self.classes + ~self.is_typical

    def group_sizes(self) -> Int64[np.ndarray, " n_groups"]:
        """Return the images of each group."""
        return np.bincount(self.groups(), minlength=2 * len(self.class_names))

    def by_group(self) -> Float64[np.ndarray, "n_variants n_groups"]:
        """Return the accuracy in each group; NaN of none."""
        groups, sizes = self.groups(), self.group_sizes()
        right = np.stack([np.bincount(groups, weights=of, minlength=len(sizes)) for of in self.correct])
        return np.divide(right, sizes, out=np.full(right.shape, np.nan), where=sizes > 0)

    def worst_group(self, min_images: int) -> Float64[np.ndarray, " n_variants"]:
        """Return the accuracy in the worst of the groups that have so many images; NaN where none has."""
        enough = self.group_sizes() >= min_images
        return self.by_group()[:, enough].min(axis=1) if enough.any() else np.full(len(self.variants), np.nan)

    def save(self, folder: Path) -> None:
        """Write suppression.npz and suppression.json into an existing folder."""
        values = {**vars(self), "variants": [vars(one) for one in self.variants]}
        save_result(folder, "suppression", values, compressed=True)

    @classmethod
    def load(cls, folder: Path) -> SuppressionResult:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "suppression")
        variants = tuple(Suppressed(**one) for one in facts["variants"])
        return cls(**{**arrays, **facts, "class_names": tuple(facts["class_names"]), "variants": variants})


def find_typical(
    classes: Int64[np.ndarray, " n_images"], spurious: Int64[np.ndarray, " n_images"], n_classes: int
) -> Int64[np.ndarray, " n_classes"]:
    """Return the most frequent value of a target in each class's images: the least of several, 0 without images."""
    table = np.zeros((n_classes, int(spurious.max(initial=0)) + 1), dtype=np.int64)
    np.add.at(table, (classes, spurious), 1)
    return table.argmax(axis=1)


def score_spurious(
    codes: ImageCodes,
    classes: Int64[np.ndarray, " n_images"],
    spurious: Int64[np.ndarray, " n_images"],
    norms: Float[np.ndarray, " d_sae"],
) -> Float64[np.ndarray, " d_sae"]:
    """Return how much more of each latent a target explains within classes than the class within values of the target.

    Args:
        codes: of training images.
        classes, spurious: labels of these images.
        norms: of the decoder rows, whose squares are factors.
    """
    of_target, of_class = explain_within(codes, classes, spurious), explain_within(codes, spurious, classes)
    return norms**2 * (of_target - of_class)


def explain_within(
    codes: ImageCodes, classes: Int64[np.ndarray, " n_images"], spurious: Int64[np.ndarray, " n_images"]
) -> Float64[np.ndarray, " d_sae"]:
    """Return how much of the variance of each latent's mean activation a target explains among images of one class.

    Less what as many values without meaning would explain: without any relation about 0, and negative as often.
    """
    means, n = codes.matrix("means"), codes.n_images
    cells, cell = np.unique(np.stack([classes, spurious]), axis=1, return_inverse=True)
    cell, of_class = cell.ravel(), cells[0]
    sizes = np.bincount(cell)
    sums = np.zeros((len(sizes), codes.d_sae))
    for place in range(len(sizes)):
        sums[place] = means[np.flatnonzero(cell == place)].sum(axis=0)
    in_cells = (sums**2 / sizes[:, None]).sum(axis=0)
    by_class, class_sizes = (np.zeros((of_class.max() + 1, *of.shape[1:])) for of in (sums, sizes))
    np.add.at(by_class, of_class, sums)
    np.add.at(class_sizes, of_class, sizes)
    has = class_sizes > 0
    in_classes = (by_class[has] ** 2 / class_sizes[has, None]).sum(axis=0)
    squares = np.asarray(means.power(2).sum(axis=0)).ravel()
    n_free = len(sizes) - int(has.sum())
    noise = (squares - in_cells) / max(1, n - len(sizes))
    return (in_cells - in_classes - n_free * noise) / n


def choose_suppressed(
    scores: Float64[np.ndarray, " d_sae"],
    mass: Float64[np.ndarray, " d_sae"],
    sizes: Sequence[int],
    n_draws: int,
    seed: int,
) -> tuple[Int64[np.ndarray, " n_order"], list[tuple[Suppressed, Bool[np.ndarray, " d_sae"]]]]:
    """Return the latents by their score, and what is removed: nothing, the first ones, random ones of their mass.

    Latents with a score of 0 or below are never chosen, so that a set may be smaller than was asked for.

    Args:
        mass: activation times norm of the decoder row of each latent, in training images; only ratios matter.
    """
    order = np.argsort(-scores, kind="stable")[: max(sizes)]
    order = order[scores[order] > 0]
    found = [(Suppressed(), np.zeros(len(scores), dtype=bool))]
    for size in sizes:
        members = np.zeros(len(scores), dtype=bool)
        members[order[:size]] = True
        drawable = (mass > 0) & ~members
        modes, controls = [EditMode.error_preserving], [Control.mass]
        for of in make_ablations({CHOSEN: members}, drawable, mass, n_draws, seed, modes, controls):
            if of.role in (Role.group, Role.control):
                kind, draw = (CHOSEN, -1) if of.draw is None else (CONTROL, of.draw)
                one = Suppressed(kind, size, draw, of.n_latents, of.mass_share_train)
                found.append((one, np.asarray(of.ablated)))
    return order, found


@torch.no_grad()
def measure_suppression(
    inputs: PredictInputs,
    head: ZeroShotHead,
    removed: Sequence[Bool[np.ndarray, " d_sae"]],
    classes: Int64[np.ndarray, " n_all_images"],
    config: PredictConfig,
    progress: Progress = no_progress,
    folder: Path | None = None,
) -> tuple[Int64[np.ndarray, " n_images"], Bool[np.ndarray, "n_variants n_images"]]:
    """Return which test images take part, by their places, and whether each is predicted right without some latents.

    The SAE's error stays.

    Args:
        classes: of every image of the test set.
        folder: see `compute_parts`.

    Raises:
        InputError: no test image.
    """
    rows = inputs.choose_rows(config.n_images, config.seed)
    parts, groups = cut_images(len(rows)), [torch.from_numpy(of).to(inputs.device) for of in removed]
    index = np.asarray(inputs.tokens.image_index)

    def predict_part(number: int) -> Part:
        n_done, found = parts[number].start, []
        for batch, tokens in counted(Kind.reading, inputs.iterate(rows[parts[number]], config.batch_images)):
            editor, labels = TokenEditor(inputs, tokens), torch.from_numpy(classes[index[batch]]).to(inputs.device)
            right = []
            for of in groups:
                edited = editor.edit(of, EditMode.error_preserving)
                with spent_on(Kind.forward):
                    embeddings = inputs.backbone.embed_tokens(edited, inputs.layer).float()
                right.append(head.log_probabilities(embeddings).argmax(-1) == labels)
            found.append(torch.stack(right))
            n_done += len(batch)
            progress("suppressing", n_done, len(rows))
        return {"correct": torch.cat(found, dim=1)}

    joined = compute_parts(len(parts), predict_part, folder, "suppression")
    return index[rows], torch.cat([part["correct"] for part in joined], dim=1).numpy()
