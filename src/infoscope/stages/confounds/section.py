"""The section on confounds: correlates of the score, and how well it separates known-global from known-local ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Align, Cell, Column, Table, Value
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.confounds import DIFFUSE_SUPPORT, IMAGE_CUTS, LABEL_CUTS, MIN_IMAGES
from infoscope.scope.separation import BINS_PER_OCTAVE, BROAD, SCORES, SUBSETS
from infoscope.stages.confounds.declared import make_cut_table, make_declared_table, say_cuts, summarise_declared
from infoscope.stages.confounds.figures import CONFOUNDS, EFFECTS, draw_cds_by_rank, draw_cds_confounds
from infoscope.stages.confounds.findings import say_correlations, say_ranks, say_truth
from infoscope.stages.confounds.numbers import (
    SCORE_NAMES,
    Correlation,
    Pairs,
    Ranks,
    Separation,
    compare_ranks,
    compute_medians,
    correlate,
    separate,
)

SUBSET_COLUMNS = (
    Column("subset", "features", Align.left),
    Column("n_global", "known-global", digits=0),
    Column("n_local", "known-local", digits=0),
)
"""Of `add_subsets`."""


def make_confound_section(pairs: Pairs, latents: Sequence[LatentTable]) -> ReportSection:
    """Return the section.

    Args:
        latents: what is known of each latent, of the seeds of `pairs`.
    """
    has_truth = any(found.has_truth for _, found in pairs)
    correlations = {key: correlate(key, latents) for key in (*CONFOUNDS, *(EFFECTS if has_truth else ()))}
    ranks, separations, medians = compare_ranks([scope for scope, _ in pairs]), {}, {}
    tables = {"confounds": _make_confound_table(correlations, ranks)}
    if has_truth:
        separations, medians = separate(pairs), compute_medians(pairs)
        tables["auroc"] = _make_auroc_table(separations)
        tables |= {"declared": make_declared_table(pairs), "cuts": make_cut_table(pairs)}
    findings = say_truth(separations, correlations, medians, latents)
    findings += [say_cuts(pairs, separations["all"])] if has_truth else []
    findings += [say_correlations(correlations), say_ranks(ranks)]
    colours = " Orange: known-global, blue: known-local, grey: undeclared." if has_truth else ""
    return ReportSection(
        name="confounds",
        title="Confounds of the score",
        findings=tuple(findings),
        tables=tables,
        figures={
            "cds_confounds": SectionFigure(
                partial(draw_cds_confounds, pairs, latents),
                f"Each feature's CDS against how often, how strongly and how widely it fires.{colours}",
            ),
            "cds_by_rank": SectionFigure(
                partial(draw_cds_by_rank, pairs),
                "Mean distance between the two crops at each rank, over the features that have one there; chance: the"
                " same maps between two different images; shaded: the range over SAE seeds.",
            ),
        },
        summary={
            "spearman": {
                key: {"mean": rho.mean, "sd": rho.sd, "at_equal_rate": at_equal_rate.mean, "n": n.mean}
                for key, (rho, n, at_equal_rate) in correlations.items()
            },
            "by_rank": {key: of for key, of in ranks._asdict().items() if key != "n"},
            "auroc": {
                subset: {**auroc, "cds_interval": intervals["cds"], "n_global": n_global.mean, "n_local": n_local.mean}
                for subset, (auroc, intervals, n_global, n_local) in separations.items()
            },
            **(summarise_declared(pairs) if has_truth else {}),
            "median_cds": {name: {"mean": of.mean, "sd": of.sd, "n": n.mean} for name, (of, n) in medians.items()},
        },
    )


def _make_confound_table(correlations: Mapping[str, Correlation], ranks: Ranks) -> Table:
    columns = [
        Column("quantity", "", Align.left),
        Column("value", "value"),
        Column("at_equal_rate", "at equal firing frequency"),
        Column("n_latents", "features", digits=0),
    ]
    table = Table(
        "confounds",
        "Correlates of the CDS",
        columns,
        notes=[
            "At equal firing frequency: partial rank correlation. Support: share of the grid's patches on which a"
            " feature fires, given that it fires in the image. Participation ratio: the same by (sum a)^2 / sum a^2."
            " One-sided zeros: pairs in which the map of one crop alone is all zero. First and last rank: over the"
            " features that have a distance at both.",
        ],
    )
    if "image_effect" in correlations:
        table.notes.append(
            "Effect: share of variance explained (epsilon squared): of the image means by the global factor that"
            " explains most, of the patches within images by their labels; over features that fire in at least"
            f" {MIN_IMAGES} images."
        )
    table.add_section("Spearman correlation of the CDS with")
    for key, (rho, n, at_equal_rate) in correlations.items():
        if key == "image_effect":
            table.add_section("and with what makes features global or local, without cuts")
        table.add_row((CONFOUNDS | EFFECTS)[key].name, rho, None if key == "firing_rate" else at_equal_rate, n)
    table.add_section("distance by rank (EMD / largest distance)")
    table.add_row("mean at rank 1", Cell(ranks.first, digits=3), None, ranks.n)
    table.add_row("mean at the last rank of the CDS", Cell(ranks.last, digits=3), None, ranks.n)
    table.add_row("chance of the same features, mean over ranks", Cell(ranks.chance, digits=3), None, ranks.n)
    table.add_row("Spearman correlation of first and last rank", ranks.spearman, None, ranks.n)
    return table


def add_subsets(
    table: Table, separations: Mapping[str, Separation], list_values: Callable[[Separation], Iterable[Value]]
) -> None:
    """Add a row for each subset to a table that begins with `SUBSET_COLUMNS`; `list_values` gives the other columns."""
    for subset, of in separations.items():
        if subset == next(iter(BROAD)):
            table.add_section("known-broad in the place of known-global features")
        table.add_row((SUBSETS | BROAD)[subset], of.n_global, of.n_local, *list_values(of))


def _make_auroc_table(separations: Mapping[str, Separation]) -> Table:
    columns = [
        *SUBSET_COLUMNS,
        Column("cds", "CDS"),
        Column("cds_low", "95 % from"),
        Column("cds_high", "to"),
        *(Column(name, SCORE_NAMES[name], optional=True) for name in SCORES[1:]),
    ]
    table = Table(
        "auroc",
        "Known-global against known-local features, AUROC",
        columns,
        notes=[
            "AUROC: the chance that a random known-global feature has the higher value, ties counting half; 0.5 tells"
            " nothing apart, below it the order is reversed. Interval: both groups drawn anew 1,000 times, the mean"
            " over SAE seeds in each draw.",
            "Declared by a formula that does not read the score, from the training images. Known-global: a global"
            f" factor explains at least {IMAGE_CUTS[1]:.0%} of the variance of the image means (epsilon squared), the"
            f" labels of the patches less than {LABEL_CUTS[0]:.0%} of that within images; known-local: the labels at"
            f" least {LABEL_CUTS[1]:.0%}, every factor less than {IMAGE_CUTS[0]:.0%}. Features that fire in fewer than"
            f" {MIN_IMAGES} images take no part. Compact: support below {DIFFUSE_SUPPORT:.0%}"
            " of the grid. Matched frequency: equally many of both groups in every"
            f" {'half ' if BINS_PER_OCTAVE == 2 else ''}octave of firing rate, one draw.",
        ],
    )
    if BROAD.keys() & separations.keys():
        table.notes.append(
            "Known-broad: a fact that no small window of the picture tells, such as whether two marks far apart have"
            f" the same colour, explains at least {IMAGE_CUTS[1]:.0%} of the variance of the image means; of"
            f" known-local features every such fact explains less than {IMAGE_CUTS[0]:.0%}."
        )

    def list_values(of: Separation) -> list[Value]:
        return [of.auroc["cds"], *of.intervals["cds"], *(of.auroc[score] for score in SCORES[1:])]

    add_subsets(table, separations, list_values)
    return table
