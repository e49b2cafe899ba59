"""What the declared features say of the groups: how many each holds, and whether gamma divides them where it should."""

from __future__ import annotations

import math
from collections.abc import Sequence

from infoscope.report.tables import PERCENT, Align, Column, Stat, Table, compute_stat, format_number
from infoscope.scope.config import By
from infoscope.scope.partition import name_group
from infoscope.scope.separation import Cut, find_best_cut, judge_cut
from infoscope.stages.confounds.numbers import Pairs, Separation

KINDS = {"n_features": "all features", "n_global": "known-global", "n_local": "known-local"}
"""Columns of the table of groups."""
CUT_KEYS: tuple[str, ...] = ("cds", "global_above", "local_below", "balanced_accuracy")


def count_declared(pairs: Pairs) -> dict[str, dict[str, Stat]]:
    """Return {group: {kind: how many}} over SAE seeds, kinds as in `KINDS`; features without a score stand last."""
    seeds = [{**scope.partition.groups, "unscored": scope.partition.unscored} for scope, _ in pairs]
    names = [*dict.fromkeys(name for groups in seeds for name in groups if name != "unscored"), "unscored"]
    counts = {}
    for name in names:
        numbers = [
            [int((groups[name] & of).sum()) for of in (groups[name], found.known_global, found.known_local)]
            for groups, (_, found) in zip(seeds, pairs, strict=True)
            if name in groups
        ]
        counts[name] = dict(zip(KINDS, map(compute_stat, zip(*numbers, strict=True)), strict=True))
    return counts


def find_cuts(pairs: Pairs) -> dict[str, list[Cut]]:
    """Return gamma and the best cut between known-global and known-local features of each SAE seed."""
    cuts: dict[str, list[Cut]] = {"gamma": [], "best": []}
    for scope, found in pairs:
        gamma = math.nan if scope.cds_gamma is None else scope.cds_gamma
        cuts["gamma"].append(judge_cut(scope.cds, found.known_global, found.known_local, gamma))
        cuts["best"].append(find_best_cut(scope.cds, found.known_global, found.known_local))
    return cuts


def summarise_cuts(cuts: Sequence[Cut]) -> list[Stat]:
    """Return value, shares above and below, and balanced accuracy over SAE seeds."""
    return [compute_stat(of) for of in zip(*((*cut, cut.balanced_accuracy) for cut in cuts), strict=True)]


def make_declared_table(pairs: Pairs) -> Table:
    """Return how many known-global and known-local features each group holds."""
    columns = [Column("group", "group", Align.left)]
    columns += [Column(key, heading, digits=0) for key, heading in KINDS.items()]
    note = (
        "Mean over SAE seeds. What is known-global and known-local: see the table of AUROCs. All others are undeclared."
    )
    table = Table("declared", "Declared features by group", columns, notes=[note])
    for name, counts in count_declared(pairs).items():
        table.add_row(name_group(name), *counts.values())
    return table


def make_cut_table(pairs: Pairs) -> Table:
    """Return where gamma lies, and where the best cut between known-global and known-local features."""
    columns = [
        Column("cut", "cut", Align.left),
        Column("cds", "CDS", digits=4),
        Column("global_above", "known-global above it", **PERCENT),
        Column("local_below", "known-local up to it", **PERCENT),
        Column("balanced_accuracy", "balanced accuracy", **PERCENT),
    ]
    note = (
        "Balanced accuracy: the mean of the two shares, 50% tells nothing apart. The best cut has the largest one; it"
        " is found on the features that it is judged on, so that its accuracy is an upper bound. Mean over SAE seeds."
    )
    table = Table("cuts", "Cuts between known-global and known-local features", columns, notes=[note])
    for heading, cuts in zip(("gamma", "the best cut"), find_cuts(pairs).values(), strict=True):
        if heading == "gamma" and pairs[0][0].by is not By.cds:  # it divides no scores
            continue
        table.add_row(heading, *summarise_cuts(cuts))
    return table


def summarise_declared(pairs: Pairs) -> dict[str, dict[str, dict[str, Stat]]]:
    """Return the numbers of both tables."""
    cuts = {name: dict(zip(CUT_KEYS, summarise_cuts(of), strict=True)) for name, of in find_cuts(pairs).items()}
    return {"declared": count_declared(pairs), "cuts": cuts}


def say_cuts(pairs: Pairs, everyone: Separation) -> str:
    """Say where the best cut between all known-global and known-local features lies, and where gamma."""
    if everyone.is_small:
        return "Too few features are declared to say where the best cut between them lies."
    cuts = find_cuts(pairs)
    gamma, _, _, accuracy = (of.mean for of in summarise_cuts(cuts["gamma"]))
    best, above, below, best_accuracy = (of.mean for of in summarise_cuts(cuts["best"]))
    text = (
        f"The best cut between known-global and known-local features lies at CDS {format_number(best, 4)}:"
        f" {above:.0%} of the known-global ones above it, {below:.0%} of the known-local ones up to it (balanced"
        f" accuracy {best_accuracy:.0%})"
    )
    if math.isfinite(gamma):
        text += f"; gamma lies at {format_number(gamma, 4)} (balanced accuracy {accuracy:.0%})"
    return f"{text}."
