"""Do outlier tokens move? EMD between two shifted crops, of the norms of outlier tokens against those of normal ones.

    python experiments/outlier_emd.py                                   # the miniature: scenes and their own CLIP
    python experiments/outlier_emd.py model.layer=0,1,2,3               # a section of the table per block
    python experiments/outlier_emd.py experiment=planted_registers      # the positive control
    python experiments/outlier_emd.py model=clip_b16,clip_l14 data=image_folder data.root=/photographs

No SAE is trained. Beside all normal tokens stand as many next-highest normal ones as a crop has outliers, for a map of
few tokens moves more than one of many whatever they do; chance is one image's map against the next one's. That a model
has no outlier tokens, or none that form a mode of their own, is a result and is said.

The paper's numbers are unknown to us.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import Run, Shown, join_runs, name_figures
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.scope.token_outliers import TokenOutliers
from infoscope.stages.outliers.figures import draw_norms_by_layer, draw_outlier_distances
from infoscope.stages.outliers.section import make_outlier_section
from infoscope.stages.outliers.stage import OutlierTokens


def measure(ctx: Context) -> TokenOutliers:
    """Return norms and distances of the model's tokens."""
    return OutlierTokens.at(ctx).load()


def show(runs: Sequence[Run[TokenOutliers]]) -> Shown:
    """The table of distances, a figure of their distributions per run, and what they say."""
    sections = {run.label: make_outlier_section(run.found, {}) for run in runs}
    figures = name_figures("outlier_emd", runs, lambda run: draw_outlier_distances(run.found))
    figures |= name_figures("norms_by_block", runs, lambda run: draw_norms_by_layer(run.found))
    findings = [
        f"{label}: {finding}"
        for label, section in sections.items()
        for finding in section.findings
        if not section.tables["outlier_emd"].sentence
    ]
    tables = {label: section.tables["outlier_emd"] for label, section in sections.items()}
    for label, table in tables.items():
        if table.instead:  # the findings say it, and more
            table.instead = " ".join(sections[label].findings)
    joined = join_runs(runs, lambda run: tables[run.label])
    joined.notes += findings
    return Shown([joined], figures)


EXPERIMENT = Experiment("outlier_emd", __doc__, measure, show, stages=["outliers"], is_scored=False)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
