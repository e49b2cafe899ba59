"""The numbers of the section on effects, over SAE seeds: what scores say of them, and how well groups are matched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from infoscope.report.tables import Stat, compute_stat
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.matching import MATCHINGS, PROPERTIES, Pair, compute_balance, make_properties
from infoscope.scope.partial_ranks import Draws, Estimate, compute_partials, estimate
from infoscope.stages.score.result import ScopeResult

SCORES = {"cds": "CDS", "cds_minus_chance": "CDS - chance", "cds_over_chance": "CDS / chance"}
OTHERS = {"firing_rate": "firing frequency", "peak": "peak", "support": "support", "mass": "mass"}
"""What a score could be mistaken for, by column of the table of latents: each score is held against all of them."""


class Said(NamedTuple):
    """What a score, or another property, says of a task's effects.

    spearman, partial, added: see `Partial`; added_draws: of `added`, mean over seeds. n: over how many features.
    """

    spearman: Estimate
    partial: Estimate
    added: Estimate
    added_draws: Draws
    n: Stat


def predict_effects(tables: Sequence[LatentTable], column: str) -> dict[str, Said]:
    """Return {score or other property: what it says of a column of effects}.

    Scores are held against all of `OTHERS`, and each of these against its fellows and the CDS; all of it over the
    features that have every one of them. A score beside the CDS that no feature has (chance levels, with a single
    image per feature) is left out.

    Args:
        tables: of the SAE seeds.
    """
    scores = [name for name in SCORES if name == "cds" or all(_is_known(table, name) for table in tables)]
    given = {name: list(OTHERS) for name in scores}
    given |= {name: [scores[0], *(other for other in OTHERS if other != name)] for name in OTHERS}
    seeds = []
    for table in tables:
        values = {name: np.asarray(table[name], dtype=np.float64) for name in given}
        seeds.append(compute_partials(np.asarray(table[column], dtype=np.float64), values, given, seed=table.seed or 0))
    said = {}
    for name in given:
        found = [of_seed[name] for of_seed in seeds]
        said[name] = Said(
            estimate([of.spearman for of in found]),
            estimate([of.partial for of in found]),
            estimate([of.added for of in found]),
            np.mean([of.added for of in found if np.isfinite(of.added[0])] or [found[0].added], axis=0),
            compute_stat(of.n for of in found),
        )
    return said


def _is_known(table: LatentTable, name: str) -> bool:
    return name in table and bool(np.isfinite(np.asarray(table[name], dtype=np.float64)).any())


def compare_scores(said: Mapping[str, Said]) -> dict[str, Estimate]:
    """Return how much more of R^2 the CDS adds than each of the other scores, draw by draw."""
    of_cds = said["cds"].added_draws
    return {name: estimate([of_cds - said[name].added_draws]) for name in SCORES if name != "cds" and name in said}


class Matched(NamedTuple):
    """How many features each group has, how many of it were paired, and how alike the groups are.

    n_lacking: features of both groups without a property that they would be matched in, and so in no pair.
    before, after: {property: standardised mean difference, high minus low}.
    """

    n_high: Stat
    n_low: Stat
    n_pairs: Stat
    n_lacking: Stat
    before: Mapping[str, Stat]
    after: Mapping[str, Stat]


def judge_matching(
    scopes: Sequence[ScopeResult], tables: Sequence[LatentTable], matched: Sequence[Mapping[str, Pair]]
) -> dict[str, Matched]:
    """Return {matching: what it has made of the groups}; nothing where there are no high and low groups.

    Args:
        matched: the groups that are removed, see `match_groups`.
    """
    rows: dict[str, list[list[float]]] = {}
    for scope, table, pairs in zip(scopes, tables, matched, strict=True):
        properties = make_properties(scope.firing_rate, np.asarray(table["support"]), scope.mass)
        for matching, pair in pairs.items():
            whole = scope.partition.high, scope.partition.low
            balance = [compute_balance(whole, pair, properties[name]) for name in PROPERTIES]
            known = np.isfinite([properties[name] for name in MATCHINGS[matching]]).all(axis=0)
            counts = [float(group.sum()) for group in (*whole, pair[0], (whole[0] | whole[1]) & ~known)]
            before, after = zip(*balance, strict=True)
            rows.setdefault(matching, []).append([*counts, *before, *after])
    found = {}
    for matching, many in rows.items():
        n_high, n_low, n_pairs, n_lacking, *balance = (compute_stat(of) for of in zip(*many, strict=True))
        before = dict(zip(PROPERTIES, balance, strict=False))
        after = dict(zip(PROPERTIES, balance[len(PROPERTIES) :], strict=True))
        found[matching] = Matched(n_high, n_low, n_pairs, n_lacking, before, after)
    return found
