"""Where the cut lies: top-1, mIoU and depth RMSE without high-scope and without low-scope features as gamma moves.

    python experiments/gamma_sweep.py                                                      # the miniature, six gammas
    python experiments/gamma_sweep.py partition=quantile partition.quantile=0.25,0.5,0.75,0.9
    python experiments/gamma_sweep.py experiment=planted_registers                         # the positive control
    python experiments/gamma_sweep.py partition.gamma=0.05,0.1,0.15,0.2 model=clip_b16 sae=topk sae.k=32 \
        sae.expansion_factor=8 sae.n_tokens=50000000 probe=plain data=imagenet data.root=/imagenet probe_data=paper \
        probe_data.segmentation.root=/ADEChallengeData2016 probe_data.depth.root=/nyu

Model, SAEs and scores are made once; each gamma trains the heads of the groups that it changes, and of random groups of
their mass. The SAE's error is kept. Other keys may be swept too: a figure for each of their combinations.

The paper's values, at a gamma unknown to us, stand below where model and data are its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import Run, Shown, is_swept, join_removal, read_removal, split_runs
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.commands.experiments.sweep_figures import Point, draw_removal_sweep
from infoscope.pipeline.context import Context
from infoscope.report.tables import Stat
from infoscope.stages.probe.results import Result


def measure(ctx: Context) -> list[Result]:
    """Return what the probes read at one gamma."""
    return read_removal(ctx, is_swept)


def make_point(run: Run[list[Result]]) -> Point:
    """Place a run at its gamma: its mean over SAE seeds where a rule finds it."""
    gamma = run.facts["gamma"]
    assert isinstance(gamma, Stat)
    return Point(gamma.mean, f"{gamma.mean:.3g}", run.found)


def show(runs: Sequence[Run[list[Result]]]) -> Shown:
    """The removal tables, a section per gamma, and curves over gamma."""
    table, others = join_removal(runs, lambda results: results)
    figures = {
        f"gamma_sweep{number}": lambda of=of: draw_removal_sweep([make_point(run) for run in of], "gamma")
        for number, of in split_runs(runs, "partition").items()
    }
    return Shown([table], figures, others)


EXPERIMENT = Experiment(
    "gamma_sweep", __doc__, measure, show, stages=["probe"], defaults=["partition.gamma=0.05,0.1,0.15,0.2,0.25,0.3"]
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
