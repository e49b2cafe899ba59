"""What named latents are good for: searching by a concept, and what a classifier makes of a concept that is swept.

After MSAE (2502.20578); what is measured of both is ours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64

from infoscope.sae.model import SparseAutoencoder

QUANTILES = (0.25, 0.5, 0.75, 0.95)
"""Of a latent's activation where it fires, at which it is swept; before them 0."""
N_QUERIES = 200
"""Images at most that are searched for, of each kind."""
MIN_COMPARED = 5
"""Images that must have a concept, and that must lack it, to say what it changes."""


def read_rows(sae: SparseAutoencoder) -> Float[np.ndarray, "d_sae d"]:
    """Return what a unit of each latent's activation adds to a token, apart from a token's own norm: W_dec row / c."""
    return (sae.W_dec.detach().double() / sae.scale.double()).cpu().numpy()


@torch.no_grad()
def read_factors(sae: SparseAutoencoder, x: Float[np.ndarray, "n d"]) -> Float[np.ndarray, " n"]:
    """Return by what that is multiplied in each raw token: the token's norm, of SAEs that normalise it, else 1."""
    factor = sae.token_factor(torch.from_numpy(x).float().to(sae.W_dec.device))
    return np.ones(len(x)) if factor is None else factor[:, 0].double().cpu().numpy()


class Edit(NamedTuple):
    """How some latents act on raw embeddings.

    acts: z of each image.
    rows: of `read_rows`, of these latents. factor: of `read_factors`, of these images.
    """

    acts: Float[np.ndarray, "n_images m"]
    rows: Float[np.ndarray, "m d"]
    factor: Float[np.ndarray, " n_images"]

    @property
    def codes(self) -> Float[np.ndarray, "n_images m"]:
        """Activation times norm of the row: by what images are near each other by these latents alone."""
        return self.acts * np.linalg.norm(self.rows, axis=1)

    def set_to(
        self, embeddings: Float[np.ndarray, "n_images d"], values: Float[np.ndarray, " m"]
    ) -> Float[np.ndarray, "n_images d"]:
        """Return x + (values - z) W_dec: the SAE's error stays."""
        return embeddings + (self.factor[:, None] * (values - self.acts)) @ self.rows

    def take(self, images: Int64[np.ndarray, " n"]) -> Edit:
        """Return the same of some images."""
        return Edit(self.acts[images], self.rows, self.factor[images])


def choose_levels(acts: Float[np.ndarray, "n_images m"]) -> Float[np.ndarray, "n_levels m"]:
    """Return 0 and quantiles of each latent's activation in images where it fires; of one that never does, zeros."""
    levels = np.zeros((1 + len(QUANTILES), acts.shape[1]))
    for place, of in enumerate(acts.T):
        if (of > 0).any():
            levels[1:, place] = np.quantile(of[of > 0], QUANTILES)
    return levels


def sweep_concept(
    embeddings: Float[np.ndarray, "n_images d"],
    edit: Edit,
    levels: Float[np.ndarray, "n_levels m"],
    weight: Float[np.ndarray, "d n_classes"],
    bias: Float[np.ndarray, " n_classes"],
) -> Float[np.ndarray, "n_levels n_classes"]:
    """Return the mean probability of each class over images, with a concept's latents set to each level together.

    Args:
        weight, bias: of a linear head with a softmax on raw embeddings.
    """
    found = np.empty((len(levels), len(bias)))
    for place, values in enumerate(levels):
        found[place] = predict_classes(edit.set_to(embeddings, values), weight, bias).mean(axis=0)
    return found


def predict_classes(
    embeddings: Float[np.ndarray, "n_images d"],
    weight: Float[np.ndarray, "d n_classes"],
    bias: Float[np.ndarray, " n_classes"],
) -> Float[np.ndarray, "n_images n_classes"]:
    """Return the probabilities of a linear head with a softmax."""
    logits = embeddings @ weight + bias
    probs = np.exp(logits - logits.max(axis=1, keepdims=True))
    return probs / probs.sum(axis=1, keepdims=True)


def fit_slopes(
    curve: Float[np.ndarray, "n_levels n_classes"], levels: Float[np.ndarray, "n_levels m"]
) -> Float[np.ndarray, " n_classes"]:
    """Return the least-squares slope of each class's probability: its change from silent to the highest level.

    NaN where all levels are the same.
    """
    height = levels.sum(axis=1)
    if height[-1] <= 0:
        return np.full(curve.shape[1], np.nan)
    at = height / height[-1] - (height / height[-1]).mean()
    return at @ curve / (at @ at)


class Search(NamedTuple):
    """Share of the nearest images that have a concept, mean over the images that are searched for.

    Queries with the concept: plain (nearest by embedding), restricted (nearest by the concept's latents alone), zeroed
    (nearest to the embedding without them). Queries without it: plain_without, and raised (nearest to the embedding
    with its latents at their highest level). base: share of all images. NaN where there are no such queries, or where
    latents cannot be taken from the embedding.
    """

    base: float
    plain: float
    restricted: float
    zeroed: float
    plain_without: float
    raised: float


