"""The section on the cross: how each quantity goes with the CDS, in bands of it, and the levels of a Matryoshka SAE."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import numpy as np

from infoscope.analyses.config import CrossConfig
from infoscope.analyses.cross import CrossResult
from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Align, Cell, Column, Table, compute_stat
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
    shown, findings = {"cross": _make_table(crossed, found, config)}, say_beyond_rate(crossed, config)
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
                partial(draw_bands, drawn, found.band_cds),
                f"Quantities in {config.n_bands} bands of equally many features by CDS: medians against the median CDS"
                " of the band, shaded from the first quartile to the third; means over SAE seeds. rho: Spearman's, over"
                f" all features, as the curve; at like firing frequency, which no curve shows, {SIGNIFICANT} and"
                " coloured where it is told from 0.",
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
    return {**numbers, "p_corrected": of.p_corrected, **counts, "band_means": of.band_means.tolist()}


def _make_table(crossed: dict[str, Crossed], found: CrossResult, config: CrossConfig) -> Table:
    n_bands = config.n_bands
    columns = [
        Column("column", "column", Align.left, csv_only=True),
        Column("quantity", "quantity", Align.left),
        Column("unit", "unit", Align.left, optional=True),
        Column("rho", "Spearman with CDS", signed=True),
        Column("rho_low", "95 % from", signed=True),
        Column("rho_high", "to", signed=True),
        Column("within", "at like frequency", signed=True),
        Column("p", "p", csv_only=True),
        Column("p_corrected", "p, corrected", digits=3),
        Column("n_latents", "features", digits=0, is_count=True),
        Column("n_lacking", "without it", digits=0, is_count=True, optional=True),
        *(Column(f"band_{i + 1}", _name_band(i, n_bands), optional=True) for i in range(n_bands)),
    ]
    notes = [
        "Everything that the table of latents knows, but for what the score's own pairs of crops give. Over the"
        f" features with a CDS, mean over SAE seeds; interval: features drawn anew {config.n_draws:,} times, the SAEs"
        f" given, ranks kept. No number with fewer than {MIN_LATENTS} features that have the quantity, or where it is"
        " the same in all. Of columns that differ by a factor the first stands for all.",
        f"At like frequency: correlation of ranks within {config.n_strata} groups of equally many features by firing"
        " frequency, freed of their cubic trend over it there; so what goes with scope through frequency alone has"
        f" none. p: of {config.n_permutations:,} permutations of the CDS within these groups of every seed, two-sided,"
        f" after Holm's correction for {sum(math.isfinite(of.p) for of in crossed.values())} quantities; what"
        " stage=effects, segment and adapt tell is among them where they have run.",
        f"The last columns: means of the quantity in {n_bands} bands of equally many features by CDS.",
    ]
    marks = {SIGNIFICANT: f"p < {LEVEL:g} after the correction."}
    table = Table("cross", "What goes with scope, overall and at like firing frequency", columns, notes, marks)
    nothing = [None] * (len(columns) - 3 - n_bands)
    table.add_row("cds", "CDS, median", "", *nothing, *_write_bands(_mean(found.band_cds)))
    for name, of in crossed.items():
        within = Cell(of.within, SIGNIFICANT if of.is_told else "")
        numbers = (of.rho, of.low, of.high, within, of.p, of.p_corrected, of.n, of.n_lacking)
        unit = "share" if of.column.values.dtype.kind == "b" else of.column.unit
        if name == "firing_rate":  # is what the strata are made of
            numbers = (*numbers[:3], None, None, None, *numbers[6:])
        table.add_row(name, of.label, "" if unit == "1" else unit, *numbers, *_write_bands(of.band_means))
    return table


def _name_band(place: int, n_bands: int) -> str:
    return {0: "lowest CDS", n_bands - 1: "highest CDS"}.get(place, f"band {place + 1}")


def _mean(of_seeds: np.ndarray) -> np.ndarray:
    return np.array([compute_stat(of).mean for of in of_seeds.T])


def _write_bands(means: Iterable[float]) -> list[Cell]:
    """Return cells with as many digits as show the largest number with three."""
    values = [float(mean) for mean in means]
    largest = max((abs(value) for value in values if math.isfinite(value)), default=0.0)
    digits = min(max(2 - math.floor(math.log10(largest)), 0), 8) if largest else 2
    return [Cell(value, digits=digits) for value in values]


def _make_level_table(tables: Sequence[LatentTable], groups: Sequence[str]) -> Table:
    """Return mean CDS and shares of the groups of each Matryoshka level."""
    others = [name for name in ("undecided", "unscored") if any((table["group"] == name).any() for table in tables)]
    columns = [
        Column("level", "level", digits=0, is_count=True),
        Column("n_latents", "features", digits=0, is_count=True),
        Column("n_scored", "of them scored", digits=0, is_count=True),
        Column("mean_cds", "mean CDS", digits=3),
        *(
            Column(name.replace(" ", "_"), name_group(name), digits=1, scale=100, unit="%")
            for name in (*groups, *others)
        ),
    ]
    note = "Level 0: the first features, which reconstruct alone. Shares of the level's features; mean over SAE seeds."
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
