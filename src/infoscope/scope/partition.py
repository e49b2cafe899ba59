"""Features in groups by their contextual dependency score, or another measure: high and low scope, or bands."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from infoscope.runtime.errors import InputError
from infoscope.scope.config import By, PartitionConfig, Rule
from infoscope.scope.energy import Cumulate


@dataclass(frozen=True, repr=False)
class Partition:
    """Groups of features as masks over all latents; any of them may be empty.

    gamma is None for bands, and where a rule that reads the scores found none.
    """

    gamma: float | None
    groups: Mapping[str, Bool[np.ndarray, " d_sae"]]
    """"high" and "low", or as `ENDS` calls them; or bands, "band 1 of 4" to "band 4 of 4", from the lowest scores to
    the highest."""
    unscored: Bool[np.ndarray, " d_sae"]
    """Features without a score (NaN): in no group."""

    def __repr__(self) -> str:
        gamma = "" if self.gamma is None else f"gamma={self.gamma:.4g}: "
        counts = [
            f"{name} {int(members.sum())}" for name, members in {**self.groups, "unscored": self.unscored}.items()
        ]
        return f"Partition({gamma}{', '.join(counts)} of {len(self.unscored)} latents)"

    @property
    def high(self) -> Bool[np.ndarray, " d_sae"]:
        """The features above gamma.

        Raises:
            InputError: if the features are divided into bands.
        """
        return self._get(0)

    @property
    def low(self) -> Bool[np.ndarray, " d_sae"]:
        """The features up to gamma.

        Raises:
            InputError: if the features are divided into bands.
        """
        return self._get(1)

    def _get(self, end: int) -> Bool[np.ndarray, " d_sae"]:
        if (ends := find_ends(self.groups)) is None:
            raise InputError(
                f"Expected a partition into high and low scope, got bands: take .groups, {list(self.groups)}."
            )
        return self.groups[ends[end]]


ENDS: Mapping[By, tuple[str, str]] = {
    By.cds: ("high", "low"),
    By.extent: ("wide", "narrow"),
    By.mean_extent: ("wider", "narrower"),
    By.context_effect: ("context-driven", "patch-driven"),
}
"""The names of the groups above gamma and up to it, by what is divided."""
ABOVE = tuple(above for above, _ in ENDS.values())


def find_ends(groups: Collection[str]) -> tuple[str, str] | None:
    """Return which groups lie above gamma and up to it; None: they are bands."""
    return next((names for names in ENDS.values() if set(names) <= set(groups)), None)


def find_extremes(groups: Collection[str]) -> tuple[str, str]:
    """Return the groups of the highest and of the lowest scores: those above and below gamma, or the outermost bands.

    Args:
        groups: names in the order of a partition, at least one.
    """
    names = list(groups)
    return find_ends(names) or (names[-1], names[0])


def order_groups(groups: Collection[str]) -> list[str]:
    """Return groups from the lowest scores to the highest, as histograms stack them."""
    return sorted(groups, key=lambda name: name in ABOVE)


def name_group(group: str, joint: str = "-") -> str:
    """Return a group's name for display: "high-scope", "wide", "band 1 of 4 (lowest CDS)", "band 2 of 4", ...

    Args:
        joint: before "scope": a hyphen where another noun follows, else a space.
    """
    match group.split():
        case ["high" | "low"]:
            return f"{group}{joint}scope"
        case ["band", number, "of", n, *what] if number in ("1", n):
            measure = " ".join(what[1:]) or By.cds.words
            return f"band {number} of {n} ({'lowest' if number == '1' else 'highest'} {measure})"
        case ["band", number, "of", n, *_]:
            return f"band {number} of {n}"
    return group


def make_partition(
    scores: Float[np.ndarray, " d_sae"],
    mass: Float[np.ndarray, " d_sae"],
    config: PartitionConfig,
    energy: Cumulate | None = None,
) -> Partition:
    """Divide features by their scores under the configured rule.

    Args:
        scores: the CDS, or what else they are divided by, 0..1; NaN: unscored.
        mass: activation mass of each feature (sum or mean of z * |W_dec|) on the training split; only ratios matter,
            and only the rule `mass` reads it.
        energy: of latents removed together; only the rule `energy` reads it.

    Raises:
        InputError: the rule `energy` without it.
    """
    unscored = np.isnan(scores)
    rule, number = config.chosen
    if rule is Rule.bands:
        return Partition(None, make_bands(scores, int(number or 0), config.by), unscored)
    if rule is Rule.energy:
        gamma = _choose_gamma_by_energy(scores, np.flatnonzero(~unscored), energy)
    else:
        gamma = _choose_gamma(scores[~unscored], mass[~unscored], rule, number or 0)
    cut = np.nan if gamma is None else gamma
    above, below = ENDS[config.by]
    return Partition(gamma, {above: scores > cut, below: scores <= cut}, unscored)  # comparisons with NaN are false


def _choose_gamma(scores: np.ndarray, mass: np.ndarray, rule: Rule, number: float) -> float | None:
    """The cut of a rule; None where it reads scores and there are none."""
    if rule is Rule.threshold:
        return number
    if len(scores) == 0:
        return None
    if rule is Rule.mass:
        return mass_threshold(scores, mass, number)
    return float(np.quantile(scores, number)) if rule is Rule.quantile else otsu_threshold(scores)


def _choose_gamma_by_energy(scores: np.ndarray, scored: np.ndarray, energy: Cumulate | None) -> float | None:
    if energy is None:
        raise InputError(
            "The rule energy reads activations on tokens, which are not here: choose another rule, or partition=energy"
            " on the command line."
        )
    return energy_threshold(scores[scored], scored, energy) if len(scored) else None


def energy_threshold(scores: Float[np.ndarray, " n"], latents: Int[np.ndarray, " n"], energy: Cumulate) -> float:
    """Return the score at which removing the features up to it changes the tokens as much as removing those above it.

    As nearly as whole features allow; equal scores stay together. The first of several equal cuts.
    """
    order = np.argsort(scores, kind="stable")
    below, above = energy(latents[order]), energy(latents[order][::-1])[::-1]
    distance = np.abs(below - np.append(above[1:], 0))
    ordered = scores[order]
    distance[:-1][ordered[1:] == ordered[:-1]] = np.inf
    return float(ordered[np.argmin(distance)])


def mass_threshold(scores: Float[np.ndarray, " n"], mass: Float[np.ndarray, " n"], share: float) -> float:
    """Return the score at which the cumulative mass of features, by ascending score, reaches a share of all of it.

    So features up to this score hold at least that share; equal scores stay together. Where nothing has mass, the
    lowest score.
    """
    order = np.argsort(scores, kind="stable")
    reached = np.cumsum(mass[order], dtype=np.float64)
    wanted = share * reached[-1] * (1 - 1e-12)  # sums of floats may fall short of a share that they are
    return float(scores[order][np.searchsorted(reached, wanted)])


def otsu_threshold(values: Float[np.ndarray, " n"]) -> float:
    """Return the cut that divides values into two groups with the greatest variance between them (Otsu, 1979).

    Exact on the sorted values (a histogram with bins as fine as the data), halfway between the two neighbours; the
    first of several equal cuts. Values that are all equal are their own cut, so that none lies above.
    """
    ordered = np.sort(values)
    n_below = np.arange(1, len(ordered))
    sum_below = np.cumsum(ordered)[:-1]
    n_above, sum_above = len(ordered) - n_below, ordered.sum() - sum_below
    between = n_below * n_above * (sum_below / n_below - sum_above / n_above) ** 2
    between[ordered[1:] == ordered[:-1]] = -1  # equal values are not divided
    if len(between) == 0 or between.max() < 0:
        return float(ordered[0])
    best = int(between.argmax())
    low, high = float(ordered[best]), float(ordered[best + 1])
    middle = (low + high) / 2
    return middle if middle < high else low  # between neighbouring floats there is nothing


def make_bands(
    scores: Float[np.ndarray, " d_sae"], n_bands: int, by: By = By.cds
) -> dict[str, Bool[np.ndarray, " d_sae"]]:
    """Return bands of equal counts from the lowest scores to the highest, without those that are NaN.

    Equal scores share a band, so ties can make counts differ (or a band empty).
    """
    unscored = np.isnan(scores)
    if unscored.all():
        band = np.zeros(len(scores), dtype=int)
    else:
        edges = np.quantile(scores[~unscored], np.arange(1, n_bands) / n_bands)
        band = np.searchsorted(edges, scores, side="left")  # as for gamma: a score on the edge belongs below it
    what = "" if by is By.cds else f" by {by.words}"
    return {f"band {i + 1} of {n_bands}{what}": ~unscored & (band == i) for i in range(n_bands)}
