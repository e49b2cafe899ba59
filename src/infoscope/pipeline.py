"""Running an experiment: the configured stage of the chain, or every stage and then the report."""

from __future__ import annotations

import torch

from infoscope.artifacts import Spec, Workspace
from infoscope.config import Config, Stage, to_tree
from infoscope.data.images import LabelledImages
from infoscope.probes.results import load_result
from infoscope.progress import Display
from infoscope.quiet import quiet_lightning
from infoscope.report.report import ReportFiles, make_tables, print_report, write_report
from infoscope.reporting import make_report_inputs
from infoscope.stages import Stages


def run(config: Config, display: Display | None = None) -> ReportFiles | None:
    """Run one experiment up to `config.stage`; return the report's files where that is the last stage.

    Raises:
        InputError: whatever the user can mend; artifacts finished before it are kept.
    """
    display = display or Display(bars=config.trainer.progress)
    if config.trainer.n_threads is not None:
        torch.set_num_threads(config.trainer.n_threads)
    pipeline = Pipeline(config, display)
    with quiet_lightning():
        return _run_stage(pipeline, config)


def _run_stage(pipeline: Pipeline, config: Config) -> ReportFiles | None:
    if config.stage is Stage.train_clip:
        pipeline.train_clip()
    elif config.stage is Stage.report:
        return pipeline.report()
    else:
        stage = {
            Stage.train_sae: pipeline.train_sae,
            Stage.rank: pipeline.rank,
            Stage.score: pipeline.score,
            Stage.probe: pipeline.probe,
        }[config.stage]
        for seed in config.seeds:
            stage(seed)
    return None


class Pipeline(Stages):
    """Everything that one configuration can ask for."""

    def report(self) -> ReportFiles:
        """Make every table and figure of the experiment, and print the tables."""
        config = self.config
        labelled = isinstance(self.image_sets[0], LabelledImages)
        self._check_target()
        scored = {seed: self.score(seed) for seed in config.seeds}
        probed = {seed: self.probe(seed) if labelled else {} for seed in config.seeds}
        key = {
            "scores": [artifact.hash for artifact in scored.values()],
            "probes": [artifact.hash for many in probed.values() for artifact in many.values()],
            "tokens": self.tokens("train").hash,
            "k_cds": config.scope.k_cds,
            "partition": to_tree(config.partition),
        }
        three = {seed: (self.train_sae(seed), self.rank(seed), artifact) for seed, artifact in scored.items()}
        results = {
            seed: [load_result(artifact.folder).relabel(variant) for variant, artifact in many.items()]
            for seed, many in probed.items()
        }
        inputs = make_report_inputs(config, self.image_sets[0], self.tokens("train"), three, results)

        def build(work: Workspace) -> None:
            with self.track(Stage.report) as tracker:
                made = write_report(inputs, work.folder)
                for name, table in make_tables(inputs).items():
                    records = table.records()
                    if records:
                        tracker.log_table(name, list(records[0]), [list(record.values()) for record in records])
                for name, figures in made.figures.items():
                    tracker.log_figure(name, figures["png"])

        upstream = {f"score_seed{seed}": artifact for seed, artifact in scored.items()}
        artifact = self.get(Spec("report", self.tracker_group, key), build, **upstream)
        made = ReportFiles.find(artifact.folder)
        print_report(inputs, made, self.display.console)
        for stage, location in self.tracked.items():
            self.display.say(f"logged {stage}: {location}")
        return made