def search_concept(
    embeddings: Float[np.ndarray, "n_images d"],
    edit: Edit,
    top_level: Float[np.ndarray, " m"] | None,
    has: Bool[np.ndarray, " n_images"],
    n_nearest: int,
    rng: np.random.Generator,
) -> Search:
    """Return what searching by a concept finds.

    Queries with the concept are images in which one of its latents fires too.

    Args:
        edit: the concept's latents.
        top_level: None: the latents are not those of the embeddings, which cannot be edited then.
        has: which images have it.
    """
    own, others = (
        np.sort(rng.permutation(of)[:N_QUERIES])
        for of in (np.flatnonzero(has & (edit.acts > 0).any(axis=1)), np.flatnonzero(~has))
    )
    codes = edit.codes

    def share(queries: Int64[np.ndarray, " n"], near: Int64[np.ndarray, "n n_nearest"]) -> float:
        return float(has[near].mean()) if len(queries) else np.nan

    def edited(queries: Int64[np.ndarray, " n"], values: Float[np.ndarray, " m"]) -> float:
        moved = edit.take(queries).set_to(embeddings[queries], values)
        return share(queries, find_nearest(moved, embeddings, queries, n_nearest))

    zeroed = raised = np.nan
    if top_level is not None:
        zeroed, raised = edited(own, np.zeros(len(top_level))), edited(others, top_level)
    return Search(
        float(has.mean()),
        share(own, find_nearest(embeddings[own], embeddings, own, n_nearest)),
        share(own, find_near_codes(codes[own], codes, own, n_nearest)),
        zeroed,
        share(others, find_nearest(embeddings[others], embeddings, others, n_nearest)),
        raised,
    )


def find_nearest(
    queries: Float[np.ndarray, "n d"],
    vectors: Float[np.ndarray, "n_images d"],
    own: Int64[np.ndarray, " n"],
    n_nearest: int,
) -> Int64[np.ndarray, "n n_nearest"]:
    """Return the images of largest cosine with each query, the nearest first, the lower of equal ones.

    Args:
        own: the image that each query is, which is not among its nearest; -1: none.
    """
    tiny = np.finfo(float).tiny
    unit, other = (of / np.linalg.norm(of, axis=1, keepdims=True).clip(tiny) for of in (queries, vectors))
    return _sort_others(-(unit @ other.T), own, n_nearest)


def find_near_codes(
    queries: Float[np.ndarray, "n m"],
    codes: Float[np.ndarray, "n_images m"],
    own: Int64[np.ndarray, " n"],
    n_nearest: int,
) -> Int64[np.ndarray, "n n_nearest"]:
    """Return the images whose codes are least far (Euclidean) from each query's, as `find_nearest`.

    So a search by a single latent means something too: it finds images in which that fires as strongly.
    """
    squares = (queries**2).sum(axis=1)[:, None] + (codes**2).sum(axis=1) - 2 * queries @ codes.T
    return _sort_others(squares, own, n_nearest)


def _sort_others(
    distances: Float[np.ndarray, "n n_images"], own: Int64[np.ndarray, " n"], n_nearest: int
) -> Int64[np.ndarray, "n n_nearest"]:
    rows = np.flatnonzero(own >= 0)
    distances[rows, own[rows]] = np.inf
    n_others = distances.shape[1] - int(len(rows) > 0)
    return np.argsort(distances, axis=1, kind="stable")[:, : min(n_nearest, n_others)]


def associate(
    has: Bool[np.ndarray, "n_images n_concepts"], labels: Int64[np.ndarray, " n_images"], n_classes: int
) -> Float[np.ndarray, "n_concepts n_classes"]:
    """Return the share of each class among the images that have a concept, less its share among all images.

    That is how far the data couple the two. NaN for a concept that no image has.
    """
    of_class = np.eye(n_classes)[labels]
    n = has.sum(axis=0)[:, None]
    shares = np.divide(has.T @ of_class, n, out=np.full((has.shape[1], n_classes), np.nan), where=n > 0)
    return shares - of_class.mean(axis=0)


def measure_gaps(
    probs: Float[np.ndarray, "n_images n_classes"],
    labels: Int64[np.ndarray, " n_images"],
    has: Bool[np.ndarray, "n_images n_concepts"],
) -> Float[np.ndarray, "n_concepts n_classes"]:
    """Return how much more probable each class is in images of other classes that have a concept than in those without.

    NaN where fewer than `MIN_COMPARED` such images have it, or lack it.
    """
    is_other = np.eye(probs.shape[1])[labels] == 0
    of_other, have = np.where(is_other, probs, 0.0), has.astype(np.float64)
    sums, counts = have.T @ of_other, have.T @ is_other
    lack_sums, lack_counts = of_other.sum(axis=0) - sums, is_other.sum(axis=0) - counts
    enough = np.minimum(counts, lack_counts) >= MIN_COMPARED
    gaps = sums / np.maximum(counts, 1) - lack_sums / np.maximum(lack_counts, 1)
    return np.where(enough, gaps, np.nan)
