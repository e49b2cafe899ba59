"""The feature-removal table: what classification, segmentation and depth lose without high- or low-scope features.

    python experiments/feature_removal.py                                  # the miniature: scenes and their own CLIP
    python experiments/feature_removal.py partition.gamma=0.05,0.1,0.2     # a section of the table per gamma
    python experiments/feature_removal.py experiment=planted_registers     # the positive control
    python experiments/feature_removal.py model=clip_b16,clip_l14 sae=topk sae.k=32 sae.expansion_factor=8 \
        sae.n_tokens=50000000 probe=plain data=imagenet data.root=/imagenet probe_data=paper \
        probe_data.segmentation.root=/ADEChallengeData2016 probe_data.depth.root=/nyu

Arguments are overrides of the `infoscope` command; values with commas are a sweep. What a run shares with an earlier
one (model, SAEs, scores, heads) is reused.

The paper: without high-scope features nothing is lost (CLIP-B/16: top-1 74.8 -> 75.5, mIoU 25.9 -> 26.0, RMSE .884 ->
.862), without low-scope ones much (64.9, 11.7, .948). Its values stand below ours where model and data are its own.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import Run, Shown, join_removal, name_figures, read_removal
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.stages.probe.figures import draw_against_random, draw_removal
from infoscope.stages.probe.results import Result


def show(runs: Sequence[Run[list[Result]]]) -> Shown:
    """The tables of the report (absolute, against random features, differences, ...) and its figures per run."""
    table, others = join_removal(runs, lambda results: results)
    against = [other for other in others if other.name == "removal_against_random"]
    figures = name_figures("removal", runs, lambda run: draw_removal(run.found))
    figures |= name_figures("removal_against_random", runs, lambda run: draw_against_random(run.found))
    return Shown([table, *against], figures, [other for other in others if other not in against])


EXPERIMENT = Experiment("feature_removal", __doc__, read_removal, show, stages=["probe"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
