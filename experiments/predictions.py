"""Predictions and confidence: CLIP's own zero-shot head without each group of features.

    python experiments/predictions.py                                       # the miniature: scenes and their own CLIP
    python experiments/predictions.py partition.gamma=0.1,0.15,0.2
    python experiments/predictions.py model=clip_b16 sae=topk sae.k=32 sae.expansion_factor=8 sae.n_tokens=50000000 \
        data=imagenet data.root=/imagenet predict=imagenet

Top-1, share of changed predictions, mean max-probability, entropy, expected calibration error (15 bins), under each
removal and its random controls. Needs a model with a text tower: planted backbones have none and are refused.

The paper's numbers are unknown to us.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import Run, Shown, join_runs, name_figures
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.predictions.results import PredictionResult
from infoscope.stages.predict.figures import draw_reliability
from infoscope.stages.predict.section import make_prediction_section
from infoscope.stages.predict.stage import Predict

Found = dict[int, PredictionResult]


def measure(ctx: Context) -> Found:
    """Return the predictions under every variant, by SAE seed."""
    return {seed: Predict.at(ctx, seed).load() for seed in ctx.config.seeds}


def show(runs: Sequence[Run[Found]]) -> Shown:
    """The table, reliability per run, and what they say."""
    sections = {run.label: make_prediction_section(run.found) for run in runs}
    table = join_runs(runs, lambda run: sections[run.label].tables["predictions"])
    table.notes += [f"{label}: {finding}" for label, section in sections.items() for finding in section.findings]
    return Shown([table], name_figures("reliability", runs, lambda run: draw_reliability(list(run.found.values()))))


EXPERIMENT = Experiment("predictions", __doc__, measure, show, stages=["predict"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
