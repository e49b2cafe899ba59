"""Running a stage: early refusals, then everything that is missing, then what it shows."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from infoscope import registry
from infoscope.config.past import reopen
from infoscope.config.tree import Config, TrainerConfig
from infoscope.pipeline.context import Context
from infoscope.pipeline.plan import Rates, Step, make_plan, print_plan, read_rates
from infoscope.pipeline.profiling import BETWEEN
from infoscope.pipeline.stage import Node, Stage, list_needed
from infoscope.runtime import parts, processes
from infoscope.runtime.environment import count_busy_cores
from infoscope.runtime.job import Job
from infoscope.runtime.lightning import quiet_lightning
from infoscope.runtime.progress import Display


def run(config: Config, display: Display | None = None, job: Job | None = None) -> Any:
    """Run one experiment up to `config.stage`; return the report's files where it ends with a report.

    Args:
        job: the run it is, of a sweep or alone; None: one that has no folder.

    Raises:
        InputError: a mistake that the user can correct; artifacts finished before it are kept.
    """
    config = reopen(config, job.overrides if job is not None else ())
    with quiet_lightning(), processes.sharing(config.trainer.n_processes, run, config, None, job):
        ctx = open_context(config, display, job)
        if config.plan:
            if processes.is_main():
                with processes.alone():
                    check(ctx)
                    show_plan(ctx)
            return None
        with ctx.tracking, _profiling(ctx):
            check(ctx)
            return run_stage(ctx)


@contextmanager
def _profiling(ctx: Context) -> Iterator[None]:
    """Say and log where the time went, if `trainer.profile` asks for it, at an error too."""
    try:
        with ctx.recorded(BETWEEN):
            yield
    finally:
        if ctx.config.trainer.profile and processes.is_main():
            table = ctx.profiles.make_table()
            table.show(ctx.display.console)
            ctx.tracking.view("profile").log(ctx.profiles.summarise())


def open_context(config: Config, display: Display | None = None, job: Job | None = None) -> Context:
    """Return the context of a run in this process, which takes the threads and the checkpoint interval it is given."""
    if not processes.is_main():
        display = Display.silent()
    display = display or Display(bars=config.trainer.progress)
    apply_trainer(config.trainer, display)
    return Context(config, display, job)


def apply_trainer(trainer: TrainerConfig, display: Display) -> None:
    """Apply thread count and checkpoint interval to this process.

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


def find_stage(ctx: Context) -> Stage:
    """Return the configured stage."""
    return registry.find_entry(ctx.config.stage.name).load()()


def set_goals(ctx: Context) -> list[Node]:
    """Let the context know all that the configured stage will ask for, and return it."""
    ctx.goals = find_stage(ctx).goals(ctx)
    return ctx.goals


def check(ctx: Context, also: Sequence[Stage] = ()) -> None:
    """Refuse what the configured stage, and what comes before it, could not be done with; nothing is built.

    Of several processes the main one looks.

    Args:
        also: other stages that will be asked for with the same configuration.

    Raises:
        InputError: images, truths, classes, weights, a layer, sizes, a device or a disk that will not do.
    """
    if not processes.is_main():
        return
    with processes.alone():
        _ = ctx.device
        goals = [*set_goals(ctx), *(node for stage in also for node in stage.goals(ctx))]
        for node in list_needed(goals):
            node.stage.check(node.ctx, *node.item)
        steps = plan_stage(ctx)
        needed = sum(step.n_built * step.work.disk_bytes for step in steps)
        ctx.check_disk(needed + max((step.work.scratch_bytes for step in steps), default=0))


def run_stage(ctx: Context) -> Any:
    """Make what the configured stage lacks, and return what it ends with."""
    for node in set_goals(ctx):
        node.make()
    return find_stage(ctx).end(ctx)


def plan_stage(
    ctx: Context, rates: Rates | None = None, list_goals: Callable[[Context], Iterable[Node]] | None = None
) -> list[Step]:
    """Return what the configured stage would reuse and build; nothing is built for it.

    Args:
        list_goals: what is asked for of a context, where that is not the stage's own.
    """
    reading = ctx.reading()
    goals = [*set_goals(reading), *find_stage(reading).reads(reading)]
    return make_plan(goals if list_goals is None else [*list_goals(reading)], rates)


def show_plan(ctx: Context, list_goals: Callable[[Context], Iterable[Node]] | None = None) -> None:
    """Print what the configured stage would reuse and build; `list_goals` as `plan_stage`."""
    print_plan(plan_stage(ctx, read_rates(ctx.store.root), list_goals), ctx.display.console)
