"""Which latents zero-shot predictions rest on: their attributions, summed over images, and what tests these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from infoscope.analyses.image_attribution import Attributed, AttributionInputs, attribute
from infoscope.analyses.latent_orders import measure_orders
from infoscope.predictions.config import PredictConfig
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part, compute_parts, cut_images
from infoscope.runtime.profile import Kind, counted
from infoscope.scope.ablations import Progress, choose_rows, no_progress
from infoscope.scope.top_images import TopImages


@dataclass(frozen=True)
class AttributionResult:
    """What latents do for the class of each image, on test images, of one SAE.

    towards: "predicted" or "true": which class that is.
    n_top: images of which `alignment` is.
    n_images: of each class.
    n_firing: images in which each latent fires.
    signed: sum over images of the attribution of each latent.
    attribution: sum of its size over the images of each class. mass: sum of activation times norm of the decoder row;
        of signed activations those above 0 alone.
    alignment: semantic alignment of each latent, see `compute_alignment`; NaN: it fires in fewer than `n_top` images.
    aligned_class: the class that it is of; -1: none.
    tested: positions in the image set of the images on which orders of latents are compared.
    n_ranked: latents that fire in each of them.
    integrated: sum over the tested images of the size of each latent's integrated gradients.
    agreement: rank correlation, over these, of each of `METHODS` with the exact loss of the cosine; NaN of fewer than
        two latents, or equal ones.
    curves: [deletion or insertion, method, steps + 1, image, probability or cosine] of the class; the first and the
        last step are nothing and all of what is removed, or kept.
    n_groups: of latents that share a gradient halfway, see `image_attribution`; None: the gradient is that at the
        tokens as they are.
    """

    towards: str
    class_names: tuple[str, ...]
    n_top: int
    n_images: Int64[np.ndarray, " n_classes"]
    n_firing: Int64[np.ndarray, " d_sae"]
    signed: Float64[np.ndarray, " d_sae"]
    attribution: Float32[np.ndarray, "n_classes d_sae"]
    mass: Float32[np.ndarray, "n_classes d_sae"]
    alignment: Float64[np.ndarray, " d_sae"]
    aligned_class: Int64[np.ndarray, " d_sae"]
    tested: Int64[np.ndarray, " n_tested"]
    n_ranked: Int64[np.ndarray, " n_tested"]
    integrated: Float64[np.ndarray, " d_sae"]
    agreement: Float32[np.ndarray, "n_methods n_tested"]
    curves: Float32[np.ndarray, "2 n_methods n_steps_plus_1 n_tested 2"]
    n_groups: int | None = None

    @property
    def d_sae(self) -> int:
        """Latents."""
        return len(self.n_firing)

    @property
    def total(self) -> Float64[np.ndarray, " d_sae"]:
        """Sum over all images of the size of each latent's attribution."""
        return self.attribution.sum(axis=0, dtype=np.float64)

    @property
    def share(self) -> Float64[np.ndarray, " d_sae"]:
        """Share of each latent in the size of all attributions, 0..1; NaN where nothing has any."""
        total = self.total
        return total / total.sum() if total.any() else np.full(self.d_sae, np.nan)

    def mean_size(self) -> Float64[np.ndarray, " d_sae"]:
        """Return the mean size of each latent's attribution over the images in which it fires; NaN: it never does."""
        return np.divide(self.total, self.n_firing, out=np.full(self.d_sae, np.nan), where=self.n_firing > 0)

    def mean_signed(self) -> Float64[np.ndarray, " d_sae"]:
        """Return the mean attribution of each latent over the images in which it fires; NaN: it never does."""
        return np.divide(self.signed, self.n_firing, out=np.full(self.d_sae, np.nan), where=self.n_firing > 0)

    def split(self, groups: Mapping[str, Bool[np.ndarray, " d_sae"]]) -> GroupShares:
        """Return how much of attribution and of activation lies in groups of latents, of each class."""
        members = np.array(list(groups.values()), dtype=np.float64).reshape(len(groups), self.d_sae).T

        def divide(table: Float[np.ndarray, "n d_sae"]) -> Float64[np.ndarray, "n n_groups"]:
            whole = table.sum(axis=1, dtype=np.float64)[:, None]
            return np.divide(table @ members, whole, out=np.full((len(table), len(groups)), np.nan), where=whole > 0)

        attribution, mass = (divide(of.sum(axis=0, keepdims=True))[0] for of in (self.attribution, self.mass))
        by_class, mass_by_class = divide(self.attribution), divide(self.mass)
        return GroupShares(tuple(groups), attribution, divide(self.integrated[None])[0], mass, by_class, mass_by_class)

    def area(self, way: int, what: int) -> Float64[np.ndarray, "n_methods n_tested"]:
        """Return the mean height of each image's curve (trapezoids).

        Args:
            way: `DELETION` or `INSERTION`.
            what: `PROB` or `COSINE`.
        """
        curve = self.curves[way, ..., what].astype(np.float64)
        return (curve[:, 1:] + curve[:, :-1]).mean(axis=1) / 2

    def save(self, folder: Path) -> None:
        """Write attribution.npz and attribution.json into an existing folder."""
        save_result(folder, "attribution", vars(self), compressed=True)

    @classmethod
    def load(cls, folder: Path) -> AttributionResult:
        """Read what `save` wrote."""
        arrays, facts = load_result(folder, "attribution")
        return cls(**{**arrays, **facts, "class_names": tuple(facts["class_names"])})


