"""Pictures whose scores are known, and how they are measured."""

from dataclasses import replace

import numpy as np
import torch

from infoscope.data.pictures import Pictures
from infoscope.sae.activations import ReLU
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.passes import measure_one
from infoscope.scope.ranking import ImageTokens, RankBy, Ranking, measure_ranking
from infoscope.scope.scoring import score_latents
from tests.support.closed_forms import CONTEXT_RGB, MARKER_RGB

GRID, PATCH_PX = 12, 2


def make_sae(d_in, d_sae=None, activation=None):
    """The identity, or random directions where d_sae is given."""
    sae = SparseAutoencoder(d_in, d_sae or d_in, activation or ReLU(), seed=0)
    if d_sae is None:
        with torch.no_grad():
            sae.W_enc.copy_(torch.eye(d_in))
    return sae.requires_grad_(False)


def make_reading_sae(directions):
    """An SAE with a latent for each row of an orthonormal matrix: how far beyond 0.5 tokens lie along it."""
    d_sae, d_in = directions.shape
    sae = SparseAutoencoder(d_in, d_sae, ReLU(), seed=0)
    with torch.no_grad():
        sae.W_enc.copy_(directions.T)
        sae.W_dec.copy_(directions)
        sae.b_enc.fill_(-0.5)  # what rounding leaves of other codes does not fire
    return sae.requires_grad_(False)


def make_jump_pictures(n):
    """Pictures at the size from which crops are cut: nothing is resized, a red patch each and a blue corner."""
    rng = np.random.default_rng(0)
    pictures = np.full((n, (GRID + 1) * PATCH_PX, (GRID + 1) * PATCH_PX, 3), 90, np.uint8)
    for picture in pictures:
        row, column = (PATCH_PX * rng.integers(2, 7, 2)).tolist()
        picture[row : row + PATCH_PX, column : column + PATCH_PX] = MARKER_RGB
        picture[:PATCH_PX, :PATCH_PX] = CONTEXT_RGB
    return pictures


def make_noise(n, side=26, seed=1):
    """Return n pictures of noise, uint8 [n, side, side, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def rank(sae, tokens, k_max, rank_by=RankBy.max, place=None, progress=lambda done: None) -> Ranking:
    """Rank the images of tokens in one pass."""
    wanted = replace(measure_ranking(sae, k_max, rank_by), place=place)
    return measure_one(tokens, wanted, progress).compute()


def measure(backbone, sae, pictures, config, **options):
    """Rank and score; return the ranking and the scores. The backbone counts what scoring alone encodes."""
    images = Pictures(list(pictures))
    ranking = rank(sae, ImageTokens(backbone, images, -2), config.n_ranks, config.rank_by)
    backbone.n_images_encoded = 0
    return ranking, score_latents(backbone, sae, images, ranking, config, layer=-2, **options)
