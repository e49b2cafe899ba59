"""The removal curve: top-1, mIoU and depth RMSE as more and more of the activation mass is removed.

    python experiments/removal_curve.py                                          # the miniature, 5 to 90 % of the mass
    python experiments/removal_curve.py curve.mass_shares=[0.25,0.5,0.75]        # at other shares
    python experiments/removal_curve.py experiment=planted_registers             # the positive control
    python experiments/removal_curve.py model=clip_b16 sae=topk sae.k=32 sae.expansion_factor=8 sae.n_tokens=50000000 \
        probe=plain data=imagenet data.root=/imagenet probe_data=paper \
        probe_data.segmentation.root=/ADEChallengeData2016 probe_data.depth.root=/nyu

Features are removed from the lowest CDS upwards, from the highest downwards, and in random orders, so many that their
mass comes closest to each share. No gamma is chosen. Heads are retrained, the SAE's error is kept. Ours, not in the
paper.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import Run, Shown, join_runs, name_figures
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.report.tables import Table
from infoscope.stages.curve.section import describe_curve, draw_curve, list_curve_excess, make_curve_table
from infoscope.stages.curve.stage import read_curve
from infoscope.stages.probe.results import Result


def make_table(run: Run[list[Result]]) -> Table:
    """The table of one run, with the findings below it."""
    shares = run.config.curve.mass_shares
    table = make_curve_table(run.found, shares)
    table.notes.extend(describe_curve(list_curve_excess(run.found, shares), shares))
    return table


def show(runs: Sequence[Run[list[Result]]]) -> Shown:
    """The table and the figure of each run."""
    table = join_runs(runs, make_table)
    figures = name_figures("removal_curve", runs, lambda run: draw_curve(run.found, run.config.curve.mass_shares))
    return Shown([table], figures)


EXPERIMENT = Experiment("removal_curve", __doc__, read_curve, show, stages=["curve"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
