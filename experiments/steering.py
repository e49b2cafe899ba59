"""What single features do to zero-shot predictions, and predictions without the features that carry what misleads.

    python experiments/steering.py                                          # the miniature: scenes and their own CLIP
    python experiments/steering.py model.layer=[0,1,2]                      # which blocks have most steerable features
    python experiments/steering.py steer.words=WORDS.txt steer.n_latents=null
    python experiments/steering.py steer.spurious=place steer.n_suppressed=[1,10,100]
    python experiments/steering.py model=clip_l14 data=waterbirds data.root=FOLDER predict.templates=list \
        'predict.template_list=["a photo of a {}"]'

After "Steering CLIP's vision transformer with sparse autoencoders": a feature is set to a high value on all patches,
and is steerable if one word rises in most images; the same pushes along random directions say what any push does. Then
the features that carry a target that misleads, chosen on training images, are removed, and random ones of equal mass:
average and worst-group accuracy. The SAE's error is kept. Needs a model with a text tower.

Published for CLIP B/32: 10 to 15% of features are steerable, most in the middle blocks; the formula is not known to us,
the images and the words are others, so that our shares are no reproduction.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import Run, Shown, join_runs, name_figures
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.report.section import ReportSection
from infoscope.stages.steer.stage import Steer


def measure(ctx: Context) -> ReportSection:
    """Return the section of a run."""
    return Steer().section(ctx)


def show(runs: Sequence[Run[ReportSection]]) -> Shown:
    """The tables, the figures of each run, and what they say."""
    tables, figures = [], {}
    for name in ("steering", "steering_words", "suppression"):  # the last where some target misleads
        having = [run for run in runs if name in run.found.tables]
        if having:
            tables.append(join_runs(having, lambda run, name=name: run.found.tables[name]))
        having = [run for run in runs if name in run.found.figures]
        figures |= name_figures(name, having, lambda run, name=name: run.found.figures[name].draw())
    tables[0].notes += [f"{run.label}: {finding}" for run in runs for finding in run.found.findings]
    return Shown(tables, figures)


EXPERIMENT = Experiment("steering", __doc__, measure, show, stages=["steer"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
