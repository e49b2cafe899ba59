"""Several configurations, opened one after the other, and what is said of each: its choices and its artifacts."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infoscope.config.tree import Config, Device
from infoscope.pipeline.context import Context
from infoscope.report.tables import Value
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.progress import Display
from infoscope.runtime.read_only import ReadOnlyStore
from infoscope.runtime.store import Store
from infoscope.stages.sae import sae_of
from infoscope.tracking.config import LoggerKind


class ContextFactory:
    """Makes contexts. What one of them has checked, or found on the disk, the next need not read again.

    Args:
        display: where events are printed.
        builds: whether what is missing is built; else asking for it raises `MissingArtifact`.
    """

    def __init__(self, display: Display, builds: bool = True) -> None:
        self.display, self.builds = display, builds
        self._stores: dict[Path, Store] = {}
        self._image_sets: dict[str, Any] = {}

    def open(self, config: Config, job: Job | None = None) -> Context:
        """Return the context of a configuration, and of the job that it is.

        To be read, trainer.precision=auto is what it is on this machine, unless SAEs of more seeds exist in the other
        precision: jobs may have run on the GPUs of another one.
        """
        if self.builds:
            return self._open(config, job)
        trainer, logger = config.trainer, replace(config.logger, kind=LoggerKind.none)
        devices = [trainer.device.name]
        if trainer.device is Device.auto:
            devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu", "cuda"]
        found = []
        for precision in dict.fromkeys(map(trainer.precision.resolve, devices)):
            reading = replace(trainer, device=Device.cpu, precision=precision)  # which needs no GPU
            found.append(self._open(replace(config, trainer=reading, logger=logger), job))
        return found[0] if len(found) == 1 else max(found, key=_count_saes)  # the first of several that have as many

    def _open(self, config: Config, job: Job | None) -> Context:
        ctx = Context(config, self.display, job)
        store = ctx.store if self.builds else ReadOnlyStore(ctx.store.root)
        ctx.store = self._stores.setdefault(ctx.output_dir, store)
        ctx.store.on_event, ctx.store.config = ctx.on_event, ctx.tree
        ctx.image_sets = self._image_sets
        return ctx


def _count_saes(ctx: Context) -> int:
    """Return of how many seeds the SAE exists."""
    with suppress(InputError):  # whoever reads it on will be told
        return sum(sae_of(ctx, seed).find() is not None for seed in ctx.config.seeds)
    return 0


def describe_choices(config: Config) -> dict[str, Value]:
    """Return a configuration as people speak of it; the same words for every table that joins configurations."""
    return {
        "model": config.model.name,
        "data": config.data.kind.name,
        "sae": config.sae.words,
        "rule": config.partition.rule_in_words,
        "k_cds": config.scope.k_cds,
        "seeds": " ".join(map(str, config.seeds)),
    }


def describe_artifacts(ctx: Context) -> dict[str, str]:
    """Return the hashes of what a context has read by stage, several of a stage behind each other.

    Probes and the features they read, dozens for each seed, are left out.
    """
    hashes: dict[str, list[str]] = {}
    for spec in ctx.used.values():
        if not spec.is_one_of_many:
            hashes.setdefault(spec.stage, []).append(spec.hash)
    return {stage: " ".join(sorted(of)) for stage, of in hashes.items()}
