"""The section on the cross: how each quantity goes with the CDS, in bands of it, and the levels of a Matryoshka SAE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from infoscope.analyses.config import CrossConfig
from infoscope.analyses.cross import CrossResult
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import PERCENT, Align, Cell, Column, Table, compute_stat, format_number
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.partial_ranks import MIN_LATENTS
from infoscope.scope.partition import name_group
from infoscope.stages.cross.figures import draw_bands, pick_drawn
from infoscope.stages.cross.findings import say_beyond_rate, say_featured, say_levels
from infoscope.stages.cross.quantities import LEVEL, Crossed, join_crossed

SIGNIFICANT = "*"
"""Mark of what is told from 0 within strata."""


def make_cross_section(
    found: CrossResult, tables: Sequence[LatentTable], groups: Sequence[str], config: CrossConfig
) -> ReportSection:
    """Return the section of some SAE seeds.

    Args:
        tables: what is known of each latent, of these seeds.
        groups: of the partition, by name.
    """
    crossed = join_crossed(found, tables[0])
    shown = {"cross": _make_table(crossed, config), "cross_bands": _make_band_table(crossed, found, config)}
    findings = say_beyond_rate(crossed, config)
    findings += say_featured(crossed)
    if has_levels := "level" in found.names:
        shown["levels"] = _make_level_table(tables, groups)
        findings += say_levels(crossed["level"], shown["levels"])
    drawn = pick_drawn(crossed)
    return ReportSection(
        name="cross",
        title="What goes with scope",
        findings=tuple(findings),
        tables=shown,
        figures={
            "cross": SectionFigure(
                partial(draw_bands, drawn, found.band_cds, found.matched_cds),
                f"Quantities in {config.n_bands} bands of equally many features by CDS: medians against the median CDS"
                " of the band, shaded from the first quartile to the third; dashed: medians in bands of like firing"
                " frequency; means over SAE seeds. rho: Spearman's, over all features and at like frequency,"
                f" {SIGNIFICANT} and coloured where that is told from 0.",
            )
        },
        summary={
            "quantities": {name: _summarise(of) for name, of in crossed.items()},
            **({"levels": shown["levels"].records()} if has_levels else {}),
        },
    )


def _summarise(of: Crossed) -> dict[str, object]:
    numbers = {"rho": of.rho, "low": of.low, "high": of.high, "within": of.within, "p": of.p}
    counts = {"n": of.n.mean, "n_lacking": of.n_lacking.mean}
    bands = {"band_means": of.band_means.tolist(), "matched_means": of.matched_means.tolist()}
    return {**numbers, "p_corrected": of.p_corrected, **counts, **bands}


def _make_table(crossed: dict[str, Crossed], config: CrossConfig) -> Table:
    n_tested = sum(math.isfinite(of.p) for of in crossed.values())
    lowest = format_number(min(n_tested / (1 + config.n_permutations), 1), 3)
    columns = [
        *_name_quantity(),
        Column("rho", "Spearman with CDS", signed=True),
        Column("rho_low", "95 % from", signed=True),
        Column("rho_high", "to", signed=True),
        Column("within", "at like frequency", signed=True),
        Column("p", "p", csv_only=True),
        Column("p_corrected", "p, corrected", digits=3),
        Column("n_latents", "features", digits=0, is_count=True),
        Column("n_lacking", "without it", digits=0, is_count=True, optional=True),
    ]
    notes = [
        "Every column of the table of latents (stage=latents), but for what the score itself is made of. Over the"
        f" features with a CDS, mean over SAE seeds. Interval: features drawn anew {config.n_draws:,} times, with the"
        f" ranks that they have. No number with fewer than {MIN_LATENTS} features that have the quantity, or where all"
        " have the same. Of columns that differ by a factor the first stands for all.",
        f"At like frequency: correlation of ranks within {config.n_strata} groups of equally many features by firing"
        " frequency, freed of their cubic trend over it there; it is near 0 for what goes with scope through frequency"
        f" alone. p: two-sided, of {config.n_permutations:,} permutations of the CDS within these groups of every seed,"
        f" after Holm's correction for {n_tested} quantities, so that none is below {lowest}; what stage=effects,"
        " segment and adapt tell is among them where they have run.",
        "Interval and p are over features, as if these were independent; SAEs, images and model are given.",
    ]
    marks = {SIGNIFICANT: f"p < {LEVEL:g} after the correction."}
    table = Table("cross", "What goes with scope, overall and at like firing frequency", columns, notes, marks)
    for name, of in crossed.items():
        within = Cell(of.within, SIGNIFICANT if of.is_told else "")
        numbers = (of.rho, of.low, of.high, within, of.p, of.p_corrected, of.n, of.n_lacking)
        if name == "firing_rate":  # is what the strata are made of
            numbers = (*numbers[:3], None, None, None, *numbers[6:])
        table.add_row(name, of.label, of.unit, *numbers)
    return table


def _name_quantity() -> list[Column]:
    return [
        Column("column", "column", Align.left, csv_only=True),
        Column("quantity", "quantity", Align.left),
        Column("unit", "unit", Align.left, optional=True),
    ]


def _make_band_table(crossed: dict[str, Crossed], found: CrossResult, config: CrossConfig) -> Table:
    """Return the means of each quantity in bands by CDS, and the same at like firing frequency."""
    n, heading = config.n_bands, "at like frequency:"
    ends = {0, n - 1}
    columns = [
        *_name_quantity(),
        *(Column(f"band_{i + 1}", _name_band(i, n), optional=i not in ends) for i in range(n)),
        *(Column(f"matched_{i + 1}", f"{heading} {_name_band(i, n)}", csv_only=i not in ends) for i in range(n)),
        Column("matched_difference", "highest minus lowest", signed=True),
    ]
    notes = [
        f"Means in {n} bands of equally many features by CDS, mean over SAE seeds. At like frequency: of every {n}"
        " features that follow each other by firing frequency, the one of lowest CDS is in the lowest band, and so on:"
        " these bands hardly differ in frequency, and in CDS less than the others."
    ]
    table = Table("cross_bands", "What features of low and of high scope have", columns, notes)
    rows = {name: (of.label, of.unit, of.band_means, of.matched_means) for name, of in crossed.items()}
    rows = {"cds": ("CDS, median", "", _mean(found.band_cds), _mean(found.matched_cds)), **rows}
    differences = {name: of.matched_difference for name, of in crossed.items()}
    differences["cds"] = compute_stat(found.matched_cds[:, -1] - found.matched_cds[:, 0])
    for name, (label, unit, means, matched) in rows.items():
        digits = _count_digits([*means, *matched])
        cells = [Cell(float(mean), digits=digits) for mean in (*means, *matched)]
        table.add_row(name, label, unit, *cells, Cell(differences[name], digits=digits))
    return table


def _name_band(place: int, n_bands: int) -> str:
    return {0: "lowest CDS", n_bands - 1: "highest CDS"}.get(place, f"band {place + 1}")


def _mean(of_seeds: np.ndarray) -> np.ndarray:
    return np.array([compute_stat(of).mean for of in of_seeds.T])


def _count_digits(values: Iterable[float]) -> int:
    """Return as many digits as show the largest number with three."""
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    return min(max(2 - math.floor(math.log10(largest)), 0), 8) if largest else 2


def _make_level_table(tables: Sequence[LatentTable], groups: Sequence[str]) -> Table:
    """Return mean CDS and shares of the groups of each Matryoshka level."""
    others = [name for name in ("undecided", "unscored") if any((table["group"] == name).any() for table in tables)]
    columns = [
        Column("level", "level", digits=0, is_count=True),
        Column("n_latents", "features", digits=0, is_count=True),
        Column("n_scored", "of them scored", digits=0, is_count=True),
        Column("mean_cds", "mean CDS", digits=3),
        *(Column(name.replace(" ", "_"), name_group(name), **PERCENT) for name in (*groups, *others)),
    ]
    note = (
        "Level 0: the first features, which are trained to reconstruct the tokens by themselves. Shares of the level's"
        " features; mean over SAE seeds."
    )
    table = Table("levels", "Scope by Matryoshka level", columns, [note])
    for level in np.unique(tables[0]["level"]):
        rows = []
        for of in tables:
            members = of["level"] == level
            cds, group = of["cds"][members], of["group"][members]
            scored = cds[np.isfinite(cds)]
            mean_cds = scored.mean() if len(scored) else math.nan
            rows.append([len(cds), len(scored), mean_cds, *((group == name).mean() for name in (*groups, *others))])
        n, *numbers = (compute_stat(of) for of in zip(*rows, strict=True))
        table.add_row(int(level), int(n.mean), *numbers)
    return table
