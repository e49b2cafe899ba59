"""The section on how far the evidence of features reaches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from infoscope.report.section import ReportSection
from infoscope.report.tables import Align, Column, Table, compute_stat
from infoscope.sae.latent_table import LatentTable
from infoscope.scope.extent.result import ExtentResult
from infoscope.stages.score.result import ScopeResult


def make_extent_section(
    found: Sequence[ExtentResult], scopes: Sequence[ScopeResult], latents: Sequence[LatentTable]
) -> ReportSection:
    """Return the section.

    Args:
        latents: what is known of each latent, of the seeds of `found`.
    """
    columns = [Column("radius", "radius in patches", Align.left), Column("kept", "kept"), Column("without", "replaced")]
    table = Table("extent", "Response to windows around the patch where a feature fires most", columns)
    for place, radius in enumerate(found[0].radii):
        kept, without = (
            compute_stat(float(np.nanmean(of[place])) for of in curves)
            for curves in ([one.response for one in found], [one.response_without for one in found])
        )
        table.add_row(str(radius), kept, without)
    return ReportSection(name="extent", title="Extent of the evidence", tables={"extent": table})
