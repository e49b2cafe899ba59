"""Which columns of the table of latents are held against the CDS, and what is found of each over SAE seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from infoscope.analyses.cross import CrossResult
from infoscope.report.tables import Stat, compute_stat
from infoscope.sae.latent_table import LatentColumn, LatentTable
from infoscope.scope.cds import mean_of_known
from infoscope.stages.score.stage import Score

LEVEL = 0.05
"""Of p after correction."""


def list_quantities(tables: Sequence[LatentTable]) -> list[LatentColumn]:
    """Return the columns that the tables of all SAE seeds have, in the order of the first.

    These are numbers and switches. Left out is what the score's own pairs of crops give, from how many images another
    column is read, text, what no latent has, and a column that is an earlier one times a number (where decoder rows
    have unit norm, the mass is the mean activation).
    """
    found: list[LatentColumn] = []
    for column in tables[0]:
        name, is_number = column.name, column.values.dtype.kind in "fiub" and column.unit != "images"
        is_given = is_number and column.source != Score.kind and all(name in table for table in tables)
        is_known = is_given and any(np.isfinite(table[name]).any() for table in tables)
        if is_known and not any(_are_alike(other.name, name, tables) for other in found):
            found.append(column)
    return found


def _are_alike(a: str, b: str, tables: Sequence[LatentTable]) -> bool:
    """Whether two columns are the same but for a factor above 0 and rounding."""
    pairs = [(np.asarray(table[a], np.float64), np.asarray(table[b], np.float64)) for table in tables]
    return all(_is_multiple(one, other) for one, other in pairs)


def _is_multiple(one: Float[np.ndarray, " d_sae"], other: Float[np.ndarray, " d_sae"]) -> bool:
    known = np.isfinite(one)
    if not known.any() or not np.array_equal(known, np.isfinite(other)):
        return False
    one, other = one[known], other[known]
    largest = np.abs(one).argmax()
    factor = other[largest] / one[largest] if one[largest] else 1.0
    return factor > 0 and np.allclose(factor * one, other, rtol=1e-4, atol=0)


class Crossed(NamedTuple):
    """What is found of one quantity, see `CrossResult`; the interval is that of the mean over seeds.

    band_means, band_quartiles, matched_means, matched_medians: mean over SAE seeds.
    matched_difference: of the means in the last matched band and in the first.
    """

    column: LatentColumn
    rho: Stat
    low: float
    high: float
    within: Stat
    p: float
    p_corrected: float
    n: Stat
    n_lacking: Stat
    band_means: Float[np.ndarray, " n_bands"]
    band_quartiles: Float[np.ndarray, "n_bands 3"]
    matched_means: Float[np.ndarray, " n_bands"]
    matched_medians: Float[np.ndarray, " n_bands"]
    matched_difference: Stat

    @property
    def label(self) -> str:
        """Its heading up to a colon, behind which it is explained."""
        return self.column.heading.partition(":")[0]

    @property
    def unit(self) -> str:
        """Its unit in words; empty: it has none."""
        unit = "share" if self.column.values.dtype.kind == "b" else self.column.unit
        return "" if unit == "1" else unit

    @property
    def is_told(self) -> bool:
        """Whether it is told from 0 at like firing rate, after correction."""
        return self.p_corrected < LEVEL

    @property
    def is_decided(self) -> bool:
        """Whether the interval of rho lies on one side of 0."""
        return self.low > 0 or self.high < 0


def join_crossed(found: CrossResult, table: LatentTable) -> dict[str, Crossed]:
    """Return what is found of each quantity, by name.

    Args:
        table: of one of the seeds, for headings and units.
    """
    columns = {column.name: column for column in table}
    means, quartiles = mean_of_known(found.band_means, axis=0), mean_of_known(found.band_quartiles, axis=0)
    matched, medians = (mean_of_known(of, axis=0) for of in (found.matched_means, found.matched_medians))
    differences = found.matched_means[..., -1] - found.matched_means[..., 0]
    return {
        name: Crossed(
            columns[name],
            compute_stat(found.rho[:, i]),
            float(found.low[i]),
            float(found.high[i]),
            compute_stat(found.within[:, i]),
            float(found.p[i]),
            float(found.p_corrected[i]),
            compute_stat(found.n[:, i]),
            compute_stat(found.n_lacking[:, i]),
            means[i],
            quartiles[i],
            matched[i],
            medians[i],
            compute_stat(differences[:, i]),
        )
        for i, name in enumerate(found.names)
    }
