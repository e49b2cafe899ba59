"""What the files in experiments/ share: running a sweep, reading what it made, writing its tables and figures.

An `Experiment` says what it measures under one configuration and what it shows of all of them. A configuration that
fails does not lose the others. Whatever exists already is reused: a sweep over gamma trains and scores nothing twice.
With `build=false` what exists is all that is used, such as what a sweep of `infoscope -m` has made on a cluster.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic

from infoscope import registry
from infoscope.commands.collect.opening import ContextFactory, describe_artifacts, describe_choices
from infoscope.commands.experiments.runs import Found, Run, Shown
from infoscope.config.sweeps import check_layers, expand_sweep, find_layers, find_swept, make_commands
from infoscope.config.tree import Config, compose
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import apply_trainer, check, find_stage, set_goals, show_plan
from infoscope.pipeline.stage import Node, Stage
from infoscope.report.figure_style import save_figure
from infoscope.report.tables import Stat, Value, compute_stat
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError, explain_write_error
from infoscope.runtime.job import Job
from infoscope.runtime.lightning import quiet_lightning
from infoscope.runtime.output import (
    EXIT_INPUT,
    EXIT_INTERRUPT,
    EXIT_OK,
    LostOutput,
    adapt_streams,
    complain,
    end_output,
    say,
)
from infoscope.runtime.progress import Display
from infoscope.runtime.read_only import MissingArtifact
from infoscope.runtime.uses import write_uses
from infoscope.scope.config import By, Rule
from infoscope.stages.sae import has_maps
from infoscope.stages.score.stage import partition_of
from infoscope.stages.tokens import Tokens
from infoscope.vision.hooks import AT_END, POOLED, PROJECTED

NAMED_KEYS = (
    "model",
    "model.layer",
    "scope.k_cds",
    "partition.by",
    "partition.gamma",
    "partition.quantile",
    "partition.mass_share",
)
"""What the columns of a table say anyway; every other key of a sweep is named too."""
BUILD_NOTHING = "build=false"
"""Tables and figures of what exists; what is missing is named with the command that makes it."""


@dataclass(frozen=True)
class Experiment(Generic[Found]):
    """One table or figure of the paper.

    Args:
        name: of the folder under `<output_dir>/experiments/`, and before every message.
        description: what --help prints: the file's docstring.
        measure: reads (and so builds) what it needs of one configuration.
        show: makes tables and figures of all runs that did not fail; there is at least one.
        stages: the stage of `infoscope` that goes as far (`plan=true` plans that one), then others one may ask for.
        defaults: overrides that hold unless the user gives the same key or its group; values with commas are a sweep.
        is_scored: whether `measure` scores features, so that there is a gamma to name.
        also: stages that make what else `measure` reads, besides the stage asked for.
        goals: all that `measure` makes, where that is not what the stage asked for and `also` make.
        settings: overrides, separated by blanks, of configurations that are compared although no sweep has them all,
            such as kinds of SAEs with a setting of their own each; all of them begin with the same key, by which the
            user chooses among them. Every combination of the user's is run under each.
    """

    name: str
    description: str
    measure: Callable[[Context], Found]
    show: Callable[[Sequence[Run[Found]]], Shown]
    stages: Sequence[str] = ("score",)
    defaults: Sequence[str] = ()
    is_scored: bool = True
    also: Sequence[str] = ()
    goals: Callable[[Context], Iterable[Node]] | None = None
    settings: Sequence[str] = ()


def main(experiment: Experiment[Any], arguments: Sequence[str]) -> int:
    """Run an experiment from the command line; return the exit code (2: something a user can mend, 130: Ctrl-C)."""
    work = partial(run_experiment, experiment, arguments)
    return run_command(experiment.name, experiment.description, work, arguments)


def run_command(name: str, description: str, work: Callable[[], Sequence[str]], arguments: Sequence[str]) -> int:
    """Do some work, turn every failure into one sentence on stderr, and return the exit code.

    Args:
        description: what `--help` among the arguments prints instead.
        work: returns what failed, a sentence each.
    """
    adapt_streams()
    if {"-h", "--help"} & set(arguments):
        print(description.strip())
        return EXIT_OK
    try:
        with quiet_lightning():
            failures = work()
    except InputError as error:
        failures = [str(error)]
    except (KeyboardInterrupt, SystemExit) as error:
        if not isinstance(error, KeyboardInterrupt) and not isinstance(error.__context__, KeyboardInterrupt):
            raise  # Lightning turns Ctrl-C into an exit
        complain(f"{name}: interrupted; what was finished is kept, the same command goes on from there.")
        return EXIT_INTERRUPT
    except LostOutput as error:
        return end_output(error)
    for failure in failures:
        complain(f"{name}: {failure}")
    return end_output() or (EXIT_INPUT if failures else EXIT_OK)


def run_experiment(experiment: Experiment[Any], arguments: Sequence[str]) -> list[str]:
    """Run every configuration, write and print what was found, and return what failed, a sentence each.

    What was found until then is written too when a run is interrupted.

    Raises:
        InputError: if the results cannot be written.
    """
    sweep = Sweep(experiment, arguments)
    try:
        sweep.run()
    finally:
        if sweep.runs:
            sweep.write()
        sweep.say_missing()
    return sweep.failures


def add_defaults(defaults: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the arguments after the defaults of which the user has given neither the key nor its group.

    Of a partition, whose numbers exclude each other, none that the user says something else of.
    """
    given = {argument.partition("=")[0] for argument in arguments}
    given |= {"partition" for key in given if key.startswith("partition.")}
    return [d for d in defaults if not given & {d.partition("=")[0], d.partition(".")[0]}] + list(arguments)


