"""Which features act on outlier tokens: summed activation per token of each group, on outlier and on normal tokens.

    python experiments/group_activation.py                                   # the miniature
    python experiments/group_activation.py partition.gamma=0.1,0.15,0.2
    python experiments/group_activation.py experiment=planted_registers      # the positive control
    python experiments/group_activation.py model=clip_b16 sae=topk sae.k=32 sae.expansion_factor=8 \
        sae.n_tokens=50000000 data=imagenet data.root=/imagenet

Activations are in units of the SAE, so only ratios can be compared, and with that of all features: a token of high norm
may well activate every group more.

The paper, CLIP-B/16, as we read a summary: high-scope features 83.45 on an outlier token against 1.66 on a normal one,
low-scope ones 31.51 on a normal token against 10.39 on an outlier. It stands beside ours where model and data are its.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from infoscope.commands.experiments.runs import Run, Shown, join_runs
from infoscope.commands.experiments.sweep import Experiment, main
from infoscope.commands.experiments.sweep_figures import draw_group_activation
from infoscope.pipeline.context import Context
from infoscope.report.tables import Table
from infoscope.scope.group_activation import GroupActivation
from infoscope.scope.token_outliers import TokenOutliers
from infoscope.stages.outliers.section import add_paper_activation, make_outlier_section
from infoscope.stages.outliers.stage import OutlierTokens, group_activation_of
from infoscope.stages.probe.paper import PAPER_ACTIVATION
from infoscope.stages.probe.stage import find_paper_model

Found = tuple[TokenOutliers, dict[int, GroupActivation]]


def measure(ctx: Context) -> Found:
    """Return the model's outlier tokens, and per SAE seed what the groups do on them."""
    groups = {seed: group_activation_of(ctx, seed) for seed in ctx.config.seeds}
    return OutlierTokens.at(ctx).load(), groups


def show(runs: Sequence[Run[Found]]) -> Shown:
    """The table with the paper's rows, the figure of ratios, and what they say."""
    sections = {run.label: make_outlier_section(*run.found) for run in runs}

    def make_table(run: Run[Found]) -> Table:
        return add_paper_activation(sections[run.label].tables["outlier_activation"], find_paper_model(run.config))

    table = join_runs(runs, make_table)
    table.notes += [f"{label}: {section.findings[-2]}" for label, section in sections.items()]
    paper = {
        run.label: {group: value.on_outlier / value.on_normal for group, value in PAPER_ACTIVATION[name].items()}
        for run in runs
        if (name := find_paper_model(run.config)) in PAPER_ACTIVATION
    }
    panels = {run.label: list(run.found[1].values()) for run in runs}
    return Shown([table], {"group_activation": lambda: draw_group_activation(panels, paper)})


EXPERIMENT = Experiment("group_activation", __doc__, measure, show, stages=["outliers"])

if __name__ == "__main__":
    sys.exit(main(EXPERIMENT, sys.argv[1:]))
