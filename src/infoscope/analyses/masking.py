"""PatchSAE's masking curve: a zero-shot head's predictions while the top latents of each image's class are kept alone,
or dropped (Lim et al., 2025).

The mask of an image is that of its true class. So a curve says where the information on a class lies; it is no accuracy
of a classifier, and may lie above that of the original tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int32, Int64
from torch import Tensor

from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.labels import rank_class_latents
from infoscope.predictions.config import PredictConfig
from infoscope.predictions.inputs import PredictInputs, put_tokens, take_tokens
from infoscope.predictions.run import PART_IMAGES
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part, compute_parts, cut
from infoscope.runtime.profile import Kind, counted, spent_on
from infoscope.sae.edit import EditMode, GroupEditor
from infoscope.scope.ablations import Progress, no_progress
from infoscope.vision.backbone import Tokens

CLASS, RANDOM = "class", "random"
"""Curves beside those of the groups: the class's own latents, and as many random ones."""
_NEVER = 2**31 - 1


@dataclass(frozen=True, eq=False)
class Curve:
    """An order of latents for each class, of which the first n are kept, or dropped.

    name: CLASS, RANDOM, or a group of latents that these are chosen from.
    order: -1 behind a class's last one.
    members: what all of them are, in the order or not; None: all are not asked for.
    draw: of a random order, from 0.
    """

    name: str
    order: Int64[np.ndarray, "n_classes k_max"]
    members: Bool[np.ndarray, " d_sae"] | None = None
    draw: int | None = None

    def list_numbers(self, n_latents: Sequence[int], d_sae: int) -> list[int]:
        """Return how many latents are kept or dropped: the numbers below d_sae, and d_sae for all of them."""
        return [n for n in n_latents if n < d_sae] + ([] if self.members is None else [d_sae])

    def count(self, n: int) -> Int64[np.ndarray, " n_classes"]:
        """Return how many latents the first n of each class are: fewer where a class has fewer."""
        if self.members is not None and n == len(self.members):
            return np.full(len(self.order), self.members.sum())
        return (self.order[:, :n] >= 0).sum(1)

    def count_distinct(self, n: int, classes: Int64[np.ndarray, " n_some"]) -> int:
        """Return how many latents the first n of some classes are, those that several have counted once."""
        if self.members is not None and n == len(self.members):
            return int(self.members.sum())
        first = self.order[classes, :n]
        return len(np.unique(first[first >= 0]))

    def find_places(self, classes: Int64[np.ndarray, " n"], d_sae: int) -> Int32[Tensor, "n d_sae"]:
        """Return the place of each latent in the orders of some classes, so that the first n are those below n.

        Members that are not in the order are in the place d_sae - 1, others in none that is asked for.
        """
        order = torch.from_numpy(self.order[classes])
        places = torch.full((len(classes), d_sae + 1), _NEVER, dtype=torch.int32)
        if self.members is not None:
            places[:, :d_sae][:, torch.from_numpy(self.members)] = d_sae - 1
        numbers = torch.arange(order.shape[1], dtype=torch.int32).expand_as(order)
        places.scatter_(1, order.where(order >= 0, d_sae), numbers)  # what is no latent goes behind the last one
        return places[:, :d_sae]


def make_curves(
    codes: ImageCodes,
    labels: Int64[np.ndarray, " n_images"],
    n_classes: int,
    n_latents: Sequence[int],
    groups: Mapping[str, Bool[np.ndarray, " d_sae"]],
    n_draws: int,
    seed: int,
) -> list[Curve]:
    """Return the class's own latents (see `rank_class_latents`), as many random ones, and those of each group alone.

    Args:
        codes: of the images that latents are ranked on; random ones are drawn from those that fire there, for each
            class anew.
        labels: of the rows of `codes`, 0..n_classes - 1.
        n_latents: how many are kept or dropped; those not below d_sae are left out.
        groups: of latents, such as high and low scope.
        n_draws: random orders.
        seed: of the draws.
    """
    k = max((n for n in n_latents if n < codes.d_sae), default=0)
    order = rank_class_latents(codes, labels, n_classes, k)
    curves = [Curve(CLASS, order, np.ones(codes.d_sae, dtype=bool))]
    living, n_ranked = np.unique(codes.latents), (order >= 0).sum(1)
    for draw in range(n_draws):
        drawn = np.full_like(order, -1)
        for one_class, n in enumerate(n_ranked):
            drawn[one_class, :n] = np.random.default_rng([seed, draw, one_class]).choice(living, n, replace=False)
        curves.append(Curve(RANDOM, drawn, draw=draw))
    for name, members in groups.items():
        of_group = replace(codes, n_strong=np.where(members[codes.latents], codes.n_strong, 0))
        curves.append(Curve(name, rank_class_latents(of_group, labels, n_classes, k), members))
    return curves


