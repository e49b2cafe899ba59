"""The section on how far the evidence of features reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import OVER_SEEDS, PERCENT, Align, Column, Table, compute_stat, format_number
from infoscope.scope.config import By
from infoscope.scope.partial_ranks import MIN_LATENTS
from infoscope.scope.partition import ENDS, name_group
from infoscope.stages.confounds.numbers import Correlation, Separation
from infoscope.stages.confounds.section import SUBSET_COLUMNS, add_subsets
from infoscope.stages.extent.corners import Corner
from infoscope.stages.extent.figures import draw_corners, draw_extent_cds, draw_responses
from infoscope.stages.extent.findings import say_extents
from infoscope.stages.extent.numbers import (
    ALL,
    CORRELATES,
    MEASURES,
    SCORES,
    Curve,
    Seeds,
    Summary,
    compute_curves,
    correlate_all,
    is_small,
    separate_seeds,
    summarise_groups,
)


def make_extent_section(seeds: Seeds, design: str, corners: Sequence[Corner] = ()) -> ReportSection:
    """Return the section.

    Args:
        design: what was measured of each latent, a sentence.
        corners: features to show, with their windows.
    """
    curves, summaries, correlations = compute_curves(seeds), summarise_groups(seeds), correlate_all(seeds)
    separations = separate_seeds(seeds)
    tables = {
        "extent": _make_response_table(curves, seeds),
        "extent_groups": _make_group_table(summaries, seeds),
        "extent_correlates": _make_correlation_table(correlations),
    }
    if separations:
        tables["extent_auroc"] = _make_auroc_table(separations)
    return ReportSection(
        name="extent",
        title="Extent of the evidence",
        findings=tuple(
            say_extents(separations, curves, summaries, correlations, [one.extent for one in seeds], design)
        ),
        tables=tables,
        figures=_make_figures(seeds, curves, corners),
        summary={
            "radii": seeds[0].extent.radii.tolist(),
            "groups": {name: of._asdict() for name, of in summaries.items()},
            "response": {name: of._asdict() for name, of in curves.items()},
            "spearman": {
                measure: {key: of._asdict() for key, of in found.items()} for measure, found in correlations.items()
            },
            "auroc": {
                subset: {
                    **of.auroc,
                    "intervals": of.intervals,
                    "n_global": of.n_global.mean,
                    "n_local": of.n_local.mean,
                }
                for subset, of in separations.items()
            },
        },
    )


def _make_figures(seeds: Seeds, curves: Mapping[str, Curve], corners: Sequence[Corner]) -> dict[str, SectionFigure]:
    figures = {
        "extent_response": SectionFigure(
            partial(draw_responses, curves, seeds[0]),
            "Mean response to windows around the patch where a feature fires most: the window kept among donors"
            " (solid), and everything but the window kept (dashed). 0: what the donor alone gives, 1: the whole"
            " picture.",
        ),
        "extent_cds": SectionFigure(
            partial(draw_extent_cds, seeds),
            "Each feature's extents and context effect against its CDS; extents of 0 and 1 are spread a little."
            + ("" if seeds[0].scope.by is By.cds else " Dashed: gamma, which divides features here."),
        ),
    }
    if corners:
        figures["extent_examples"] = SectionFigure(
            partial(draw_corners, corners),
            "Features whose maps stay or move, on narrow or wide evidence, each on its best images. Small square: the"
            " patch where it fires most; large one: the smallest measured window that keeps half of its response."
            " Below: the response to the patch alone, then to that window; none: no measured one keeps half; unknown:"
            " donors excite the feature nearly as much as this image does. The extent is read off all images of a"
            " feature together, so that the windows of single ones differ. No row: no feature lies there.",
        )
    return figures


def _make_response_table(curves: Mapping[str, Curve], seeds: Seeds) -> Table:
    radii = seeds[0].extent.radii.tolist()
    columns = [
        Column("radius", "radius", digits=0, is_count=True, unit="patches"),
        Column("side", "window", Align.left),
    ]
    for name in curves:
        key, optional = name.replace(" ", "_"), name != ALL
        columns.append(Column(f"kept_{key}", f"kept, {name_group(name)}"))
        columns.append(Column(f"replaced_{key}", f"replaced, {name_group(name)}", optional=optional))
    notes = [
        "Activation at the patch where a feature fires most, with a window around it kept among donors, or replaced by"
        " donors. The sum over images and donors of (activation - the donor's own) over that of (the whole picture's -"
        " the donor's own); mean over features. Windows are cut at the border of the"
        f" picture, of {seeds[0].extent.grid} x {seeds[0].extent.grid} patches.",
        OVER_SEEDS,
    ]
    table = Table("extent", "Response to windows around the patch where a feature fires most", columns, notes)
    for place, radius in enumerate(radii):
        side = 2 * radius + 1
        table.add_row(
            radius,
            f"{side} x {side}",
            *(of for curve in curves.values() for of in (curve.kept[place], curve.replaced[place])),
        )
    return table


def _make_group_table(summaries: Mapping[str, Summary], seeds: Seeds) -> Table:
    columns = [
        Column("group", "group", Align.left),
        Column("n", "features", digits=0, is_count=True),
        Column("extent", "median extent", digits=3),
        Column("mean_extent", "median mean extent", digits=3),
        Column("context_effect", "median context effect", digits=3),
        Column("at_0", "extent 0", **PERCENT),
        Column("at_1", "extent 1", **PERCENT),
        Column("n_images", "images each", digits=1, optional=True),
    ]
    notes = [
        "Extent: side of the smallest window that keeps half of the response, less the patch itself, as a share of the"
        " grid's side less one patch; interpolated between radii. 0: the patch is enough, 1: no measured window is."
        " Context effect: share of the variance of the activation, over the patch's own or the donor's pixels in its"
        " own or the donor's surroundings, that lies within the same patch; a feature that is silent unless both are"
        " its own has 2/3. Mean extent: the share of the response that windows lose, averaged over their sides from one"
        " patch to the grid's.",
        *_say_gamma(seeds),
        OVER_SEEDS,
    ]
    table = Table("extent_groups", "Extent and context effect by group", columns, notes)
    for name, of in summaries.items():
        table.add_row(name_group(name), *of)
    return table


def _say_gamma(seeds: Seeds) -> list[str]:
    """Say what divides the two groups, where one threshold does."""
    by, gammas = seeds[0].scope.by, [one.scope.partition.gamma for one in seeds]
    (above, below), known = ENDS[by], [gamma for gamma in gammas if gamma is not None]
    if len(known) < len(gammas) or not {above, below} <= seeds[0].groups.keys():
        return []
    gamma = format_number(compute_stat(known).mean, 4)
    return [f"Groups: {name_group(above)} above gamma of {by.words}, {gamma}, {name_group(below)} up to it."]


def _make_correlation_table(correlations: Mapping[str, Mapping[str, Correlation]]) -> Table:
    columns = [Column("quantity", "Spearman correlation with", Align.left)]
    for measure, name in MEASURES.items():
        columns.append(Column(measure, name, signed=True))
        columns.append(Column(f"{measure}_at_equal_rate", "at equal frequency", signed=True))
    columns.append(Column("n", "features", digits=0, is_count=True))
    notes = [
        "At equal frequency: partial rank correlation, given the firing frequency. No number with fewer than"
        f" {MIN_LATENTS} features that have both.",
        OVER_SEEDS,
    ]
    table = Table("extent_correlates", "What extent and context effect go with", columns, notes)
    for key, name in CORRELATES.items():
        found = [of.get(key) for of in correlations.values()]
        known = [of for of in found if of is not None]
        if not known:
            continue
        cells = [
            cell
            for of in found
            for cell in (
                (None, None)
                if of is None or is_small(of)
                else (of.rho, None if key == "firing_rate" else of.at_equal_rate)
            )
        ]
        table.add_row(name, *cells, known[0].n)
    return table


def _make_auroc_table(separations: Mapping[str, Separation]) -> Table:
    columns = list(SUBSET_COLUMNS)
    for score, name in SCORES.items():
        columns.append(Column(score, name))
        columns.append(Column(f"{score}_low", "95 % from", csv_only=score not in ("extent", "cds"), optional=True))
        columns.append(Column(f"{score}_high", "to", csv_only=score not in ("extent", "cds"), optional=True))
    notes = [
        "Over the features that have all of these. AUROC: the chance that a random known-global (or known-broad)"
        " feature has the higher value; 0.5 tells nothing apart, below it the order is reversed, and tells as much."
        " Interval: both groups drawn anew 1,000 times. What is known of features: see stage=confounds.",
        OVER_SEEDS,
    ]
    table = Table("extent_auroc", "Known-global against known-local features, AUROC", columns, notes)
    add_subsets(
        table,
        separations,
        lambda of: [value for score in SCORES for value in (of.auroc[score], *of.intervals[score])],
    )
    return table
