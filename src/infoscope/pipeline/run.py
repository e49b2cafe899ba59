"""Running an experiment: the configured stage of the chain, or every stage and then the report."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from infoscope.config import Config, Stage, TrainerConfig, to_tree
from infoscope.data.check import check_images
from infoscope.data.config import DataKind
from infoscope.pipeline.chain import must_exist
from infoscope.pipeline.checks import Checks
from infoscope.pipeline.closing import CLOSINGS
from infoscope.pipeline.planning import make_plan, print_plan
from infoscope.pipeline.reporting import describe_experiment, make_report_inputs
from infoscope.probes.results import load_results
from infoscope.probes.variants import Variant
from infoscope.report.check_table import make_check_table
from infoscope.report.inputs import ReportInputs
from infoscope.report.report import ReportFiles, make_tables, print_report, write_report
from infoscope.report.section import ReportSection
from infoscope.report.tables import Table
from infoscope.runtime import parts, processes
from infoscope.runtime.environment import count_busy_cores
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.manifests import Artifact, Spec, compute_hash
from infoscope.runtime.progress import Display
from infoscope.runtime.quiet import quiet_lightning
from infoscope.runtime.store import Workspace

Naming = tuple[Stage, dict[str, Any], dict[str, Artifact]]
"""What names a report: the stage that ends with it, its key, and what it is made from."""


def run(config: Config, display: Display | None = None, job: Job | None = None) -> ReportFiles | None:
    """Run one experiment up to `config.stage`; return the report's files where that is the last stage.

    Args:
        job: the run it is, of a sweep or alone; None: one that has no folder.

    Raises:
        InputError: whatever the user can mend; artifacts finished before it are kept.
    """
    with quiet_lightning(), processes.sharing(config.trainer.n_processes, run, config, None, job):
        if not processes.is_main():
            display = Display.silent()
        display = display or Display(bars=config.trainer.progress)
        settle(config.trainer, display)
        pipeline = Pipeline(config, display, job)
        pipeline.say_model()
        if config.plan or config.stage is Stage.check_data:
            return _run_by_main(pipeline, config)
        with pipeline.tracking:
            return _run_stage(pipeline, config)


def settle(trainer: TrainerConfig, display: Display) -> None:
    """Let this process work as it is told: with so many threads, keeping its state so often.

    How many threads is a matter of the machine, never of what else runs on it just now: last digits depend on it.
    """
    parts.SAVE_EVERY_S = trainer.save_every_s
    n_cores, most = processes.count_cores(), torch.get_num_threads()
    n_threads = trainer.n_threads or (n_cores if processes.current().size > 1 else min(most, n_cores))
    if n_threads != most:
        torch.set_num_threads(n_threads)
    n_free = (os.cpu_count() or 1) - count_busy_cores()
    if trainer.n_threads is None and n_threads > 1 and n_free < n_threads / 2:
        display.say(
            f"Other work keeps this machine busy, {max(n_free, 0):.0f} of {os.cpu_count()} cores are free: this run"
            f" takes {n_threads} threads (trainer.n_threads) and is slower than alone."
        )


def _run_by_main(pipeline: Pipeline, config: Config) -> None:
    """Run what one process does alone."""
    if processes.is_main():
        with processes.alone():
            if config.plan:
                pipeline.check()
                with pipeline.display.bar("measuring this machine"):
                    plan = make_plan(pipeline)
                print_plan(plan, pipeline.display.console)
            else:
                with pipeline.tracking:
                    pipeline.check_data()


def _run_stage(pipeline: Pipeline, config: Config) -> ReportFiles | None:
    pipeline.check()
    whole = {
        Stage.report: pipeline.report,
        Stage.predict: pipeline.report_predictions,
        Stage.stability: pipeline.report_stability,
        Stage.select: pipeline.report_selection,
    }
    if config.stage in whole:
        return whole[config.stage]()
    for shown in CLOSINGS[config.stage](pipeline):
        if isinstance(shown, Table):
            shown.show(pipeline.display.console)
        else:
            pipeline.display.say(shown)
    return None


class Pipeline(Checks):
    """Everything that one configuration can ask for."""

    def say_model(self) -> None:
        """Say with which activation, mean and std the model is run, and who says so, before anything is built.

        Raises:
            InputError: if nobody says so, or the model's weights are not where they should be.
        """
        model, is_needed = self.config.model, self.config.stage not in (Stage.check_data, Stage.train_clip)
        if is_needed and model.pretrained != "train_clip" and self.model_facts is not None:
            warning = "Warning: " if self.model_facts.is_contradicted else ""
            hint = "; if it is of another origin, give its tag as model.origin" if self.model_facts.is_assumed else ""
            self.display.say(f"{warning}{model.name} runs with {self.model_facts.words}{hint}.")

    def check_data(self) -> None:
        """Read every image of the experiment's data and of its probes' data, say what they hold, refuse what is wrong.

        All that is wrong is written to `<output_dir>/check_data/<use>-<data>-<split>.json`, with what was found. An
        interrupted check goes on where it was.

        Raises:
            InputError: if anything is wrong.
        """
        others = [(data, probe.tasks[0].name) for data, probe in self.probe_groups() if data != self.config.data]
        for data in (self.config.data, *(data for data, _ in others)):
            if data.kind is not DataKind.scenes:
                self.open_sets(data)  # before any scene is rendered, and before anything is read
        folder = self.output_dir / "check_data"
        folder.mkdir(parents=True, exist_ok=True)
        wrong: list[str] = []
        for data, use in [(self.config.data, "data"), *others]:
            for images in self.open_sets(data):
                name = f"{use}-{data.kind.name}-{images.split}"
                unfinished = parts.Checkpoint(folder / f"{name}.pt", compute_hash(images.fingerprint))
                with self.display.bar(f"reading {name}", len(images), "images") as advance:
                    found = check_images(images, data.n_workers or None, advance, unfinished)
                (folder / f"{name}.json").write_text(json.dumps(asdict(found), indent=2), encoding="utf-8")
                unfinished.forget()
                make_check_table(name, found).print(self.display.console)
                wrong += [f"{name}: {error}" for error in found.errors.values()]
                setting = "data" if use == "data" else f"probe_data.{use}"
                if found.n_published not in (None, found.n_images) and not data.subset:
                    wrong.append(
                        f"{name}: expected the {found.n_published:,} images that were published, found"
                        f" {found.n_images:,}; complete the data, or set {setting}.subset=true if so many are meant."
                    )
        if wrong:
            raise InputError(f"Found {len(wrong)} wrong, all listed in {folder}; the first in {wrong[0]}")

    def report(self) -> ReportFiles:
        """Make every table and figure of the experiment, and print the main tables."""
        config = self.config
        probed = self._probe_all()
        three = {seed: (self.train_sae(seed), self.rank(seed), self.score(seed)) for seed in config.seeds}
        results = {
            seed: [load_results([one.folder for one in artifacts], variant) for variant, artifacts in many.items()]
            for seed, many in probed.items()
        }
        inputs = make_report_inputs(config, self.image_sets[0], self.tokens("train"), three, results, self.model_facts)
        outliers, confounds = self.outlier_section(), self.confound_section(inputs.seeds, inputs.results)
        return self._publish(replace(inputs, sections=[outliers, confounds]), *self._name_report(probed))

    def _probe_all(self) -> dict[int, dict[Variant, list[Artifact]]]:
        """The probes of every seed; none where the data know nothing to probe."""
        is_probed = self.knows_truths()
        if is_probed:
            self.check_truths()
            for seed in self.config.seeds:
                self.score(seed)  # of all seeds first
        return {seed: self.probe(seed) if is_probed else {} for seed in self.config.seeds}

    def _name_report(self, probed: Mapping[int, Mapping[Variant, Sequence[Artifact]]]) -> Naming:
        config, scored = self.config, {seed: self.score(seed) for seed in self.config.seeds}
        key = {
            "scores": [artifact.hash for artifact in scored.values()],
            "probes": [one.hash for many in probed.values() for artifacts in many.values() for one in artifacts],
            "tokens": self.tokens("train").hash,
            "k_cds": config.scope.k_cds,
            "partition": config.partition.determining(),
            "outliers": [self.token_outliers().hash, *(self.group_activation(seed).hash for seed in config.seeds)],
            "confounds": [self.confounds(seed).hash for seed in config.seeds],
        }
        return Stage.report, key, {f"score_seed{seed}": artifact for seed, artifact in scored.items()}

    def report_predictions(self) -> ReportFiles:
        """Make the tables and figures of stage predict, and print them."""
        section = self.prediction_section()
        return self._publish(self._inputs_of(section), *self._name_predictions())

    def _name_predictions(self) -> Naming:
        upstream = {f"predict_seed{seed}": self.predict(seed) for seed in self.config.seeds}
        return Stage.predict, {name: artifact.hash for name, artifact in upstream.items()}, upstream

    def report_stability(self) -> ReportFiles:
        """Make the table and the figure of stage stability, and print them."""
        section = self.stability_section()
        return self._publish(self._inputs_of(section), *self._name_stability())

    def _name_stability(self) -> Naming:
        found = self.stability()
        return Stage.stability, {"stability": found.hash}, {"stability": found}

    def report_selection(self) -> ReportFiles:
        """Make the table and the figure of stage select, and print them."""
        probed = {seed: self.select(seed) for seed in self.config.seeds}
        return self._publish(self._inputs_of(self.selection_section(probed)), *self._name_selection(probed))

    def _name_selection(self, probed: Mapping[int, Mapping[Variant, Sequence[Artifact]]]) -> Naming:
        key = {
            "probes": {
                str(seed): [one.hash for artifacts in many.values() for one in artifacts]
                for seed, many in probed.items()
            },
            "select": to_tree(self.config.select),
        }
        return Stage.select, key, {f"score_seed{seed}": self.score(seed) for seed in probed}

    def find_report(self) -> Artifact:
        """Return the report that the configured stage ends with, which exists if the store may not build."""
        name = {
            Stage.report: lambda: self._name_report(self._probe_all()),
            Stage.predict: self._name_predictions,
            Stage.stability: self._name_stability,
            Stage.select: lambda: self._name_selection({seed: self.select(seed) for seed in self.config.seeds}),
        }[self.config.stage]
        stage, key, upstream = name()
        return self.get(self._report_spec(stage, key), must_exist, shared=False, **upstream)

    def _inputs_of(self, section: ReportSection) -> ReportInputs:
        config = self.config
        title = f"{section.title}: {config.model.name} on {config.data.kind.name}"
        context = describe_experiment(config, self.tokens("train"), self.image_sets[0], self.model_facts)
        return ReportInputs(title, [], context=context, sections=[section])

    def _publish(
        self, inputs: ReportInputs, stage: Stage, key: dict[str, Any], upstream: dict[str, Artifact]
    ) -> ReportFiles:
        """Write a report as an artifact, unless the same exists, and print it."""

        def build(work: Workspace) -> None:
            with self.track(stage) as tracker, self.display.bar("writing the report"):
                made = write_report(inputs, work.folder)
                for name, table in make_tables(inputs).items():
                    records = table.records()
                    if records:
                        tracker.log_table(name, list(records[0]), [list(record.values()) for record in records])
                for name, figures in made.figures.items():
                    tracker.log_figure(name, figures["png"])

        made = ReportFiles.find(self.get(self._report_spec(stage, key), build, shared=False, **upstream).folder)
        print_report(inputs, made, self.display.console)
        return made

    def _report_spec(self, stage: Stage, key: dict[str, Any]) -> Spec:
        name = self.title if stage is Stage.report else f"{self.title}-{stage.name}"
        return Spec("report", name, key)