@dataclass(frozen=True)
class Mask:
    """One point of a curve.

    curve, draw: see `Curve`.
    n_latents: how many latents of the class are kept or dropped; d_sae: all of them.
    keeps: whether these alone are kept, or they alone dropped.
    error_kept: whether the SAE's error stays in the token (x - s z_G W_dec / c, ours), or the decoding of what is kept
        replaces it (PatchSAE's).
    n_chosen: how many these are, in the mean over images: fewer where a class has fewer.
    n_short: classes of the images that have fewer.
    n_distinct: how many these are over all classes of the images, each counted once: n_latents where all classes have
        the same ones.
    """

    curve: str
    draw: int | None
    n_latents: int
    keeps: bool
    error_kept: bool
    n_chosen: float
    n_short: int
    n_distinct: int


@dataclass(frozen=True)
class MaskingResult:
    """Zero-shot predictions under every mask, of one SAE; a class without images counts nowhere.

    ranked_on: the split whose images say which latents a class has; "test": labels of the images themselves.
    sae_bias: what was added to each coordinate of decoded tokens.
    n_ranked: latents that each class has, counted up to the largest number that was asked for.
    n_images: of each class.
    n_right: images of each class that are predicted right.
    prob_sums: sum over the images of each class of the probability of their class.
    """

    masks: tuple[Mask, ...]
    class_names: tuple[str, ...]
    d_sae: int
    ranked_on: str
    sae_bias: float
    n_ranked: Int64[np.ndarray, " n_classes"]
    n_images: Int64[np.ndarray, " n_classes"]
    n_right: Int64[np.ndarray, "n_masks n_classes"]
    prob_sums: Float64[np.ndarray, "n_masks n_classes"]

    def top1(self, place: int) -> float:
        """Return the share of images that are predicted right under a mask, 0..1."""
        return float(self.n_right[place].sum() / self.n_images.sum())

    def true_prob(self, place: int) -> float:
        """Return the mean probability of the images' own class under a mask, 0..1."""
        return float(self.prob_sums[place].sum() / self.n_images.sum())

    def class_top1(self, place: int) -> Float64[np.ndarray, " n_classes"]:
        """Return the share of each class's images that are predicted right under a mask; NaN of a class without."""
        n = np.where(self.n_images > 0, self.n_images, np.nan)
        return self.n_right[place] / n

    def save(self, folder: Path) -> None:
        """Write masking.npz and masking.json into an existing folder."""
        save_result(folder, "masking", vars(self) | {"masks": [asdict(mask) for mask in self.masks]})

    @classmethod
    def load(cls, folder: Path) -> MaskingResult:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "masking")
        masks = tuple(Mask(**mask) for mask in facts["masks"])
        values: dict[str, Any] = {**arrays, **facts, "masks": masks, "class_names": tuple(facts["class_names"])}
        return cls(**values)


