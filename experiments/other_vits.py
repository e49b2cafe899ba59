"""Other vision transformers: DINOv2 with and without registers first, then DeiT-III, MAE and SigLIP.

    python experiments/other_vits.py sae=topk sae.k=32 sae.expansion_factor=8 sae.n_tokens=50000000 probe=plain \
        data=imagenet data.root=/imagenet probe_data=paper probe_data.segmentation.root=/ADEChallengeData2016 \
        probe_data.depth.root=/nyu 'model.pretrained=/ckpt/${model.name}.safetensors'
    python experiments/other_vits.py experiment=planted_registers model=planted_registers,context_free

Without model= it runs dinov2_b14, dinov2_b14_reg, deit3_b16, mae_b16 and siglip_b16, whose weights it needs: from the
net, or from files named after the models as above. Outlier tokens and how far they move, the CDS, and what removal
costs. Predicted: registers take the outliers away, and with them the features of high scope that act on them. The
second command is the same question where the answer is known: tokens that leap, and tokens without any context.

The paper has other families of vision transformers; which, and their numbers, are unknown to us.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from infoscope.commands.experiments.runs import (
    OUTLIER_COLUMNS,
    Run,
    Shown,
    name_figures,
    outlier_cells,
    read_removal,
    read_scopes,
    show_models,
)
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.pipeline.context import Context
from infoscope.scope.token_outliers import TokenOutliers
from infoscope.stages.outliers.figures import draw_outlier_distances
from infoscope.stages.outliers.stage import OutlierTokens
from infoscope.stages.probe.results import Result
from infoscope.stages.score.result import ScopeResult

Found = tuple[TokenOutliers, list[ScopeResult], list[Result]]


def measure(ctx: Context) -> Found:
    """Return norms and distances of the tokens, the scores, and what the probes read from each variant."""
    tokens = OutlierTokens.at(ctx).load()
    return tokens, read_scopes(ctx), read_removal(ctx)


def show(runs: Sequence[Run[Found]]) -> Shown:
    """A row of outliers and scores per model, the removal tables, and figures of all three."""
    shown = show_models(
        "other_vits",
        "Outlier tokens and information scope by model",
        runs,
        OUTLIER_COLUMNS,
        lambda found: outlier_cells(found[0]),
        lambda found: found[1:],
    )
    distances = name_figures("outlier_emd", runs, lambda run: draw_outlier_distances(run.found[0]))
    return replace(shown, figures={**shown.figures, **distances})


EXPERIMENT = Experiment(
    "other_vits",
    __doc__,
    measure,
    show,
    stages=["probe"],
    also=["outliers"],
    defaults=["model=dinov2_b14,dinov2_b14_reg,deit3_b16,mae_b16,siglip_b16"],
)

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
