"""Which SAE settings make the score trustworthy: twelve settings on one set of scenes, the chosen one on another.

    python experiments/sae_settings.py                      # 12 runs, then the chosen and the first setting again
    python experiments/sae_settings.py data.n_train=1200    # arguments are overrides of every run

What is chosen by, declared before any run: at equal firing frequency, the rank correlation of the CDS with what the
picture's global factors explain of a feature, minus its rank correlation with what patch labels explain within pictures
(partial Spearman; features that fire in enough pictures). A setting must leave at most a quarter of the variance
unexplained, or its features are not those of the tokens.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from infoscope.commands.experiments.sweep import run_command
from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.report.tables import Align, Column, Table
from infoscope.runtime.job import Job
from infoscope.runtime.output import say
from infoscope.runtime.progress import Display
from infoscope.scope.partial_ranks import compute_spearman
from infoscope.scope.separation import compute_separation
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.score.stage import Score
from infoscope.stages.train_sae import TrainSAE

SETTINGS = (
    "sae=topk",
    "sae=topk sae.k=8",
    "sae=topk sae.k=4",
    "sae=topk sae.k=32",
    "sae=topk sae.expansion_factor=8",
    "sae=topk sae.k=8 sae.expansion_factor=8",
    "sae=topk sae.k=8 sae.expansion_factor=2",
    "sae=topk sae.expansion_factor=2",
    "sae=batchtopk sae.k=8",
    "sae=matryoshka_prefix",
    "sae=matryoshka_prefix sae.k=8",
    "sae=jumprelu",
)
PLAIN = SETTINGS[0]
SAME_LR = "sae.lr=0.001"
"""The learning rate of every setting but jumprelu, which has its own."""
CHOOSE_ON, REPORT_ON = "data.seed=1", "data.seed=0"
MAX_FVU = 0.25
COLUMNS = {
    "score": Column("score", "image - label effect", digits=3),
    "image_effect": Column("image_effect", "CDS with image effect", digits=3),
    "label_effect": Column("label_effect", "CDS with label effect", digits=3),
    "firing_rate": Column("firing_rate", "CDS with firing frequency", digits=3),
    "auroc": Column("auroc", "AUROC", digits=3),
    "auroc_matched": Column("auroc_matched", "AUROC, matched", digits=3),
    "n_matched": Column("n_matched", "matched features", digits=0),
    "mean_cds": Column("mean_cds", "mean CDS", digits=3),
    "fvu": Column("fvu", "FVU", digits=3),
}


def measure(overrides: list[str]) -> tuple[dict[str, float], Path]:
    """Train and score one SAE; return what is known of its score's trustworthiness, and the output folder."""
    lr = [] if "sae=jumprelu" in overrides else [SAME_LR]
    config = compose([*lr, *overrides, "seeds=[0]", "stage=score"])
    ctx = Context(config, Display(bars=config.trainer.progress), Job(overrides=tuple(overrides)))
    with ctx.tracking:
        confounds = Confounds.at(ctx, 0).load()
        cds = Score.at(ctx, 0).load().cds(config.scope.k_cds).values
    cds = np.where(confounds.fires_enough, cds, np.nan)
    rate = confounds.properties.firing_rate
    assert confounds.label_effect is not None
    of_image = compute_spearman(cds, confounds.image_effect, given=rate)[0]
    of_label = compute_spearman(cds, confounds.label_effect, given=rate)[0]
    separation = compute_separation(cds, confounds)
    found = {
        "score": of_image - of_label,
        "image_effect": of_image,
        "label_effect": of_label,
        "firing_rate": compute_spearman(cds, rate)[0],
        "auroc": separation["all"]["cds"].value,
        "auroc_matched": separation["matched"]["cds"].value,
        "n_matched": separation["matched"]["cds"].n_positive,
        "mean_cds": float(np.nanmean(cds)),
        "fvu": TrainSAE.at(ctx, 0).read_json("metrics.json")["fvu"],
    }
    return found, Path(config.output_dir)


def run(arguments: list[str]) -> list[str]:
    """Run everything, print and write the tables; a setting that fails stops it, so nothing is left to report."""
    columns = [Column("setting", "setting", Align.left), *COLUMNS.values()]
    first = Table("sae_settings", f"Chosen on {CHOOSE_ON}; correlations at equal firing frequency", columns)
    found = {}
    for setting in SETTINGS:
        found[setting], output_dir = measure([*setting.split(), CHOOSE_ON, *arguments])
        first.add_row(setting, *found[setting].values())
    fit = {setting: row["score"] for setting, row in found.items() if row["fvu"] <= MAX_FVU}
    chosen = max(fit or {PLAIN: 0.0}, key=lambda setting: fit.get(setting, 0.0))
    second = Table("sae_settings_reported", f"Reported on {REPORT_ON}", columns)
    for setting in dict.fromkeys([chosen, PLAIN]):
        second.add_row(setting, *measure([*setting.split(), REPORT_ON, *arguments])[0].values())
    folder = output_dir / "experiments" / "sae_settings"
    folder.mkdir(parents=True, exist_ok=True)
    for table in (first, second):
        table.save(folder)
        say(table.to_markdown())
    say(f"Chosen: {chosen}. Tables: {folder}")
    return []


def main(arguments: list[str]) -> int:
    """Run from the command line and return the exit code."""
    return run_command("sae_settings", __doc__, lambda: run(arguments), arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
