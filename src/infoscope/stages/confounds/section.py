"""The section on confounds: correlates of the score, and how well it separates known-global from known-local ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from infoscope.report.section import ReportSection, SectionFigure
from infoscope.report.tables import Align, Cell, Column, Stat, Table, compute_stat
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.confounds import DIFFUSE_SUPPORT, IMAGE_CUTS, LABEL_CUTS, MIN_IMAGES, ConfoundResult
from infoscope.scope.separation import BINS_PER_OCTAVE, SCORES, SUBSETS, compute_separation
from infoscope.stages.confounds.figures import CONFOUNDS, EFFECTS, draw_cds_by_rank, draw_cds_confounds
from infoscope.stages.confounds.findings import (
    say_auroc,
    say_baselines,
    say_correlations,
    say_diffuse,
    say_effects,
    say_matched,
    say_ranks,
)
from infoscope.stages.confounds.numbers import (
    QUADRANTS,
    SCORE_NAMES,
    Correlation,
    Separations,
    compare_ranks,
    compute_quadrant,
    correlate,
    count_features,
    read_auroc,
    read_interval,
)
from infoscope.stages.probe.results import Result
from infoscope.stages.probe.tables import make_matched_table
from infoscope.stages.score.result import ScopeResult


def make_confound_section(
    scopes: Sequence[ScopeResult],
    confounds: Mapping[int, ConfoundResult],
    latents: Sequence[LatentTable],
    results: Sequence[Result],
) -> ReportSection:
    """Return the section.

    Args:
        scopes: one result per SAE seed.
        confounds: by SAE seed, one for each of `scopes`.
        latents: what is known of each latent, of the seeds of `scopes`.
        results: as for the removal tables; those of matched frequency have their table here.
    """
    pairs = [(scope, confounds[scope.sae_seed]) for scope in scopes]
    has_truth = any(found.has_truth for _, found in pairs)
    correlations = {key: correlate(key, latents) for key in (*CONFOUNDS, *(EFFECTS if has_truth else ()))}
    by_rank = compare_ranks(scopes)
    tables = {"confounds": _make_confound_table(correlations, by_rank)}
    separations = [compute_separation(scope.cds, found) for scope, found in pairs] if has_truth else []
    medians = {name: compute_quadrant(pairs, *parts) for name, parts in QUADRANTS.items()} if has_truth else {}
    findings: list[str] = []
    if has_truth:
        tables["auroc"] = _make_auroc_table(separations)
        findings += [
            say_auroc(separations),
            say_effects(correlations, latents),
            say_baselines(separations),
            say_diffuse(separations, medians),
        ]
    else:
        findings.append(
            "The data have no global factors and label maps, so which features are global is not known: there is no"
            " AUROC."
        )
    findings += [say_correlations(correlations), say_ranks(by_rank)]
    if (matched := make_matched_table(results)) is not None:
        tables["removal_matched"] = matched
        findings.append(say_matched(results))
    colours = " Orange: known-global, blue: known-local, grey: undeclared." if has_truth else ""
    return ReportSection(
        name="confounds",
        title="Confounds of the score",
        findings=tuple(findings),
        tables=tables,
        figures={
            "cds_confounds": SectionFigure(
                partial(draw_cds_confounds, scopes, confounds, latents),
                f"Each feature's CDS against how often, how strongly and how widely it fires.{colours}",
            ),
            "cds_by_rank": SectionFigure(
                partial(draw_cds_by_rank, scopes, confounds),
                "Mean distance between the two crops at each rank, over the features that have one there; chance: the"
                " same maps between two different images.",
            ),
        },
        summary=_summarise(correlations, by_rank, separations, medians),
    )


def _make_confound_table(
    correlations: Mapping[str, Correlation], by_rank: Mapping[str, Sequence[tuple[float, int]]]
) -> Table:
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
    for key, found in correlations.items():
        if key == "image_effect":
            table.add_section("and with what makes features global or local, without cuts")
        equal = None if key == "firing_rate" else compute_stat(found.at_equal_rate)
        table.add_row((CONFOUNDS | EFFECTS)[key].name, compute_stat(found.rho), equal, compute_stat(found.n))
    table.add_section("distance by rank (EMD / largest distance)")
    names = {
        "first": "mean at rank 1",
        "last": "mean at the last rank of the CDS",
        "chance": "chance of the same features, mean over ranks",
        "spearman": "Spearman correlation of first and last rank",
    }
    for key, name in names.items():
        value, n = _split(by_rank[key])
        table.add_row(name, Cell(value, digits=2 if key == "spearman" else 3), None, n)
    return table


def _split(pairs: Sequence[tuple[float, int]]) -> tuple[Stat, Stat]:
    return compute_stat(value for value, _ in pairs), compute_stat(n for _, n in pairs)


def _make_auroc_table(separations: Separations) -> Table:
    columns = [
        Column("subset", "features", Align.left),
        Column("n_global", "known-global", digits=0),
        Column("n_local", "known-local", digits=0),
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
    for subset, name in SUBSETS.items():
        low, high = read_interval(separations, subset)
        n_global, n_local = count_features(separations, subset)
        values = {score: read_auroc(separations, subset, score) for score in SCORES}
        table.add_row(name, n_global, n_local, values["cds"], low, high, *(values[score] for score in SCORES[1:]))
    return table


def _summarise(
    correlations: Mapping[str, Correlation],
    by_rank: Mapping[str, Sequence[tuple[float, int]]],
    separations: Separations,
    medians: Mapping[str, tuple[Stat, Stat]],
) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "spearman": {
            key: _as_json(compute_stat(found.rho))
            | {
                "at_equal_rate": _finite(compute_stat(found.at_equal_rate).mean),
                "n": _finite(compute_stat(found.n).mean),
            }
            for key, found in correlations.items()
        },
        "by_rank": {key: _as_json(_split(pairs)[0]) for key, pairs in by_rank.items()},
        "auroc": {},
        "median_cds": {name: _as_json(stat) | {"n": _finite(n.mean)} for name, (stat, n) in medians.items()},
    }
    for subset in SUBSETS if separations else ():
        low, high = read_interval(separations, subset)
        n_global, n_local = count_features(separations, subset)
        summary["auroc"][subset] = {
            **{score: _as_json(read_auroc(separations, subset, score)) for score in SCORES},
            "cds_interval": [_finite(low), _finite(high)],
            "n_global": _finite(n_global.mean),
            "n_local": _finite(n_local.mean),
        }
    return summary


def _as_json(stat: Stat) -> dict[str, float | None]:
    return {"mean": _finite(stat.mean), "sd": _finite(stat.sd)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
