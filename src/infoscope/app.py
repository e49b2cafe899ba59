"""The command line: compose the configuration, run the stage, turn every failure into one sentence and an exit code."""

from __future__ import annotations

import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.plugins.completion_plugin import CompletionPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from infoscope import registry
from infoscope.config import errors
from infoscope.config.overrides import has_layers
from infoscope.config.sweeps import check_layers, find_layers, make_collect_command, names_layer, read_sweep
from infoscope.config.tree import CONF_FOLDER, Config, make_config, prepare_arguments, register_schemas
from infoscope.config.unread import check_read
from infoscope.runtime import output
from infoscope.runtime.bounds import show
from infoscope.runtime.errors import InputError, explain_write_error, suggest
from infoscope.runtime.job import Job

_sweeps: dict[Path, str] = {}
"""The folders of sweeps whose jobs ran in this process, and their output folders; of plans none."""
_offer_as_hydra_does = CompletionPlugin._get_matches


def main() -> None:
    """Entry point of the console command `infoscope`; exits with 0, 1 (a bug of ours), 2 (input) or 130 (Ctrl-C)."""
    sys.exit(run_command_line())


def run_command_line() -> int:
    """Run `sys.argv` and return the exit code.

    Failures that a user can mend are one sentence on stderr; INFOSCOPE_TRACEBACK=1 shows the traceback as well.
    """
    output.adapt_streams()
    try:
        code = _run_tool() if registry.find_tool(" ".join(sys.argv[1:2])) else _run_hydra()
    except output.LostOutput as error:
        return output.end_output(error)
    return output.end_output() or code


def _run_tool() -> int:
    """Run a command that needs no configuration; imports are late, for most others need them not."""
    from infoscope.config.tools import call_tool

    output.forget_failures()
    tool = registry.find_tool(sys.argv[1])
    assert tool is not None
    try:
        call_tool(tool.name, tool.load(), sys.argv[2:])
    except KeyboardInterrupt:
        return _say_interrupted("the same command begins anew.")
    except InputError as error:
        output.say_failure(str(error), error)
    except OSError as error:
        if error.errno is None:
            raise
        place = error.filename or "the output"
        output.say_failure(f"Cannot read or write {place} ({error.strerror}): give another place, or free some.", error)
    return output.find_exit_code()


def _run_hydra() -> int:
    output.forget_failures()
    _sweeps.clear()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing its own report
    register_schemas()
    try:
        _refuse_unknown_word(" ".join(sys.argv[1:2]))
        arguments = prepare_arguments(sys.argv[1:])
        if has_layers(sys.argv[1:]) and not {"-m", "--multirun"} & set(arguments):
            arguments.append("-m")
        sys.argv[1:] = sorted(arguments, key=lambda one: one not in ("-m", "--multirun"))  # argparse wants it there
        if {"-sc", "--shell-completion"} & set(sys.argv):
            if registry.find_tool(" ".join(_list_typed()[:1])):
                return output.EXIT_OK  # what follows is files, which the shell offers itself
            CompletionPlugin._get_matches = staticmethod(_offer)  # Hydra has no hook for what it offers
        _hydra_main()
    except KeyboardInterrupt as error:
        return _say_interrupted(str(error))
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into an exit
            return _say_interrupted()
        return error.code if isinstance(error.code, int) else output.EXIT_BUG
    except InputError as error:
        output.say_failure(str(error), error)
    except errors.COMPOSITION_ERRORS as error:
        if _was_in_job(error):
            raise
        output.say_failure(errors.explain(error, Config), error)
    except OSError as error:  # Hydra prints, and writes into output_dir before any stage does
        if error.filename is None:
            output.say("")  # if it cannot be printed either, stdout is what failed
        explained = explain_write_error(error, error.filename or "output_dir")
        if explained is None and (_was_in_job(error) or error.filename is None):
            raise
        fallback = f"Cannot use {error.filename} ({error.strerror}): set output_dir to a folder you may write to."
        output.say_failure(str(explained or fallback), error)
    for folder, output_dir in _sweeps.items():
        output.say(f"This joins what the jobs have found:\n    {make_collect_command(folder, output_dir)}")
    return output.find_exit_code()


def _refuse_unknown_word(word: str) -> None:
    """Refuse a first word that is neither a command nor a setting.

    Raises:
        InputError: with the command that is most like it.
    """
    if re.fullmatch(r"[a-z][a-z_-]*", word):
        known = [tool.name for tool in registry.TOOLS]
        near = suggest(word.replace("_", "-"), known)
        raise InputError(f"Expected KEY=VALUE, or one of the commands {', '.join(known)}, got {word!r}{near}.")


