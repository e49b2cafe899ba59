"""Which latents a zero-shot prediction rests on: gradient times activation, and what tests it (Attributing CLIP).

Of latent j in image i, whose class is c, with activations z on the tokens t that the SAE reads, its error kept:

    A_ij = sum_t z_itj  d cos(image_i, text_c) / d z_itj  =  sum_t s_t z_itj (g_t . W_dec[j]) / scale

where g_t is the gradient of the cosine to the raw token, s_t the token's factor and `scale` the SAE's: one forward and
one backward of the blocks after the hooked one for all latents. To first order that is what the cosine loses without
the latent (`GroupEditor`'s edit). It is held against the exact loss, latent by latent, and orders of latents are held
against each other by what is left of the prediction while the first latents of an order are removed, or all but these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy.stats import rankdata
from torch import Tensor

from infoscope.predictions.config import PredictConfig
from infoscope.predictions.inputs import PredictInputs, put_tokens, take_tokens
from infoscope.predictions.zero_shot import ZeroShotHead
from infoscope.runtime.arrays import load_result, save_result
from infoscope.runtime.errors import InputError
from infoscope.runtime.parts import Part, compute_parts, cut, cut_images
from infoscope.runtime.profile import Kind, counted, spent_on
from infoscope.sae.edit import EditMode, GroupEditor
from infoscope.sae.model import SparseAutoencoder
from infoscope.scope.ablations import Progress, choose_rows, no_progress
from infoscope.vision.backbone import Backbone, Tokens

GRADIENT, INTEGRATED, ABLATION, RANDOM = "gradient", "integrated", "ablation", "random"
METHODS = {
    GRADIENT: "gradient x activation",
    INTEGRATED: "integrated gradients",
    ABLATION: "exact ablation",
    "mass_lens": "activation x logit lens",
    "lens": "logit lens",
    "mass": "activation",
    RANDOM: "random order",
}
"""By what the latents that fire in an image are put in order, in words. Activations are sums over the tokens, times the
norm of the decoder row. Integrated gradients (Sundararajan et al., 2017): activation times the mean gradient on the
way from tokens without any latent, so that attributions sum to what all latents together do. random: the image's own
gradient attributions, shuffled."""
N_INTEGRATED = 10
"""Places on that way, the middles of as many equal parts."""
PROB, COSINE = range(2)
"""What is measured of the class while latents are removed: its probability, 0..1, and its cosine, -1..1."""
DELETION, INSERTION = range(2)
"""Whether the first latents of an order are removed, or all but these."""
_PART_TESTED = 16
_ROWS_AT_ONCE = 1024
_NUMBERS = 2**24
"""Coordinates of decoder rows held at a time."""


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


class Attributed(NamedTuple):
    """What the latents of a batch of images do for their class.

    classes: of the images. embeddings: of unit norm.
    attribution: A_ij. mass: sum of z_ij over the tokens, of signed ones those above 0, times |W_dec[j]|.
    n_on: tokens on which the latent fires.
    """

    classes: Int64[Tensor, " batch"]
    embeddings: Float[Tensor, "batch embed_dim"]
    attribution: Float[Tensor, "batch d_sae"]
    mass: Float[Tensor, "batch d_sae"]
    n_on: Float[Tensor, "batch d_sae"]


@torch.no_grad()
def attribute(
    inputs: PredictInputs, head: ZeroShotHead, tokens: Tokens, classes: Int64[Tensor, " batch"] | None = None
) -> Attributed:
    """Return the attributions of all latents in a batch of images, from one forward and one backward.

    Args:
        tokens: of the hooked block.
        classes: towards which; None: the predicted ones.
    """
    sae, x = inputs.sae, take_tokens(tokens, inputs.reads)
    of, embeddings, gradient = _differentiate(inputs, head, tokens, x, classes)
    editor, n = GroupEditor(sae, x), len(x)
    (acts, indices), written = editor.acts, editor.written.values
    along = _project(gradient.flatten(0, -2), indices, sae.W_dec) / sae.scale
    place = (torch.arange(n, device=x.device).repeat_interleave(x.shape[1])[:, None] * sae.d_sae + indices).flatten()

    def add_up(entries: Float[Tensor, "n k"]) -> Float[Tensor, "batch d_sae"]:
        total = torch.zeros(n * sae.d_sae, device=x.device)
        return total.index_add_(0, place, entries.flatten().float()).view(n, sae.d_sae)

    positive = acts.clamp_min(0) if sae.activation.is_signed else acts
    mass = add_up(positive) * sae.W_dec.norm(dim=1)
    return Attributed(of, embeddings, add_up(written * along), mass, add_up((acts != 0).float()))


def _differentiate(
    inputs: PredictInputs,
    head: ZeroShotHead,
    tokens: Tokens,
    read: Float[Tensor, "batch n_read d_in"],
    classes: Int64[Tensor, " batch"] | None,
) -> tuple[Int64[Tensor, " batch"], Float[Tensor, "batch embed_dim"], Float[Tensor, "batch n_read d_in"]]:
    """Return the classes, the embeddings, and the gradient of the cosine with each image's class to what is read."""
    with torch.inference_mode(False), torch.enable_grad(), spent_on(Kind.forward):
        weights, x = head.weights.to(inputs.device).clone(), read.clone().requires_grad_()
        others = Tokens(tokens.prefix.clone(), tokens.patches.clone())  # of inference mode nothing can be recorded
        whole = put_tokens(others, x, inputs.reads)
        embeddings = inputs.backbone.embed_tokens(whole, inputs.layer, with_gradient=True).float()
        cosines = embeddings @ weights.T
        of = cosines.argmax(-1) if classes is None else classes.clone()
        (gradient,) = torch.autograd.grad(cosines.gather(1, of[:, None]).sum(), x)
    return of, embeddings.detach(), gradient