class GroupShares(NamedTuple):
    """Shares, 0..1, of groups of latents in the size of all attributions and in all activation.

    attribution, mass: over all images. integrated: by integrated gradients, over the tested images.
    by_class, mass_by_class: attribution and mass over the images of each class; NaN: it has none.
    """

    groups: tuple[str, ...]
    attribution: Float64[np.ndarray, " n_groups"]
    integrated: Float64[np.ndarray, " n_groups"]
    mass: Float64[np.ndarray, " n_groups"]
    by_class: Float64[np.ndarray, "n_classes n_groups"]
    mass_by_class: Float64[np.ndarray, "n_classes n_groups"]


def compute_alignment(
    top: TopImages,
    embeddings: Float[Tensor, "n_images embed_dim"],
    labels: Int64[np.ndarray, " n_images"],
    head: ZeroShotHead,
    empty: Float[Tensor, " embed_dim"],
) -> tuple[Float64[np.ndarray, " d_sae"], Int64[np.ndarray, " d_sae"]]:
    """Return the semantic alignment of each latent, -2..2, and the class that it is of (Attributing CLIP).

    That is the cosine of the mean embedding of its top images with the text of their class, minus that with the empty
    text. Their class is the one with most of their activation (ours: their code takes the best of all its texts, of
    embeddings as they are). NaN, and -1, where fewer images fire.

    Args:
        top: the images in which each latent has most mass, by their rows in `embeddings`; on the CPU.
        embeddings: of unit norm.
        labels: of these images, 0..n_classes - 1.
        empty: the embedding of the empty text.
    """
    values, images = top.values.numpy().astype(np.float64), top.images.numpy()
    n, n_classes = len(values), len(head.class_names)
    enough = (values > 0).all(axis=1)
    found, classes = np.full(n, np.nan), np.full(n, -1, dtype=np.int64)
    weights, vectors, nothing = (of.cpu().double().numpy() for of in (head.weights, embeddings, empty))
    for latent in np.flatnonzero(enough):
        some = images[latent]
        classes[latent] = np.bincount(labels[some], values[latent], n_classes).argmax()
        mean = vectors[some].mean(axis=0)
        found[latent] = mean @ (weights[classes[latent]] - nothing) / np.linalg.norm(mean)
    return found, classes


@torch.no_grad()
def measure_attribution(
    wanted: AttributionInputs,
    config: PredictConfig,
    progress: Progress = no_progress,
    progress_folder: Path | None = None,
) -> AttributionResult:
    """Return the attributions of all latents on test images, and what tests them on some of these.

    Args:
        config: which images take part, and how many at a time.
        progress_folder: see `compute_parts`.

    Raises:
        InputError: no test image, NaN or Inf in a cosine or in its gradient.
    """
    tokens = wanted.inputs.tokens
    rows = wanted.inputs.choose_rows(config.n_images, config.seed)
    sums = _sum_up(wanted, config, rows, progress, progress_folder)
    tested = rows[choose_rows(len(rows), wanted.n_tested, wanted.seed)]
    return AttributionResult(
        towards="true" if wanted.towards_true else "predicted",
        class_names=wanted.head.class_names,
        n_top=wanted.n_top,
        n_groups=wanted.n_groups,
        **sums,
        tested=np.asarray(tokens.image_index)[tested],
        **measure_orders(wanted, config, tested, progress, progress_folder),
    )