def _offer(config: Any, word: str) -> list[str]:
    """Offer the choices of a setting to the shell by their names; Hydra shows Python's (`stage=Stage.report`)."""
    key, equals, begun = word.partition("=")
    kind = errors.find_type(key, Config) if equals else None
    if kind is None:
        tools = [tool.name for tool in registry.TOOLS if word and tool.name.startswith(word)]
        return [*_offer_as_hydra_does(config, word), *(tools if _list_typed() == [word] else [])]
    values = errors.list_choices(kind)
    if not values:
        now = OmegaConf.select(config, key)
        values = [] if now is None else [show(now) if isinstance(now, ListConfig) else str(now)]
    return [f"{key}={value}" for value in values if value.startswith(begun)]


def _list_typed() -> list[str]:
    """Return the words behind `infoscope` for which the shell wants offers."""
    return os.environ.get("COMP_LINE", "").split()[1:]


def _was_in_job(error: BaseException) -> bool:
    """Whether an error comes from the job, where it is a bug of ours, or from Hydra before or after it."""
    return any(frame.f_code is _run_job.__code__ for frame, _ in traceback.walk_tb(error.__traceback__))


def _say_interrupted(words: str = "") -> int:
    words = words or "finished artifacts are kept, the same command goes on from there."
    output.complain(f"infoscope: interrupted; {words}")
    return output.EXIT_INTERRUPT


def _run_job(tree: DictConfig) -> Any:
    """Run one job. In a sweep of this process a failed job does not stop the others; elsewhere it must fail itself."""
    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    is_launched = not hydra_config.launcher._target_.endswith("BasicLauncher")
    try:
        if is_launched and not in_sweep:
            choice = hydra_config.runtime.choices["hydra/launcher"]
            raise InputError(f"hydra/launcher={choice} is for sweeps: give -m (infoscope -m ...), or drop it.")
        job = _find_job()
        if not is_launched and job.number == 0:
            _check_sweep(job)
        if job.sweep is not None and not is_launched and not tree.plan:
            _sweeps[job.sweep] = tree.output_dir
        config = make_config(tree)
        check_read(config, job.overrides)
        return _run(config, job)
    except (InputError, OmegaConfBaseException, OSError) as error:
        said = error
        if isinstance(error, OSError):  # said here: Hydra prints the job's overrides before it lets an error through
            said = explain_write_error(error, error.filename) if error.filename else None
        if said is None or (is_launched and in_sweep):
            raise
        output.say_failure(errors.explain(said, Config), error)
        return None


def _run(config: Config, job: Job) -> Any:
    """Do what the stage or the command asks for; imports are late, for --help and shell completion need no torch."""
    if registry.is_command(config.stage.name):
        if config.plan:
            raise InputError(f"stage={config.stage.name} builds nothing, so there is nothing to plan: drop plan=true.")
        return registry.find_entry(config.stage.name).load()(config, job)
    from infoscope.pipeline.run import run

    return run(config, job=job)


def _check_sweep(job: Job) -> None:
    """End a sweep of this process over layers that will not do, before its first job; launchers look for themselves."""
    if job.sweep is None or not names_layer(job.overrides):
        return
    sweep = read_sweep(job.sweep)
    try:
        check_layers([one.overrides for one in sweep.jobs], sweep.config_dirs)
    except InputError as error:
        output.say_failure(str(error), error)
        sys.exit(output.EXIT_INPUT)


def _find_job() -> Job:
    """Return what Hydra says of the run that has begun."""
    hydra_config = HydraConfig.get()
    in_sweep = hydra_config.mode is RunMode.MULTIRUN
    overrides, sweep = tuple(hydra_config.overrides.task), Path(hydra_config.sweep.dir) if in_sweep else None
    layers: tuple[int, ...] = ()
    if sweep is not None and names_layer(overrides):
        layers = find_layers(overrides, [job.overrides for job in read_sweep(sweep).jobs])
    return Job(
        folder=Path(hydra_config.runtime.output_dir),
        sweep=sweep,
        number=hydra_config.job.num if in_sweep else 0,
        overrides=overrides,
        layers=layers,
    )


_hydra_main = hydra.main(version_base="1.3", config_path=str(CONF_FOLDER), config_name="config")(_run_job)


if __name__ == "__main__":
    from infoscope import app  # under its own name, by which launchers send the job's function to other processes

    app.main()