def _project(
    gradient: Float[Tensor, "n d_in"], indices: Int64[Tensor, "n k"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, "n k"]:
    """Return g_t . W_dec[j] where latent j has an entry on token t, and nowhere else."""
    n_at_once = max(1, _NUMBERS // max(1, indices.shape[1] * W_dec.shape[1]))
    parts = zip(gradient.split(n_at_once), indices.split(n_at_once), strict=True)
    return torch.cat([torch.einsum("nd,nkd->nk", g, W_dec[some]) for g, some in parts])


@torch.no_grad()
def embed_rows(backbone: Backbone, sae: SparseAutoencoder) -> Float[Tensor, "d_sae embed_dim"]:
    """Return each decoder row as the tower would embed it, were it the whole of an image: the logit lens' left side.

    Of a CLIP that pools by CLS that is the row through the final norm, which takes its length, and the projection. The
    blocks after the hooked one are left out.
    """
    rows = sae.W_dec.split(_ROWS_AT_ONCE)
    return torch.cat([backbone.embed_patches(some[:, None])[:, 0] for some in rows]).float()


class TopImages(NamedTuple):
    """The images in which each latent fires most, the first first.

    values: mass; 0 where there are fewer. rows: of the embeddings.
    """

    values: Float32[Tensor, "d_sae n_top"]
    rows: Int64[Tensor, "d_sae n_top"]

    @classmethod
    def none(cls, d_sae: int, n_top: int, device: torch.device | str = "cpu") -> TopImages:
        """Return those of no image."""
        new = torch.zeros(d_sae, n_top, device=device)
        return cls(new, new.long())

    def joined(self, values: Float[Tensor, "d_sae n"], rows: Int64[Tensor, "d_sae n"]) -> TopImages:
        """Return those of more images."""
        together, of = torch.cat([self.values, values], dim=1), torch.cat([self.rows, rows], dim=1)
        best, places = together.topk(self.values.shape[1], dim=1)
        return TopImages(best, of.gather(1, places))


def compute_alignment(
    top: TopImages,
    embeddings: Float[Tensor, "n_images embed_dim"],
    labels: Int64[np.ndarray, " n_images"],
    head: ZeroShotHead,
    empty: Float[Tensor, " embed_dim"],
) -> tuple[Float64[np.ndarray, " d_sae"], Int64[np.ndarray, " d_sae"]]:
    """Return the semantic alignment of each latent, -2..2, and the class that it is of (Attributing CLIP).

    That is the cosine of the mean embedding of its top images with the text of their class, minus that with the empty
    text. Their class is the one with most of their activation. NaN, and -1, where fewer images fire.

    Args:
        embeddings: of unit norm.
        labels: of these images, 0..n_classes - 1.
        empty: the embedding of the empty text.
    """
    values, rows = top.values.numpy().astype(np.float64), top.rows.numpy()
    n, n_classes = len(values), len(head.class_names)
    enough = (values > 0).all(axis=1)
    found, classes = np.full(n, np.nan), np.full(n, -1, dtype=np.int64)
    weights, vectors, nothing = (of.cpu().double().numpy() for of in (head.weights, embeddings, empty))
    for latent in np.flatnonzero(enough):
        some = rows[latent]
        classes[latent] = np.bincount(labels[some], values[latent], n_classes).argmax()
        mean = vectors[some].mean(axis=0)
        found[latent] = mean @ (weights[classes[latent]] - nothing) / np.linalg.norm(mean)
    return found, classes


@dataclass(frozen=True)
class AttributionInputs:
    """What is attributed, and how it is tested.

    inputs: the SAE, the tokens of the test images, the backbone that goes on from them.
    labels: of every image of the test set; None: not known.
    towards_true: whether attributions are towards the true class, which needs labels; else the predicted one.
    n_top: images of which semantic alignment is.
    n_tested: images on which orders of latents are compared, drawn at random; n_steps: of the curves.
    seed: of the draw, and of random orders.
    """

    inputs: PredictInputs
    head: ZeroShotHead
    labels: Int64[np.ndarray, " n_all_images"] | None = None
    towards_true: bool = False
    n_top: int = 20
    n_tested: int = 100
    n_steps: int = 5
    seed: int = 0

    def classes_of(self, index: Int64[np.ndarray, " batch"]) -> Int64[Tensor, " batch"] | None:
        """Return the classes towards which images are attributed, by their positions; None: the predicted ones."""
        if not self.towards_true:
            return None
        assert self.labels is not None, "the true class needs labels"
        return torch.from_numpy(self.labels[index]).to(self.inputs.device)


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
    rows = choose_rows(len(tokens), config.n_images, config.seed)
    if not len(rows):
        raise InputError("Expected test images to predict, got none: raise data.test_share, or add images.")
    sums = _sum_up(wanted, config, rows, progress, progress_folder)
    tested = rows[choose_rows(len(rows), wanted.n_tested, wanted.seed)]
    return AttributionResult(
        towards="true" if wanted.towards_true else "predicted",
        class_names=wanted.head.class_names,
        n_top=wanted.n_top,
        **sums,
        tested=np.asarray(tokens.image_index)[tested],
        **_test(wanted, config, tested, progress, progress_folder),
    )


# -- all images ----------------------------------------------------------------------------------------------------


def _sum_up(
    wanted: AttributionInputs, config: PredictConfig, rows: np.ndarray, progress: Progress, folder: Path | None
) -> dict[str, Any]:
    """Return sums over all images, and the semantic alignment of each latent."""
    inputs, head, parts = wanted.inputs, wanted.head, cut_images(len(rows))
    d_sae, n_classes = inputs.sae.d_sae, len(head.class_names)

    def attribute_part(number: int) -> Part:
        n_done = parts[number].start
        signed, n_firing = torch.zeros(2, d_sae, dtype=torch.float64, device=inputs.device)
        top = TopImages.none(d_sae, wanted.n_top, inputs.device)
        found: list[tuple[Tensor, ...]] = []
        for batch, tokens in counted(Kind.reading, inputs.iterate(rows[parts[number]], config.batch_images)):
            index = np.asarray(inputs.tokens.image_index)[batch]
            one = attribute(inputs, head, tokens, wanted.classes_of(index))
            signed += one.attribution.sum(0, dtype=torch.float64)
            n_firing += (one.n_on > 0).sum(0)
            order = torch.arange(n_done, n_done + len(batch), device=inputs.device)
            top = top.joined(one.mass.T, order.expand(d_sae, -1))
            found.append((one.classes, one.embeddings, *_sum_in_classes(one)))
            n_done += len(batch)
            progress("attributing", n_done, len(rows))
        classes, embeddings, places, sizes, mass = (torch.cat(some) for some in zip(*found, strict=True))
        if not (torch.isfinite(sizes).all() and torch.isfinite(embeddings).all()):
            raise InputError(
                "Predictions or their gradients hold NaN or Inf: check the SAE and the tokens it was trained on, or use"
                " model.precision=float32."
            )
        sums = {"signed": signed, "n_firing": n_firing, "values": top.values, "rows": top.rows}
        return {**sums, "classes": classes, "embeddings": embeddings, "places": places, "sizes": sizes, "mass": mass}

    totals = {name: np.zeros(n_classes * d_sae) for name in ("sizes", "mass")}
    signed, n_firing = np.zeros((2, d_sae))
    top, classes, embeddings = TopImages.none(d_sae, wanted.n_top), [], []
    for part in compute_parts(len(parts), attribute_part, folder, "attribution"):
        signed += part["signed"].numpy()
        n_firing += part["n_firing"].numpy()
        top = top.joined(part["values"], part["rows"])
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


# -- some images, latent by latent -----------------------------------------------------------------------------------


def _test(
    wanted: AttributionInputs, config: PredictConfig, rows: np.ndarray, progress: Progress, folder: Path | None
) -> dict[str, np.ndarray]:
    """Return what orders of latents are worth on some images."""
    parts = cut(len(rows), _PART_TESTED)
    lens = embed_rows(wanted.inputs.backbone, wanted.inputs.sae)

    def test_part(number: int) -> Part:
        found = []
        for place in range(len(rows))[parts[number]]:
            found.append(_test_image(wanted, lens, int(rows[place]), config.batch_images))
            progress("testing", place + 1, len(rows))
        joined = {name: torch.stack([one[name] for one in found], dim=-1) for name in found[0]}
        return joined | {"integrated": joined["integrated"].sum(-1, keepdim=True)}

    joined = list(compute_parts(len(parts), test_part, folder, "attribution-tests"))
    whole = {name: torch.cat([part[name] for part in joined], dim=-1).numpy() for name in joined[0]}
    integrated = whole["integrated"].sum(axis=1, dtype=np.float64)
    return {**whole, "curves": whole["curves"].swapaxes(-1, -2), "integrated": integrated}


def _test_image(wanted: AttributionInputs, lens: Float[Tensor, "d_sae embed_dim"], row: int, n_at_once: int) -> Part:
    """Return the agreement of each order with exact ablation in one image, and its curves."""
    inputs, sae = wanted.inputs, wanted.inputs.sae
    tokens = inputs.load(np.array([row]))
    index = np.asarray(inputs.tokens.image_index)[[row]]
    one = attribute(inputs, wanted.head, tokens, wanted.classes_of(index))
    latents, own = one.n_on[0].nonzero()[:, 0], int(one.classes[0])
    image = _Image(wanted, tokens, own, n_at_once)
    gradient, mass, integrated = one.attribution[0, latents], one.mass[0, latents], image.integrate()
    seen = lens[latents] @ wanted.head.weights[own].to(lens)
    shuffled = torch.from_numpy(np.random.default_rng([wanted.seed, int(index[0])]).permutation(len(latents)))
    scores = {
        GRADIENT: gradient,
        INTEGRATED: integrated[latents],
        ABLATION: image.measure_loss(latents),
        "mass_lens": mass * seen,
        "lens": seen,
        "mass": mass,
        RANDOM: gradient[shuffled.to(gradient.device)],
    }
    ordered = torch.stack([scores[name] for name in METHODS])
    agreement = correlate_ranks(ordered.cpu().numpy(), scores[ABLATION].cpu().numpy())
    # a latent's place in each order, and that of those that do not fire behind all
    places = torch.full((len(ordered), sae.d_sae), len(latents), device=ordered.device)
    places[:, latents] = ordered.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return {
        "n_ranked": torch.tensor(len(latents)),
        "agreement": torch.from_numpy(agreement),
        "integrated": integrated.abs(),
        "curves": image.draw_curves(places, len(latents), wanted.n_steps),
    }


class _Image:
    """One image, as predicted without some of its latents; the SAE's error stays."""

    def __init__(self, wanted: AttributionInputs, tokens: Tokens, own: int, n_at_once: int) -> None:
        self.inputs, self.head = wanted.inputs, wanted.head
        self.tokens, self.own, self.n_at_once = tokens, own, n_at_once
        self.editor = GroupEditor(wanted.inputs.sae, take_tokens(tokens, wanted.inputs.reads))

    def predict(self, edited: list[Float[Tensor, "n_read d_in"]]) -> Float[Tensor, "n 2"]:
        """Return probability and cosine of the class for versions of the tokens that the SAE reads."""
        inputs, found = self.inputs, []
        for start in range(0, len(edited), self.n_at_once):
            read = torch.stack(edited[start : start + self.n_at_once])
            whole = Tokens(*(part.expand(len(read), -1, -1) for part in self.tokens))
            with spent_on(Kind.forward):
                embeddings = inputs.backbone.embed_tokens(put_tokens(whole, read, inputs.reads), inputs.layer).float()
            probs = self.head.log_probabilities(embeddings)[:, self.own].exp()
            found.append(torch.stack([probs, embeddings @ self.head.weights[self.own].to(embeddings)], dim=1))
        return torch.cat(found)

    def integrate(self) -> Float[Tensor, " d_sae"]:
        """Return the integrated gradients of all latents, from none of them to all at their activations."""
        sae, x, gradient = self.inputs.sae, self.editor.x, torch.zeros_like(self.editor.x[0])
        everything = self.editor.contribution(torch.ones(sae.d_sae, dtype=torch.bool, device=x.device))
        shares = (torch.arange(N_INTEGRATED, device=x.device) + 0.5) / N_INTEGRATED
        for some in shares.split(self.n_at_once):
            read = x - (1 - some)[:, None, None] * everything
            whole = Tokens(*(part.expand(len(some), -1, -1) for part in self.tokens))
            classes = torch.full((len(some),), self.own, device=x.device)
            gradient += _differentiate(self.inputs, self.head, whole, read, classes)[2].sum(0) / N_INTEGRATED
        written, indices = self.editor.written
        along = _project(gradient, indices, sae.W_dec) / sae.scale
        new = torch.zeros(sae.d_sae, device=x.device)
        return new.index_add_(0, indices.flatten(), (written * along).flatten())

    def measure_loss(self, latents: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return by how much the cosine falls without each latent alone: exact ablation."""
        if not len(latents):
            return torch.zeros(0, device=latents.device)
        sae, x = self.inputs.sae, self.editor.x[0]
        written, indices = self.editor.written
        dense = torch.zeros(len(x), sae.d_sae, dtype=written.dtype, device=x.device).scatter_add_(1, indices, written)
        found = []
        for some in latents.split(self.n_at_once):
            removed = dense[:, some].T[:, :, None] * (sae.W_dec[some] / sae.scale)[:, None]
            found.append(self.predict(list(x - removed))[:, COSINE])
        return self.predict([x])[0, COSINE] - torch.cat(found)

    def draw_curves(
        self, places: Int64[Tensor, "n_methods d_sae"], n_latents: int, n_steps: int
    ) -> Float[Tensor, "2 n_methods n_steps_plus_1 2"]:
        """Return what is left of the class while the first latents of each order are removed, and all but these.

        Args:
            places: of the latents in each order; those that do not fire are behind `n_latents`.
        """
        counts = [round(n_latents * step / n_steps) for step in range(n_steps + 1)]
        never, always = torch.zeros_like(places[0], dtype=torch.bool), torch.ones_like(places[0], dtype=torch.bool)
        removed = [never, always]
        removed += [way for order in places for n in counts[1:-1] for way in (order < n, order >= n)]
        found = self.predict([self.editor.edit(of, EditMode.error_preserving)[0] for of in removed])
        between = found[2:].view(len(places), n_steps - 1, 2, 2).permute(2, 0, 1, 3)
        nothing, everything = (found[i].expand(len(places), 1, -1) for i in range(2))
        deletion = torch.cat([nothing, between[DELETION], everything], dim=1)
        insertion = torch.cat([everything, between[INSERTION], nothing], dim=1)
        return torch.stack([deletion, insertion])


def correlate_ranks(
    scores: Float[np.ndarray, "n_methods n"], target: Float[np.ndarray, " n"]
) -> Float32[np.ndarray, " n_methods"]:
    """Return Spearman's correlation of rows of scores with a target; NaN of fewer than two, or of equal ones."""
    if len(target) < 2:
        return np.full(len(scores), np.nan, dtype=np.float32)
    ranks = rankdata(np.vstack([scores, target]), axis=1)
    ranks -= ranks.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(ranks, axis=1)
    products, both = ranks[:-1] @ ranks[-1], lengths[:-1] * lengths[-1]
    return np.divide(products, both, out=np.full(len(scores), np.nan), where=both > 0).astype(np.float32)
