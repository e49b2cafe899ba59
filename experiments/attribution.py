"""Which features zero-shot predictions rest on, by gradients, and whether they are of high or of low scope.

    python experiments/attribution.py                                        # the miniature: scenes and their own CLIP
    python experiments/attribution.py partition=bands
    python experiments/attribution.py model.layer=[0,1,2]                    # with more blocks behind the features
    python experiments/attribution.py model.layer=0 attribution.n_groups=16  # gradients halfway: nearer to ablation
    python experiments/attribution.py attribution.towards=label attribution.n_steps=20
    python experiments/attribution.py model=clip_b16 sae=import sae.path=SAE.pt data=imagenet data.root=/imagenet \
        predict=imagenet predict.n_images=5000

After "Attributing CLIP": activation times the gradient of the cosine of image and class, summed over patches. It is
held against exact ablation, latent by latent, and the orders that it, integrated gradients, the logit lens and
activation alone give are compared by deletion and insertion; the SAE's error is kept. Needs a model with a text tower.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import Run, Shown, join_runs, name_figures
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.stages.attribute.numbers import Found
from infoscope.stages.attribute.section import make_attribution_section
from infoscope.stages.attribute.stage import find_seed


def measure(ctx: Context) -> list[Found]:
    """Return what was found of each SAE seed."""
    return [find_seed(ctx, seed) for seed in ctx.config.seeds]


def show(runs: Sequence[Run[list[Found]]]) -> Shown:
    """The tables, the figures of each run, and what they say."""
    sections = {run.label: make_attribution_section(run.found) for run in runs}
    tables, figures = [], {}
    for name in ("attribution", "attribution_groups"):  # what reads no patches has no groups
        having = [run for run in runs if name in sections[run.label].tables]
        if having:
            tables.append(join_runs(having, lambda run, name=name: sections[run.label].tables[name]))
    for name in ("attribution_curves", "attribution_groups"):
        having = [run for run in runs if name in sections[run.label].figures]
        figures |= name_figures(name, having, lambda run, name=name: sections[run.label].figures[name].draw())
    tables[0].notes += [f"{label}: {finding}" for label, section in sections.items() for finding in section.findings]
    return Shown(tables, figures)


EXPERIMENT = Experiment("attribution", __doc__, measure, show, stages=["attribute"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
