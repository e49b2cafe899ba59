"""How the CDS is distributed: a histogram per configuration, with chance, the position-locked feature and gamma.

    python experiments/cds_histograms.py                                             # the miniature
    python experiments/cds_histograms.py model.layer=0,1,2                           # a panel per block
    python experiments/cds_histograms.py sae=topk,batchtopk,jumprelu,matryoshka_prefix
    python experiments/cds_histograms.py experiment=planted_registers model=planted_registers,context_free
    python experiments/cds_histograms.py model=clip_b16 data=image_folder data.root=/photographs \
        sae=topk,batchtopk sae.k=32 sae.expansion_factor=8 sae.n_tokens=50000000

One gamma does not mean the same in two models: the score of a feature locked to its place in the grid is drawn in each
panel. The paper's histograms are unknown to us.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import (
    SCOPE_COLUMNS,
    Run,
    Shown,
    explain_unscored,
    make_run_table,
    read_scopes,
    scope_cells,
)
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.report.tables import OVER_SEEDS
from infoscope.stages.score.figures import draw_cds_histograms
from infoscope.stages.score.result import ScopeResult


def show(runs: Sequence[Run[list[ScopeResult]]]) -> Shown:
    """A row and a panel per configuration."""
    table = make_run_table(
        "cds_histograms",
        "Distribution of the CDS",
        runs,
        SCOPE_COLUMNS,
        scope_cells,
        [OVER_SEEDS, "Chance: the same maps on two different images."],
    )
    table.instead = explain_unscored([scope for run in runs for scope in run.found])
    panels = {run.label: run.found for run in runs}
    return Shown([table], {"cds_histograms": lambda: draw_cds_histograms(panels)})


EXPERIMENT = Experiment("cds_histograms", __doc__, read_scopes, show)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
