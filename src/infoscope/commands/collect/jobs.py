"""The jobs of sweeps, each with what it has left: finished, missing at some artifact, or refused."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from infoscope import registry
from infoscope.commands.collect.opening import ContextFactory, describe_artifacts, describe_choices
from infoscope.config.sweeps import Sweep, make_commands
from infoscope.config.tree import Config, compose, to_tree
from infoscope.config.unread import check_read
from infoscope.pipeline.run import find_stage
from infoscope.pipeline.stage import Row
from infoscope.report.tables import Column
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.manifests import Spec, flatten_determining
from infoscope.runtime.read_only import MissingArtifact


@dataclass
class CollectedJob:
    """One job.

    Args:
        job: which one.
        sweep: whose it is; its command line.
        config: None if it cannot be composed.
        columns: headings of the metrics that its stage adds.
        rows: what it has found, of the SAE seeds that are whole; first the columns that name it.
        missing: the first artifact that does not exist, if one does not.
        refused: why its configuration is bad input; empty if it is not.
    """

    job: Job
    sweep: Sweep
    config: Config | None = None
    columns: Sequence[Column] = ()
    rows: list[Row] = field(default_factory=list)
    missing: Spec | None = None
    refused: str = ""

    @property
    def state(self) -> str:
        """Its state, in words."""
        if self.refused:
            return f"refused: {self.refused}"
        if self.missing is not None:
            return f"missing at {self.missing.stage} ({self.missing.folder_name})"
        return "done"

    @property
    def state_in_short(self) -> str:
        """Its state without what is missing, or why it is refused."""
        if self.refused:
            return "refused"
        return "done" if self.missing is None else f"missing at {self.missing.stage}"

    @property
    def command(self) -> str:
        """What makes it."""
        (command,) = make_commands([self.job.overrides], config_dirs=self.sweep.config_dirs)
        return command


def read_jobs(sweeps: Sequence[Sweep], factory: ContextFactory) -> Iterator[CollectedJob]:
    """Yield every job of some sweeps, equal ones once.

    Args:
        factory: of contexts that build nothing.
    """
    known: set[str] = set()
    for sweep in sweeps:
        for job in sweep.jobs:
            collected = CollectedJob(job, sweep)
            try:
                config = collected.config = compose(job.overrides, sweep.config_dirs, is_past=True)
                tree = to_tree(config)
                determining = {k: v for k, v in tree.items() if k not in ("trainer", "logger")}
                identity = json.dumps([determining, tree["trainer"]["precision"]], sort_keys=True)
                if identity in known:
                    continue
                known.add(identity)
                _read_job(collected, config, factory)
                if collected.missing is not None:  # what is finished is shown, though it would be refused today
                    check_read(config, job.overrides)
            except InputError as error:
                collected.refused, collected.missing = str(error), None
            yield collected


def _read_job(collected: CollectedJob, config: Config, factory: ContextFactory) -> None:
    """Fill in the rows of all SAE seeds that are whole, and what is missing first."""
    job = collected.job
    if registry.is_command(config.stage.name):
        raise InputError(f"stage={config.stage.name} leaves no artifact to collect: choose another stage.")
    if config.plan:
        raise InputError("plan=true leaves nothing to collect: start the sweep without it.")
    ctx = factory.open(config)
    stage = find_stage(ctx)
    collected.columns = stage.columns
    named: Row = {
        "sweep": collected.sweep.folder.name,
        "job": job.number,
        "stage": config.stage.name,
        **{key: value for key, value in describe_choices(config).items() if key != "seeds"},
    }
    settings = flatten_determining(to_tree(config))
    behind: Row = {**settings, "trainer.precision": ctx.precision.name, "overrides": " ".join(job.overrides)}
    for seed in config.seeds if stage.is_seeded else [0]:
        ctx.used.clear()
        try:
            rows = list(stage.rows(ctx, seed))
        except MissingArtifact as missing:
            collected.missing = collected.missing or missing.spec
            continue
        hashes = {f"hash.{kind}": of for kind, of in describe_artifacts(ctx).items()}
        placed = {**named, "seed": seed} if stage.is_seeded else named
        collected.rows += [{**placed, **row, **hashes, **behind} for row in rows]
    if collected.missing is None:
        try:
            stage.find_last(ctx)
        except MissingArtifact as missing:
            collected.missing = missing.spec
