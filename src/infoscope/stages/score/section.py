"""The scores' part of the report: one table, the histogram, example features."""

from __future__ import annotations

from collections.abc import Sequence

from infoscope.report.section import ReportSection, SectionFigure
from infoscope.stages.score.example_figure import Example, draw_examples
from infoscope.stages.score.figures import draw_cds_histograms
from infoscope.stages.score.result import ScopeResult
from infoscope.stages.score.tables import make_scope_table, summarise_scope


def make_scope_section(scopes: Sequence[ScopeResult], examples: Sequence[Example]) -> ReportSection:
    """Return the section of some SAE seeds' scores.

    Args:
        examples: features to show, in the order to show them in.
    """
    return ReportSection(
        "scope",
        "Information scope",
        tables={"scope": make_scope_table(scopes)},
        figures={
            "cds_histogram": SectionFigure(
                lambda: draw_cds_histograms({"": scopes}),
                "How far the features' activations move between two crops that share all but one border of"
                " patches. Chance: the same maps compared between two different images.",
            ),
            "examples": SectionFigure(
                lambda: draw_examples(examples, scopes[0].scores.shift_patches),
                "Features of low, middle and high scope on the training images that excite them most.",
            ),
        },
        summary=[summarise_scope(scope) for scope in scopes],
        is_lead=True,
    )
