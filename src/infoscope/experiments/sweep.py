"""What the files in experiments/ share: running a sweep, reading what it made, writing its tables and figures.

An `Experiment` says what it measures under one configuration and what it shows of all of them. A configuration that
fails does not lose the others. Whatever exists already is reused: a sweep over gamma trains and scores nothing twice.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Generic

import torch

from infoscope.artifacts import Spec, Store
from infoscope.config import Config, Stage, compose
from infoscope.errors import InputError, explain_write_error
from infoscope.experiments.runs import Found, Run, Shown
from infoscope.job import Job
from infoscope.pipeline import Pipeline
from infoscope.planning import make_plan, print_plan
from infoscope.progress import Display
from infoscope.quiet import quiet_lightning
from infoscope.report.figure_style import save_figure
from infoscope.report.tables import Stat, Value, compute_stat
from infoscope.reporting import describe_rule
from infoscope.scope.config import Rule

EXIT_OK, EXIT_INPUT, EXIT_INTERRUPT = 0, 2, 130
NAMED_KEYS = ("model", "model.layer", "scope.k_cds", "partition.gamma", "partition.quantile")
"""What the columns of a table say anyway; every other key of a sweep is named beside them."""


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
    """

    name: str
    description: str
    measure: Callable[[Pipeline], Found]
    show: Callable[[Sequence[Run[Found]]], Shown]
    stages: Sequence[str] = ("score",)
    defaults: Sequence[str] = ()
    is_scored: bool = True


def main(experiment: Experiment[Any], arguments: Sequence[str]) -> int:
    """Run an experiment from the command line; return the exit code (2: something a user can mend, 130: Ctrl-C)."""

    def work() -> list[str]:
        return run_experiment(experiment, arguments)

    return run_command(experiment.name, experiment.description, work, arguments)


