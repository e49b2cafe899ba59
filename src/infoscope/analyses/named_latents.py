"""What the latents of named concepts are good for: searches by all concepts, sweeps of a classifier, what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csc_array

from infoscope.analyses.concepts import (
    Edit,
    Search,
    associate,
    choose_levels,
    find_near_codes,
    find_nearest,
    fit_slopes,
    measure_gaps,
    predict_classes,
    read_factors,
    read_rows,
    search_concept,
    sweep_concept,
)
from infoscope.analyses.config import NameConfig
from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.quality import ImageHead
from infoscope.runtime.errors import InputError, list_some
from infoscope.sae.model import SparseAutoencoder

N_SHOWN = 6
"""Nearest images in the figure."""
MAX_SWEPT = 2000
"""Test images at most over which the probabilities of a sweep are averaged."""


class Split(NamedTuple):
    """A split of images.

    codes: what fires in them. embeddings: of the rows of `codes`, raw where the SAE reads them, else of unit norm.
    values: what is known of them.
    """

    codes: ImageCodes
    embeddings: Float[np.ndarray, "n_images d"]
    values: Bool[np.ndarray, "n_images n_values"]

    @property
    def acts(self) -> csc_array:
        """Mean activation of each latent in each image."""
        return csc_array(self.codes.matrix("means"))


class Sweep(NamedTuple):
    """What is swept.

    head: tells the classes of a target apart on raw embeddings; None: there is none. labels: of the training images;
    test_labels: of the test images. class_concepts: the concept that each class is; -1: none.
    """

    head: ImageHead | None
    labels: Int64[np.ndarray, " n_images"]
    test_labels: Int64[np.ndarray, " n_test_images"]
    class_names: list[str]
    class_concepts: Int64[np.ndarray, " n_classes"]


class Named(NamedTuple):
    """The latents of the concepts that are valid names.

    members: of each concept, its latents. drawable: latents from which random ones are drawn, those that could have a
    name. rows: of `read_rows`, of all latents. is_edited: whether they are of the raw embeddings of the images, which
    can be edited then. factor: of `Edit`, of the test images.
    """

    members: dict[int, Int64[np.ndarray, " m"]]
    drawable: Int64[np.ndarray, " n"]
    rows: Float[np.ndarray, "d_sae d"]
    is_edited: bool
    factor: Float[np.ndarray, " n_images"]

    def edit(self, concept: int, acts: csc_array) -> Edit:
        """Return the latents of a concept in the test images."""
        return self.edit_latents(self.members[concept], acts)

    def edit_latents(self, of: Int64[np.ndarray, " m"], acts: csc_array) -> Edit:
        """Return some latents in the test images."""
        return Edit(acts[:, of].toarray(), self.rows[of], self.factor)

    def draw_others(self, of: Int64[np.ndarray, " m"], rng: np.random.Generator) -> Int64[np.ndarray, " m"] | None:
        """Return as many other latents at random; None: there are not so many."""
        others = rng.permutation(np.setdiff1d(self.drawable, of))[: len(of)]
        return np.sort(others) if len(others) == len(of) else None

    def choose_top_level(self, concept: int, acts: csc_array) -> Float[np.ndarray, " m"] | None:
        """Return the highest level to which they are set, of the training images; None: they cannot be."""
        return choose_levels(acts[:, self.members[concept]].toarray())[-1] if self.is_edited else None


def collect_named(
    sae: SparseAutoencoder,
    concepts: Int64[np.ndarray, " d_sae"],
    valid: Bool[np.ndarray, " d_sae"],
    test: Split,
    edits: bool,
) -> Named:
    """Return the latents of each concept that is a valid name.

    Args:
        concepts: the name of each latent; -1: none.
    """
    members = {int(one): np.flatnonzero(valid & (concepts == one)) for one in np.unique(concepts[valid])}
    factor = read_factors(sae, test.embeddings) if edits else np.ones(len(test.embeddings))
    return Named(members, np.flatnonzero(concepts >= 0), read_rows(sae), edits, factor)


def search_all(
    named: Named, train: Split, test: Split, value_of: Int64[np.ndarray, " n_concepts"], config: NameConfig
) -> Float[np.ndarray, "n_concepts n_searches"]:
    """Return what a search by each named concept finds, where the concept is known of the images."""
    found = np.full((len(value_of), len(Search._fields)), np.nan)
    rng, train_acts, test_acts = np.random.default_rng([config.seed, 1]), train.acts, test.acts
    for concept in named.members:
        if value_of[concept] >= 0:
            edit, level = named.edit(concept, test_acts), named.choose_top_level(concept, train_acts)
            has = test.values[:, value_of[concept]]
            found[concept] = search_concept(test.embeddings, edit, level, has, config.n_nearest, rng)
    return found


def sweep_all(
    named: Named, train: Split, test: Split, value_of: Int64[np.ndarray, " n_concepts"], sweep: Sweep, seed: int
) -> dict[str, Any]:
    """Return how probabilities of classes change with each named concept, and how the data couple the two, as in
    `NameResult`; without a head, nothing of no classes."""
    n_classes, head = len(sweep.class_names), sweep.head
    slopes, slopes_random, association = (np.full((len(value_of), n_classes), np.nan) for _ in range(3))
    misled = np.full((3, len(value_of), n_classes), np.nan)
    chosen = np.sort(np.random.default_rng([seed, 2]).permutation(len(test.embeddings))[:MAX_SWEPT])
    known, rng = value_of >= 0, np.random.default_rng([seed, 3])
    if head is not None:
        train_acts, test_acts, embeddings = train.acts, test.acts, test.embeddings[chosen]

        def slope(of: Int64[np.ndarray, " m"]) -> Float[np.ndarray, " n_classes"]:
            levels = choose_levels(train_acts[:, of].toarray())
            edit = named.edit_latents(of, test_acts).take(chosen)
            return fit_slopes(sweep_concept(embeddings, edit, levels, head.weight, head.bias), levels)

        for concept, of in named.members.items():
            slopes[concept] = slope(of)
            if (others := named.draw_others(of, rng)) is not None:
                slopes_random[concept] = slope(others)
        association[known] = associate(train.values[:, value_of[known]], sweep.labels, n_classes)
        misled[:, known] = _find_misled(named, test, test.values[:, value_of[known]], sweep, head, chosen, rng)
    shares = np.bincount(sweep.labels, minlength=n_classes) / max(len(sweep.labels), 1)
    own = np.isin(np.arange(len(value_of)), sweep.class_concepts)
    found = {"slopes": slopes, "slopes_random": slopes_random, "misled": misled, "association": association}
    return {"class_names": sweep.class_names, **found, "class_shares": shares, "is_own": own}


def _find_misled(
    named: Named,
    test: Split,
    has: Bool[np.ndarray, "n_images n_concepts"],
    sweep: Sweep,
    head: ImageHead,
    chosen: Int64[np.ndarray, " n"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "3 n_concepts n_classes"]:
    """Return what concepts change of the probabilities of classes that they are not, as in `NameResult`."""
    embeddings, test_acts = test.embeddings[chosen], test.acts
    whole = predict_classes(embeddings, head.weight, head.bias)
    probs = np.full((3, *whole.shape), np.nan)
    for label, concept in enumerate(sweep.class_concepts.tolist()):
        if (of := named.members.get(concept)) is not None:
            probs[0, :, label] = whole[:, label]
            for place, latents in enumerate((of, named.draw_others(of, rng)), 1):
                if latents is None:
                    continue
                moved = named.edit_latents(latents, test_acts).take(chosen).set_to(embeddings, np.zeros(len(latents)))
                probs[place, :, label] = predict_classes(moved, head.weight, head.bias)[:, label]
    return np.stack([measure_gaps(one, sweep.test_labels[chosen], has[chosen]) for one in probs])


def show_search(named: Named, concept: int, train: Split, test: Split) -> dict[str, Any]:
    """Return the nearest test images of one that has a concept most, and of one that has it least, in some ways."""
    edit, top_level = named.edit(concept, test.acts), named.choose_top_level(concept, train.acts)
    codes = edit.codes
    most, least = np.array([codes.sum(axis=1).argmax()]), np.array([codes.sum(axis=1).argmin()])
    x = test.embeddings

    def moved(query: Int64[np.ndarray, " 1"], values: Float[np.ndarray, " m"]) -> np.ndarray:
        return find_nearest(edit.take(query).set_to(x[query], values), x, query, N_SHOWN)

    rows = {
        "nearest": (most, find_nearest(x[most], x, most, N_SHOWN)),
        "alone": (most, find_near_codes(codes[most], codes, most, N_SHOWN)),
    }
    if top_level is not None:
        rows["zeroed"] = (most, moved(most, np.zeros(len(top_level))))
        rows["nearest_least"] = (least, find_nearest(x[least], x, least, N_SHOWN))
        rows["raised"] = (least, moved(least, top_level))
    shown = np.full((len(rows), 1 + N_SHOWN), -1)
    for place, (query, near) in enumerate(rows.values()):
        shown[place, : 1 + near.shape[1]] = [query[0], *near[0]]
    return {"shown_by": list(rows), "shown": np.where(shown >= 0, test.codes.image_index[shown], -1)}


def choose_concept(
    config: NameConfig, concepts: Sequence[str], named: Named, cosines: Float[np.ndarray, " d_sae"], seed: int
) -> int:
    """Return whose search is shown: what is asked for, or the concept of the largest cosine; -1: no name is valid.

    Raises:
        InputError: one without a valid name is asked for.
    """
    if config.concept is not None:
        concept = concepts.index(config.concept)
        if concept not in named.members:
            known = list_some((concepts[one] for one in named.members), 20) or "none"
            raise InputError(
                f"Expected name.concept to be a valid name of a feature, but SAE seed {seed} has none called"
                f" {config.concept!r} (valid names: {known}): choose one of these, or lower name.min_cosine or"
                " name.min_ratio."
            )
        return concept
    best = {concept: cosines[of].max() for concept, of in named.members.items()}
    return max(best, key=lambda one: best[one]) if best else -1
