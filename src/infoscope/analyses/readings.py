"""Readings of an SAE: what of its latents is compared with which texts, and what they are called by each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.sparse import csr_array

from infoscope.analyses.concepts import read_rows
from infoscope.analyses.config import NameConfig, Reading
from infoscope.analyses.image_codes import ImageCodes
from infoscope.analyses.naming import (
    Rule,
    average_top,
    count_by_chance,
    draw_alike,
    judge_at_random,
    judge_names,
    measure_excess,
    name_directions,
)
from infoscope.analyses.top_sets import TopSets, find_top
from infoscope.sae.model import SparseAutoencoder

Directions = Float[np.ndarray, "d_sae d"]
Draw = Callable[[np.random.Generator], Directions]
DrawOf = Callable[[Bool[np.ndarray, " d_sae"]], Draw]


class Compared(NamedTuple):
    """One reading: what is compared with which texts, and what draws random ones like the first, of some latents."""

    directions: Directions
    texts: Float[np.ndarray, "n_words d"]
    draw: DrawOf


def compare_rows(sae: SparseAutoencoder, texts: Float[np.ndarray, "n_words d"]) -> dict[Reading, Compared]:
    """Return the readings of an SAE of embeddings, by its decoder rows."""
    rows = read_rows(sae)
    mean = sae.mean.detach().double().cpu().numpy()
    return {
        Reading.centred: Compared(rows, texts - texts.mean(axis=0), lambda of: draw_alike(rows[of], 0.0)),
        Reading.row: Compared(rows, texts, lambda of: draw_alike(rows[of], 0.0)),
        Reading.shifted: Compared(mean + rows, texts, lambda of: draw_alike(rows[of], mean)),
    }


def compare_top_images(
    top: TopSets, unit: Float[np.ndarray, "n_images d"], texts: Float[np.ndarray, "n_words d"]
) -> dict[Reading, Compared]:
    """Return the readings of another SAE, by the embeddings of the images on which its latents fire most."""
    n_top, mean = top.columns.shape[1], unit.mean(axis=0)

    def draw_less(less: Float[np.ndarray, " d"] | float) -> DrawOf:
        def of_latents(of: Bool[np.ndarray, " d_sae"]) -> Draw:
            def draw(rng: np.random.Generator) -> Directions:
                drawn = sum(unit[rng.integers(len(unit), size=int(of.sum()))] for _ in range(n_top))
                return np.asarray(drawn) / n_top - less

            return draw

        return of_latents

    return {
        Reading.centred: Compared(average_top(top, unit, mean), texts - texts.mean(axis=0), draw_less(mean)),
        Reading.shifted: Compared(average_top(top, unit), texts, draw_less(0.0)),
    }


def name_by_all(
    readings: dict[Reading, Compared],
    concept_of: Int64[np.ndarray, " n_words"],
    config: NameConfig,
    n_firing: Int64[np.ndarray, " d_sae"],
    codes: ImageCodes,
    values: Bool[np.ndarray, "n_images n_values"],
    value_of: Int64[np.ndarray, " n_concepts"],
) -> dict[str, np.ndarray]:
    """Return the names by each reading, how many come by chance, and whether they are right, as in `NameResult`.

    Args:
        concept_of: which concept each word is of.
        n_firing: training images in which each latent fires.
        codes, values: of the test images: what fires in them, and what is known of them.
        value_of: the value that a concept names; -1: none that is known.
    """
    rule, enough = Rule(config.min_cosine, config.min_ratio), n_firing >= config.n_top_images
    top = find_top(csr_array(codes.matrix("means").T), config.n_top_images)
    excess = measure_excess(top, values) if values.shape[1] else None
    nothing = np.full(len(enough), np.nan)
    found: list[dict[str, Any]] = []
    for compared in readings.values():
        directions = np.where(enough[:, None], compared.directions, 0.0)
        names = name_directions(directions, compared.texts, concept_of)
        valid = names.find_valid(rule)
        draws = (config.n_draws, config.seed)
        by_chance = count_by_chance(directions[enough], compared.texts, concept_of, rule, compared.draw(enough), *draws)
        one = {"best": names.concepts, "cosines": names.cosines, "ratio": names.ratio, "valid": valid}
        judged, by_random, best_beyond = (nothing, nothing), np.full((2, config.n_draws), np.nan), np.nan
        if excess is not None:
            judged = judge_names(names.concepts[:, 0], excess, value_of)
            by_random = judge_at_random(names.concepts[valid, 0], excess.take(valid), value_of, *draws)
            known = valid & np.isfinite(judged[0])
            best_beyond = excess.is_beyond[known].any(axis=1).mean() if known.any() else np.nan
        one |= {"is_best": judged[0], "is_beyond": judged[1], "by_random": by_random}
        found.append({**one, "by_chance": by_chance, "best_beyond": np.float64(best_beyond)})
    return {key: np.stack([one[key] for one in found]) for key in found[0]}
