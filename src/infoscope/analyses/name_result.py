"""What stage=name has found of an SAE."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int64

from infoscope.analyses.concepts import Search
from infoscope.runtime.arrays import load_result, save_result


@dataclass(frozen=True)
class NameResult:
    """The names of an SAE's latents by each reading, and what those of one reading are good for.

    readings: their names; reading: the one that is asked for.
    concepts: names of the concepts. n_words: of the vocabulary, synonyms among them.
    n_firing: training images in which a latent fires; with fewer than n_top it has no name.
    best, cosines, ratio: of `Names`; valid: by the rule.
    by_chance: of `count_by_chance`.
    value_names: what is known of the images; empty: nothing.
    is_best, is_beyond: of `judge_names`, of all names. by_random: of `judge_at_random`, of the valid ones.
    best_beyond: share of the latents with a valid name that have any value over-represented beyond chance.
    searches: of `Search`, NaN for a concept without a valid name or a value.
    shown_concept: whose search is shown; -1: no name is valid. shown: what was searched for, and images of the test
        split: what was searched by, then the nearest ones; -1: there are no more.
    class_names: what the classifier of the sweep tells apart; empty: there is none.
    slopes: [n_concepts, n_classes] of `fit_slopes`; NaN for a concept without a valid name. slopes_random: the same of
        as many other latents, drawn at random, in the place of the concept's.
    misled: of `measure_gaps` on test images, of the embeddings, without the latents that are called by the class, and
        without as many random ones; NaN for a class that is no valid name.
    association: of
        `associate` on training images; NaN for a concept that is none of the values. class_shares: of the classes in
        the training images. is_own: which concepts are of the classifier's own target.
    """

    reading: str
    readings: list[str]
    concepts: list[str]
    n_words: int
    n_top: int
    n_firing: Int64[np.ndarray, " d_sae"]
    best: Int64[np.ndarray, "n_readings d_sae n_best"]
    cosines: Float[np.ndarray, "n_readings d_sae n_best"]
    ratio: Float[np.ndarray, "n_readings d_sae"]
    valid: Bool[np.ndarray, "n_readings d_sae"]
    by_chance: Int64[np.ndarray, "n_readings 2 n_draws"]
    value_names: list[str]
    is_best: Float[np.ndarray, "n_readings d_sae"]
    is_beyond: Float[np.ndarray, "n_readings d_sae"]
    by_random: Float[np.ndarray, "n_readings 2 n_draws"]
    best_beyond: Float[np.ndarray, " n_readings"]
    searches: Float[np.ndarray, "n_concepts n_searches"]
    shown_concept: int
    shown_by: list[str]
    shown: Int64[np.ndarray, "n_shown n_images"]
    class_names: list[str]
    slopes: Float[np.ndarray, "n_concepts n_classes"]
    slopes_random: Float[np.ndarray, "n_concepts n_classes"]
    misled: Float[np.ndarray, "3 n_concepts n_classes"]
    association: Float[np.ndarray, "n_concepts n_classes"]
    class_shares: Float[np.ndarray, " n_classes"]
    is_own: Bool[np.ndarray, " n_concepts"]

    @property
    def place(self) -> int:
        """Of the reading that is asked for."""
        return self.readings.index(self.reading)

    @property
    def is_named(self) -> Bool[np.ndarray, " d_sae"]:
        """Whether a latent has a name, valid or not, by that reading."""
        return self.best[self.place, :, 0] >= 0

    @property
    def names(self) -> np.ndarray:
        """The name of each latent by that reading; empty: none."""
        return np.array([*self.concepts, ""])[self.best[self.place, :, 0]]

    def find_distinct(self, place: int) -> set[int]:
        """Return the concepts that are valid names by a reading."""
        return set(self.best[place, self.valid[place], 0].tolist())

    def get_searches(self, of: str) -> Float[np.ndarray, " n_concepts"]:
        """Return a column of `searches` by its name in `Search`."""
        return self.searches[:, Search._fields.index(of)]

    def save(self, folder: Path) -> None:
        """Write name.npz and name.json into a folder."""
        save_result(folder, "name", vars(self))

    @classmethod
    def load(cls, folder: Path) -> NameResult:
        """Return what `save` wrote."""
        arrays, facts = load_result(folder, "name")
        return cls(**arrays, **facts)