def check_stage(config: Config, stages: Sequence[str]) -> None:
    """Refuse a stage that is none of an experiment's own.

    Raises:
        InputError: it is another one.
    """
    if config.stage.name not in stages:
        raise InputError(
            f"Expected stage={' or '.join(stages)} for this experiment, got {config.stage.name}: drop stage=."
        )


def choose_settings(settings: Sequence[str], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the settings that the user has chosen, and the other arguments.

    >>> choose_settings(["sae=a sae.k=1", "sae=b"], ["seeds=[0]", "sae=b"])
    (['sae=b'], ['seeds=[0]'])

    Raises:
        InputError: a choice that no setting has.
    """
    key = settings[0].partition("=")[0] + "=" if settings else ""
    given = [argument for argument in arguments if key and argument.startswith(key)]
    if not given:
        return list(settings), list(arguments)
    choices = list(dict.fromkeys(setting.split()[0].removeprefix(key) for setting in settings))
    wanted = given[-1].removeprefix(key).split(",")
    if unknown := [one for one in wanted if one not in choices]:
        raise InputError(f"Expected {key} to choose among {', '.join(choices)} here, got {unknown[0]}.")
    chosen = [setting for setting in settings if setting.split()[0].removeprefix(key) in wanted]
    return chosen, [argument for argument in arguments if argument not in given]


def share_ranks(combinations: Sequence[list[str]]) -> list[list[str]]:
    """Let all combinations score as many ranks as the largest k_CDS needs: any k is then arithmetic on one matrix."""
    pairs = [override.split("=", 1) for one in combinations for override in one if "=" in override]
    values = {value for key, value in pairs if key == "scope.k_cds"}
    if len(values) < 2 or "scope.k_max" in dict(pairs) or not all(map(str.isdigit, values)):
        return list(combinations)
    return [[*one, f"scope.k_max={max(16, *map(int, values))}"] for one in combinations]


class Sweep:
    """The runs of one command."""

    def __init__(self, experiment: Experiment[Any], arguments: Sequence[str]) -> None:
        self.experiment = experiment
        self.builds = BUILD_NOTHING not in arguments
        given = [argument for argument in arguments if argument not in (BUILD_NOTHING, "build=true")]
        settings, given = choose_settings(experiment.settings, given)
        combinations = expand_sweep(add_defaults([f"stage={experiment.stages[0]}", *experiment.defaults], given))
        self.combinations = share_ranks(
            [[*setting.split(), *one] for one in combinations for setting in settings or [""]]
        )
        self.runs: list[Run[Any]] = []
        self.failures: list[str] = []
        self.missing: list[list[str]] = []
        """The combinations of which something does not exist, with build=false."""
        self.output_dir: Path | None = None
        self.display = Display() if self.builds else Display.silent()
        self._contexts = ContextFactory(self.display, self.builds)
        self._swept = find_swept(self.combinations)
        self._uses: dict[str, str] = {}
        """The artifacts behind what is written, by hash."""

    def _name(self, number: int, but: Sequence[str] = ()) -> str:
        """What tells a combination from the others."""
        return ", ".join(f"{key}={value}" for key, value in self._swept[number].items() if key not in but)

    def run(self) -> None:
        """Measure every combination; one that fails, or is missing, is noted and the others go on.

        Raises:
            InputError: as `check_layers`, before the first.
        """
        n = len(self.combinations)
        if self.builds and n > 1:
            check_layers(self.combinations)
        for number, overrides in enumerate(self.combinations):
            if n > 1:
                self.display.say(f"{number + 1} of {n}: {self._name(number)}")
            try:
                self._run_one(number, overrides)
            except MissingArtifact as missing:
                self.missing.append(overrides)
                say(f"missing{f' ({self._name(number)})' if n > 1 else ''}: {missing}")
            except InputError as error:
                where = f"{self._name(number)}: " if n > 1 else ""
                if f"{where}{error}" not in self.failures:
                    self.failures.append(f"{where}{error}")

    def _run_one(self, number: int, overrides: list[str]) -> None:
        config = compose(overrides)
        check_stage(config, self.experiment.stages)
        if config.trainer.n_processes > 1 or processes.find_place() is not None:
            raise InputError(
                f"An experiment is one process: let several make what it reads (infoscope -m stage={config.stage.name}"
                f" trainer.n_processes={config.trainer.n_processes} ...), then run it without them."
            )
        apply_trainer(config.trainer, self.display)
        self.output_dir = self.output_dir or Path(config.output_dir)
        self.display.bars = config.trainer.progress
        folder = self.output_dir / "experiments" / self.experiment.name
        layers = find_layers(overrides, self.combinations)
        ctx = self._contexts.open(config, Job(folder, overrides=tuple(overrides), layers=layers))
        if self.builds:
            check(ctx, self._find_also(ctx))
        if config.plan:
            show_plan(ctx, self.experiment.goals or self._list_goals)
            return
        set_goals(ctx)
        with ctx.tracking:
            found = self.experiment.measure(ctx)
        self._uses |= {spec.hash: f"{spec.stage}/{spec.name}" for spec in ctx.used.values()}
        facts = self._describe(ctx, number)
        names = [f"k_CDS {facts['k_cds']}", name_gamma(config)] if self.experiment.is_scored else []
        names = [f"{facts['model']}", _name_place(config.model.site, facts["layer"]), *names, f"{facts['setting']}"]
        self.runs.append(Run(config, ", ".join(filter(None, names)), facts, found))

    def _find_also(self, ctx: Context) -> list[Stage]:
        stages = [registry.find_entry(name).load()() for name in self.experiment.also]
        return [stage for stage in stages if stage.is_without_maps or has_maps(ctx)]

    def _list_goals(self, ctx: Context) -> Iterator[Node]:
        """Yield what the stage asked for makes and reads, and what `also` does."""
        for stage in (find_stage(ctx), *self._find_also(ctx)):
            yield from (*stage.goals(ctx), *stage.reads(ctx))

    def _describe(self, ctx: Context, number: int) -> dict[str, Value]:
        config, choices = ctx.config, describe_choices(ctx.config)
        layer = Tokens.at(ctx, "train").read_json("tokens.json")["layer"]
        facts: dict[str, Value] = {
            "model": choices["model"],
            "layer": None if config.model.site in AT_END else layer,
            "setting": self._name(number, but=NAMED_KEYS),
            "data": choices["data"],
        }
        if self.experiment.is_scored:
            facts |= {
                "gamma": compute_stat(partition_of(ctx, seed).gamma for seed in config.seeds),
                **{key: choices[key] for key in ("k_cds", "rule", "sae", "seeds")},
            }
        hashes = [f"{stage}:{one}" for stage, of in describe_artifacts(ctx).items() for one in of.split()]
        return facts | {"overrides": " ".join(self.combinations[number]), "artifacts": " ".join(sorted(hashes))}

    def say_missing(self) -> None:
        """Print the command that makes what is missing; it may run on a cluster (`hydra/launcher=...`)."""
        if not self.missing:
            return
        say(f"{len(self.missing)} of {len(self.combinations)} configurations are missing; this makes them:")
        for stage in dict.fromkeys(["", *self.experiment.also]):
            jobs = [[_at_stage(override, stage) for override in one] for one in self.missing]
            for command in make_commands(jobs):
                say(f"    {command}")

    def write(self) -> None:
        """Write tables, figures and the artifacts behind them into `<output_dir>/experiments/<name>/`, and print.

        Raises:
            InputError: if they cannot be written.
        """
        shown = self.experiment.show(self.runs)
        assert self.output_dir is not None
        folder = self.output_dir / "experiments" / self.experiment.name
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for table in (*shown.tables, *shown.more_tables):
                table.save(folder)
            for name, draw in shown.figures.items():
                save_figure(draw, name, folder, ("png", "pdf"))
            facts = [{key: _plain(value) for key, value in run.facts.items()} for run in self.runs]
            (folder / "runs.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
            write_uses(folder, self._uses)  # those of earlier commands were written over
        except OSError as error:
            raise explain_write_error(error, folder) or error from error
        for table in shown.tables:
            table.show(Display().console)  # whether anything is built or not
        say(f"Tables and figures: {folder}")


def _at_stage(override: str, stage: str) -> str:
    return f"stage={stage}" if stage and override.startswith("stage=") else override


def name_gamma(config: Config) -> str:
    """Return in words what divides features by their scores."""
    rule, number = config.partition.chosen
    if rule is Rule.bands:
        return config.partition.rule_in_words
    by = "" if config.partition.by is By.cds else f", by {config.partition.by.words}"
    return f"gamma {number:g}{by}" if rule is Rule.threshold else f"gamma by {config.partition.rule_in_words}"


def _name_place(site: str, layer: Value) -> str:
    """Return in words what SAEs read of a model; what lies behind the tower is of no block."""
    return {POOLED: "whole images", PROJECTED: "patches as images are embedded"}.get(site, f"block {layer}")


def _plain(value: Value) -> Any:
    return value._asdict() if isinstance(value, Stat) else value