def run_command(name: str, description: str, work: Callable[[], Sequence[str]], arguments: Sequence[str]) -> int:
    """Do some work, turn every failure into one sentence on stderr, and return the exit code.

    Args:
        description: what `--help` among the arguments prints instead.
        work: returns what failed, a sentence each.
    """
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
        print(f"{name}: interrupted; what was finished is kept, the same command goes on from there.", file=sys.stderr)
        return EXIT_INTERRUPT
    for failure in failures:
        print(f"{name}: {failure}", file=sys.stderr)
    return EXIT_INPUT if failures else EXIT_OK


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
    return sweep.failures


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return one list of overrides per combination of the values given with commas outside brackets and quotes.

    >>> expand_sweep(["scope.k_cds=4,8", "seeds=[0,1]"])
    [['scope.k_cds=4', 'seeds=[0,1]'], ['scope.k_cds=8', 'seeds=[0,1]']]
    """
    choices = []
    for override in overrides:
        key, equals, values = override.partition("=")
        choices.append([f"{key}{equals}{value}" for value in _split(values)])
    return [list(combination) for combination in product(*choices)]


def _split(values: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in values:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "[({":
            depth += 1
        elif character in "])}":
            depth -= 1
        if character == "," and depth <= 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def add_defaults(defaults: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Return the arguments after the defaults of which the user has given neither the key nor its group."""
    given = {argument.partition("=")[0] for argument in arguments}
    return [d for d in defaults if not given & {d.partition("=")[0], d.partition(".")[0]}] + list(arguments)


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
        overrides = add_defaults([f"stage={experiment.stages[0]}", *experiment.defaults], arguments)
        self.combinations = share_ranks(expand_sweep(overrides))
        self.runs: list[Run[Any]] = []
        self.failures: list[str] = []
        self.output_dir: Path | None = None
        self.display = _Recorder()
        self._stores: dict[Path, Store] = {}
        self._swept = [override.partition("=")[0] for override in overrides if len(expand_sweep([override])) > 1]

    def _name(self, overrides: Sequence[str], but: Sequence[str] = ()) -> str:
        """What tells a combination from the others."""
        keys = set(self._swept) - set(but)
        return ", ".join(override for override in overrides if override.partition("=")[0] in keys)

    def run(self) -> None:
        """Measure every combination; one that fails is noted and the others go on."""
        for number, overrides in enumerate(self.combinations, 1):
            if len(self.combinations) > 1:
                self.display.say(f"{number} of {len(self.combinations)}: {self._name(overrides)}")
            try:
                self._run_one(overrides)
            except InputError as error:
                where = f"{self._name(overrides)}: " if len(self.combinations) > 1 else ""
                if f"{where}{error}" not in self.failures:
                    self.failures.append(f"{where}{error}")

    def _run_one(self, overrides: list[str]) -> None:
        config = compose(overrides)
        if config.stage.name not in self.experiment.stages:
            raise InputError(
                f"Expected stage={' or '.join(self.experiment.stages)} for this experiment, got {config.stage.name}:"
                " drop stage=."
            )
        if config.trainer.n_threads is not None:
            torch.set_num_threads(config.trainer.n_threads)
        self.output_dir = self.output_dir or Path(config.output_dir)
        self.display.bars = config.trainer.progress
        self.display.read.clear()
        pipeline = Pipeline(config, self.display, Job(overrides=tuple(overrides)))
        # what was checked once need not be read again for every gamma
        pipeline.store = self._stores.setdefault(pipeline.output_dir, pipeline.store)
        if config.plan:
            print_plan(make_plan(pipeline), self.display.console)
            return
        if config.stage is Stage.probe:
            pipeline.check_truths()  # before hours of work
        with pipeline.tracking:
            found = self.experiment.measure(pipeline)
        facts = self._describe(pipeline, overrides)
        names = [f"k_CDS {facts['k_cds']}", _name_gamma(config)] if self.experiment.is_scored else []
        names = [f"{facts['model']}", f"block {facts['layer']}", *names, f"{facts['setting']}"]
        self.runs.append(Run(config, ", ".join(filter(None, names)), facts, found))

    def _describe(self, pipeline: Pipeline, overrides: Sequence[str]) -> dict[str, Value]:
        config = pipeline.config
        facts: dict[str, Value] = {
            "model": config.model.name,
            "layer": pipeline.tokens("train").read_json("tokens.json")["layer"],
            "setting": self._name(overrides, but=NAMED_KEYS),
            "data": config.data.kind.name,
        }
        if self.experiment.is_scored:
            facts |= {
                "k_cds": config.scope.k_cds,
                "gamma": compute_stat(pipeline.partition(seed).gamma for seed in config.seeds),
                "rule": describe_rule(config.partition),
                "sae": f"{config.sae.kind.name}, expansion {config.sae.expansion_factor}",
                "seeds": " ".join(map(str, config.seeds)),
            }
        return facts | {"overrides": " ".join(overrides), "artifacts": " ".join(sorted(self.display.read))}

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
        except OSError as error:
            raise explain_write_error(error, folder) or error from error
        for table in shown.tables:
            if self.display.console.is_terminal:
                table.print(self.display.console)
            else:  # a log has any width
                print(table.to_markdown())
        print(f"Tables and figures: {folder}")


class _Recorder(Display):
    """A display that remembers which artifacts were read, probes aside: their number is in the dozens."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[str] = set()

    def event(self, event: str, spec: Spec, detail: str) -> None:
        super().event(event, spec, detail)
        if event in ("built", "reused") and spec.stage != "probe":
            self.read.add(f"{spec.stage}:{spec.hash}")


def _name_gamma(config: Config) -> str:
    match config.partition.rule:
        case Rule.threshold:
            return f"gamma {config.partition.gamma:g}"
        case Rule.bands:
            return describe_rule(config.partition)
        case _:
            return f"gamma by {describe_rule(config.partition)}"


def _plain(value: Value) -> Any:
    return value._asdict() if isinstance(value, Stat) else value