def _sum_up(
    wanted: AttributionInputs, config: PredictConfig, rows: np.ndarray, progress: Progress, folder: Path | None
) -> dict[str, Any]:
    """Return sums over all images, and the semantic alignment of each latent."""
    inputs, head, parts = wanted.inputs, wanted.head, cut_images(len(rows))
    d_sae, n_classes = inputs.sae.d_sae, len(head.class_names)

    def attribute_part(number: int) -> Part:
        n_done = parts[number].start
        signed, n_firing = torch.zeros(2, d_sae, dtype=torch.float64, device=inputs.device)
        top = TopImages(d_sae, wanted.n_top, inputs.device)
        found: list[tuple[Tensor, ...]] = []
        for batch, tokens in counted(Kind.reading, inputs.iterate(rows[parts[number]], config.batch_images)):
            index = np.asarray(inputs.tokens.image_index)[batch]
            one = attribute(inputs, head, tokens, wanted.classes_of(index), wanted.n_groups)
            signed += one.attribution.sum(0, dtype=torch.float64)
            n_firing += (one.n_on > 0).sum(0)
            order = torch.arange(n_done, n_done + len(batch), device=inputs.device)
            top.update(order, one.mass)
            found.append((one.classes, one.embeddings, *_sum_in_classes(one)))
            n_done += len(batch)
            progress("attributing", n_done, len(rows))
        classes, embeddings, places, sizes, mass = (torch.cat(some) for some in zip(*found, strict=True))
        if not (torch.isfinite(sizes).all() and torch.isfinite(embeddings).all()):
            raise InputError(
                "Predictions or their gradients hold NaN or Inf: check the SAE and the tokens it was trained on, or use"
                " model.precision=float32."
            )
        sums = {"signed": signed, "n_firing": n_firing, "places": places, "sizes": sizes, "mass": mass}
        return {**sums, **top.to_part(), "classes": classes, "embeddings": embeddings}

    totals = {name: np.zeros(n_classes * d_sae) for name in ("sizes", "mass")}
    signed, n_firing = np.zeros((2, d_sae))
    top, classes, embeddings = TopImages(d_sae, wanted.n_top), [], []
    for part in compute_parts(len(parts), attribute_part, folder, "attribution"):
        signed += part["signed"].numpy()
        n_firing += part["n_firing"].numpy()
        top.add(part)
        classes.append(part["classes"].numpy())
        embeddings.append(part["embeddings"])
        for name, total in totals.items():
            np.add.at(total, part["places"].numpy(), part[name].numpy())
    of = np.concatenate(classes)
    labels = of if wanted.labels is None else wanted.labels[np.asarray(inputs.tokens.image_index)[rows]]
    empty = inputs.backbone.embed_texts([""])[0]
    alignment, aligned_class = compute_alignment(top, torch.cat(embeddings), labels, head, empty)
    by_class = {name: total.astype(np.float32).reshape(n_classes, d_sae) for name, total in totals.items()}
    return {
        "n_images": np.bincount(of, minlength=n_classes),
        "n_firing": n_firing.astype(np.int64),
        "signed": signed,
        "attribution": by_class["sizes"],
        "mass": by_class["mass"],
        "alignment": alignment,
        "aligned_class": aligned_class,
    }


def _sum_in_classes(one: Attributed) -> tuple[Tensor, Tensor, Tensor]:
    """Return the places class * d_sae + latent that something fires in, and the sums there of size and of mass."""
    d_sae = one.mass.shape[1]
    present, of_image = one.classes.unique(return_inverse=True)
    new = torch.zeros(len(present), d_sae, dtype=torch.float64, device=one.mass.device)
    sizes, mass, n_on = (
        new.clone().index_add_(0, of_image, of.double()) for of in (one.attribution.abs(), one.mass, one.n_on)
    )
    rows, latents = (n_on > 0).nonzero(as_tuple=True)
    return present[rows] * d_sae + latents, sizes[rows, latents], mass[rows, latents]
