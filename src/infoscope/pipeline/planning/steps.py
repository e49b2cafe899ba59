"""The steps of a command: what exists, what is missing, and what that costs on this machine.

Counts (images, forward passes, distances, bytes) follow from the configuration; where they depend on results that do
not exist yet they are upper bounds, marked as such. Times come from the calibration; they are estimates, without
imports and without drawing figures.

A further analysis is one function from what is known to its steps, named in `analyses.ANALYSES`.
"""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

from rich.console import Console

from infoscope.config import Stage
from infoscope.data.config import DataKind
from infoscope.pipeline.chain import Stages
from infoscope.pipeline.planning.analyses import ANALYSES, plan_report
from infoscope.pipeline.planning.calibration import Calibration
from infoscope.pipeline.planning.chain import plan_scenes, plan_seed, plan_tokens
from infoscope.pipeline.planning.known import Known, Plan, Step
from infoscope.runtime.progress import Display
from infoscope.runtime.read_only import ReadOnlyStore


def make_plan(stages: Stages) -> Plan:
    """Return what the configured stage would reuse and build; nothing is written into the store.

    Raises:
        InputError: whatever the stages would refuse before they begin.
    """
    reading = copy.copy(stages)
    reading.store, reading.display = ReadOnlyStore.of(stages.store), Display(Console(quiet=True), bars=False)
    with tempfile.TemporaryDirectory() as scratch:
        return _make_plan(Known(reading, Calibration(reading, Path(scratch))))


def _make_plan(known: Known) -> Plan:
    config = known.config
    steps = [plan_scenes(known)] if config.data.kind is DataKind.scenes else []
    steps += [plan_tokens(known, split) for split in known.splits]
    for seed in config.seeds:
        steps += plan_seed(known, seed)
    if Stage.probe in known.reached and not known.probes and known.find("knows_truths") is not False:
        steps.append(Step("probes (not estimated)", 1, 0))
    if config.stage is Stage.report:
        steps += plan_report(known)
    if known.is_analysis:
        plan_analysis = ANALYSES.get(config.stage)
        steps += plan_analysis(known) if plan_analysis else [Step(f"{config.stage.name} (not estimated)", 1, 0)]
    n_naive = 2 * known.d_sae * config.scope.n_ranks * len(config.seeds)
    return Plan(steps, n_naive, n_naive / known.rates.images)