@dataclass(frozen=True)
class MaskingInputs:
    """What is masked, and how.

    inputs: the SAE, the tokens of the test images, the backbone that goes on from them.
    curves: as `make_curves` gives them, the class's own latents first.
    n_latents: as for `make_curves`.
    labels: of every image of the test set, 0..n_classes - 1.
    modes: whether the SAE's error stays, or what is kept is decoded, or both.
    sae_bias: added to each coordinate of decoded tokens; PatchSAE's code adds 0.1051.
    ranked_on: see `MaskingResult`.
    """

    inputs: PredictInputs
    head: ZeroShotHead
    curves: Sequence[Curve]
    n_latents: Sequence[int]
    labels: Int64[np.ndarray, " n_all_images"]
    modes: Sequence[EditMode] = tuple(EditMode)
    sae_bias: float = 0.0
    ranked_on: str = "train"

    def list_masks(self, labels: Int64[np.ndarray, " n_images"]) -> tuple[Mask, ...]:
        """Return every mask of images with these labels, in the order of `edit`."""
        masks, d_sae, present = [], self.inputs.sae.d_sae, np.unique(labels)
        for curve in self.curves:
            for n in curve.list_numbers(self.n_latents, d_sae):
                count = curve.count(n)
                n_short = int((count[present] < n).sum()) if n < d_sae else 0
                counts = float(count[labels].mean()), n_short, curve.count_distinct(n, present)
                for keeps in (True, False):
                    for mode in self.modes:
                        is_kept = mode is EditMode.error_preserving
                        masks.append(Mask(curve.name, curve.draw, n, keeps, is_kept, *counts))
        return tuple(masks)

    def edit(self, tokens: Tokens, labels: Int64[np.ndarray, " batch"]) -> Iterator[Tokens]:
        """Yield the tokens of a batch of images under every mask, see `list_masks`.

        Args:
            labels: of the images.
        """
        sae, reads = self.inputs.sae, self.inputs.reads
        editor = GroupEditor(sae, take_tokens(tokens, reads))
        classes, which = np.unique(labels, return_inverse=True)
        indices = editor.acts.indices.unflatten(0, (len(labels), -1))
        of_image = torch.from_numpy(which).to(indices.device)[:, None, None]
        for curve in self.curves:
            places = curve.find_places(classes, sae.d_sae).to(indices.device)[of_image, indices].flatten(0, 1)
            for n in curve.list_numbers(self.n_latents, sae.d_sae):
                chosen = places < n
                for removed in (~chosen, chosen):
                    written = editor.contribution_of(removed)
                    for mode in self.modes:
                        edited = editor.whole(mode) - written
                        if mode is EditMode.reconstruct and self.sae_bias:
                            edited += self.sae_bias
                        yield put_tokens(tokens, edited, reads)


@torch.no_grad()
def measure_masking(
    masking: MaskingInputs,
    config: PredictConfig,
    progress: Progress = no_progress,
    progress_folder: Path | None = None,
) -> MaskingResult:
    """Return the predictions under every mask.

    Args:
        config: which images take part, and how many at a time.
        progress_folder: see `compute_parts`.

    Raises:
        InputError: no test image, NaN or Inf in a prediction.
    """
    inputs, head = masking.inputs, masking.head
    rows = inputs.choose_rows(config.n_images, config.seed)
    labels = masking.labels[inputs.tokens.image_index]  # of all rows
    parts, n_classes = cut(len(rows), PART_IMAGES), len(head.class_names)

    def predict_part(number: int) -> Part:
        found: list[Tensor] = []
        n_done, batches = parts[number].start, inputs.iterate(rows[parts[number]], config.batch_images)
        for batch, tokens in counted(Kind.reading, batches):
            own = torch.from_numpy(labels[batch]).to(inputs.device)
            measured = [_measure(masking, edited, own) for edited in masking.edit(tokens, labels[batch])]
            found.append(torch.stack(measured).cpu())
            n_done += len(batch)
            progress("masking", n_done, len(rows))
        right, prob = torch.cat(found, dim=1).unbind(-1)
        if not torch.isfinite(prob).all():
            raise InputError(
                "The predictions on masked tokens hold NaN or Inf: check the SAE and the tokens it was trained on."
            )
        return {"right": right > 0, "prob": prob}

    masks = masking.list_masks(labels[rows])
    right, prob = np.zeros((len(masks), n_classes), np.int64), np.zeros((len(masks), n_classes))
    for some, part in zip(parts, compute_parts(len(parts), predict_part, progress_folder, "masking"), strict=True):
        own = labels[rows[some]]
        for total, values in ((right, part["right"].numpy()), (prob, part["prob"].numpy().astype(np.float64))):
            np.add.at(total.T, own, values.T)
    return MaskingResult(
        masks,
        head.class_names,
        inputs.sae.d_sae,
        masking.ranked_on,
        masking.sae_bias,
        n_ranked=(masking.curves[0].order >= 0).sum(1),
        n_images=np.bincount(labels[rows], minlength=n_classes),
        n_right=right,
        prob_sums=prob,
    )


def _measure(masking: MaskingInputs, edited: Tokens, labels: Int64[Tensor, " batch"]) -> Float[Tensor, "batch 2"]:
    """Return of each image 1 where its class is the most probable, else 0, and the probability of its class."""
    inputs = masking.inputs
    with spent_on(Kind.forward):
        log_p = masking.head.log_probabilities(inputs.backbone.embed_tokens(edited, inputs.layer))
    own = log_p.gather(-1, labels[:, None])[:, 0]
    return torch.stack([(log_p.argmax(-1) == labels).float(), own.exp()], dim=-1)
