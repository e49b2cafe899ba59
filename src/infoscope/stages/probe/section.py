"""The probes' part of the report: what each probe loses without a group of features."""

from __future__ import annotations

from collections.abc import Sequence

from infoscope.report.section import ReportSection, SectionFigure
from infoscope.scope.partition import find_ends
from infoscope.stages.probe.continuum_figure import draw_continuum
from infoscope.stages.probe.figures import draw_against_random, draw_removal
from infoscope.stages.probe.results import Result
from infoscope.stages.probe.tables import make_removal_tables, summarise_removal
from infoscope.stages.score.result import ScopeResult


def make_removal_section(
    scopes: Sequence[ScopeResult], results: Sequence[Result], paper_reference: str | None = None
) -> ReportSection:
    """Return the section of what probes read from each variant of the tokens.

    Args:
        paper_reference: a key of `PAPER_VALUES` when model and data are the paper's; never for anything else.
    """
    figures = {
        "removal": SectionFigure(
            lambda: draw_removal(results),
            "What each probe reads without a group of features, and from the original tokens (dark line). Further left"
            " is worse in every panel.",
        ),
    }
    if any(result["variant"]["role"] == "control" for result in results):
        figures["removal_against_random"] = SectionFigure(
            lambda: draw_against_random(results),
            "Each probe without a group, minus the mean of the same without random features of equal mass or equal"
            " energy: a dot per SAE seed, and the 95 % interval of their mean. Left of zero is worse than random.",
        )
    if any(find_ends(scope.partition.groups) is None for scope in scopes):
        figures["continuum"] = SectionFigure(
            lambda: draw_continuum(scopes, results),
            f"What each probe gains or loses without each band of features, by the band's mean {scopes[0].by.words};"
            " lower is worse in every panel. Means over SAE seeds and draws, shades are ± one standard deviation.",
        )
    return ReportSection(
        "removal",
        "What each probe loses",
        tables=make_removal_tables(results, paper_reference),
        figures=figures,
        summary=summarise_removal(results),
        is_lead=True,
    )
