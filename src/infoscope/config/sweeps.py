"""Sweeps as command lines: the jobs that one has, whether they ran or not, and the command that runs some of them."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from infoscope.config import errors
from infoscope.config.overrides import quote_override
from infoscope.config.tree import Config, compose, open_hydra, prepare_arguments
from infoscope.runtime.bounds import expand_path
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job

SWEEP_FILE = "multirun.yaml"
"""Hydra writes it into the sweep's folder before any job starts, under every launcher."""
SWEEPS, _BELOW_OUTPUT = "sweeps", "${path:${output_dir}}/"
"""Where conf/config.yaml puts the folders of sweeps."""


@dataclass(frozen=True)
class Sweep:
    """One `infoscope -m ...`.

    jobs: all of them, in their order; those that never began have no folder yet.
    options: what else its command line holds, such as `hydra/launcher=...`.
    config_dirs: folders with choices of one's own (`--config-dir`).
    """

    folder: Path
    jobs: tuple[Job, ...]
    options: tuple[str, ...] = ()
    config_dirs: tuple[str, ...] = ()


def expand_sweep(overrides: Sequence[str]) -> list[list[str]]:
    """Return the overrides of each job of a sweep, as `infoscope -m` expands them.

    >>> expand_sweep(["scope.k_cds=4,8", "seeds=[0,1]"])
    [['scope.k_cds=4', 'seeds=[0,1]'], ['scope.k_cds=8', 'seeds=[0,1]']]

    Raises:
        InputError: what Hydra cannot read.
    """
    try:
        with open_hydra() as loader:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(prepare_arguments(overrides))
            return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]
    except errors.COMPOSITION_ERRORS as error:
        raise InputError(errors.explain(error, Config)) from error


def read_sweep(folder: Path) -> Sweep:
    """Return a sweep from its folder; where its output folder was moved or copied, its jobs have the new `output_dir`.

    Raises:
        InputError: if Hydra has written no sweep there, or one that cannot be read.
    """
    file = folder / SWEEP_FILE
    try:
        content: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        hydra = content["hydra"]
        overrides, sweeper = hydra["overrides"], hydra["sweeper"]
        if sweeper["_target_"].endswith(".BasicSweeper"):
            params = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
            jobs = tuple(
                Job(folder / str(number), folder, number, tuple(one))
                for number, one in enumerate(expand_sweep([*params, *overrides["task"]]))
            )
        else:  # such as Optuna's, which chooses as it goes: the jobs are those that have begun
            jobs = _read_begun_jobs(folder)
        sources = hydra["runtime"]["config_sources"]
        dirs = tuple(source["path"] for source in sources if source["provider"] == "command-line")
        options = tuple(option for option in overrides["hydra"] if not option.startswith("hydra.mode="))
        if (moved := _find_move(folder, content)) is not None:
            jobs = tuple(replace(job, overrides=moved.follow(job.overrides)) for job in jobs)
    except OSError as error:
        raise InputError(
            f"Expected the folder of a sweep, with Hydra's {SWEEP_FILE}, in {folder} ({error.strerror}): give"
            " collect.sweeps=[FOLDER,...]."
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"Cannot read {file}, which Hydra writes: give the folder of another sweep.") from error
    return Sweep(folder, jobs, options, dirs)


@dataclass(frozen=True)
class _Move:
    """Of an output folder.

    given, began_in: the `output_dir` of the sweep, and the folder from which it is counted.
    before, now: where that lay, and where it lies.
    """

    given: str
    began_in: Path
    before: Path
    now: Path

    def follow(self, overrides: Sequence[str]) -> tuple[str, ...]:
        """Return the overrides of a job with the `output_dir` that is now, if its own lay in the folder that moved."""
        own = [one for one in overrides if one.lstrip("+").startswith("output_dir=")]
        value = OverridesParser.create().parse_override(own[-1]).value() if own else self.given
        place = _find_place(self.began_in, str(value))
        if not place.is_relative_to(self.before):
            return tuple(overrides)
        new = quote_override("output_dir", str(self.now / place.relative_to(self.before)))
        return tuple(new if one in own else one for one in overrides) if own else (*overrides, new)


def _find_move(folder: Path, content: dict[str, Any]) -> _Move | None:
    """Return how the output folder of a sweep came where its artifacts lie now; None: it is where it was.

    Args:
        content: of the file that Hydra has written.
    """
    now, pattern = folder.resolve().parent.parent, content["hydra"].get("sweep", {}).get("dir", "")
    if folder.parent.name != SWEEPS or not pattern.startswith(_BELOW_OUTPUT) or not (now / "artifacts").is_dir():
        return None
    given, began_in = str(content["output_dir"]), Path(content["hydra"]["runtime"]["cwd"])
    before = _find_place(began_in, given)
    return None if before.resolve() == now else _Move(given, began_in, before, now)


def _find_place(began_in: Path, output_dir: str) -> Path:
    return Path(os.path.abspath(began_in / expand_path(output_dir, "output_dir")))


def _read_begun_jobs(folder: Path) -> tuple[Job, ...]:
    files = [file for file in folder.glob("*/.hydra/overrides.yaml") if file.parents[1].name.isdecimal()]
    numbered = sorted((int(file.parents[1].name), file) for file in files)
    return tuple(
        Job(file.parents[1], folder, number, tuple(yaml.safe_load(file.read_text(encoding="utf-8"))))
        for number, file in numbered
    )


def find_sweep(output_dir: Path, name: str | None = None) -> Path:
    """Return the folder of a sweep by its path or its name below <output_dir>/sweeps; None: the newest one there.

    Raises:
        InputError: if there is none.
    """
    sweeps = output_dir / SWEEPS
    if name is not None:
        return sweeps / name if (sweeps / name).is_dir() else Path(name)
    found = sorted(file.parent for file in sweeps.glob(f"*/{SWEEP_FILE}"))  # their names begin with the time
    if not found:
        raise InputError(
            f"Expected sweeps in {sweeps}, found none: run `infoscope -m ...` first, or give"
            " collect.sweeps=[FOLDER,...]."
        )
    return found[-1]


def make_commands(
    jobs: Sequence[Sequence[str]], options: Sequence[str] = (), config_dirs: Sequence[str] = ()
) -> list[str]:
    """Return commands that run these jobs: one, if all change the same keys.

    Several jobs become a sweep over the values that occur among them. Where that has more jobs than these, the
    others find their results made already.

    Args:
        jobs: their overrides; one value for each key.
        options: of a sweep, such as `hydra/launcher=slurm`.
        config_dirs: as after `--config-dir`.
    """
    together: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for job in jobs:
        pairs = dict(_split_override(override) for override in job)
        together.setdefault(tuple(pairs), []).append(pairs)
    start = ["infoscope", *(word for folder in config_dirs for word in ("--config-dir", folder))]
    commands = []
    for keys, alike in together.items():
        values = {key: ",".join(dict.fromkeys(one[key] for one in alike)) for key in keys}
        many = ["-m", *options] if len(alike) > 1 else []
        commands.append(shlex.join([*start, *many, *(f"{key}{value}" for key, value in values.items())]))
    return commands


def make_collect_command(folder: Path | str, output_dir: Path | str) -> str:
    """Return the command that collects a sweep."""
    into = [] if str(output_dir) == Config.output_dir else [quote_override("output_dir", str(output_dir))]
    return shlex.join(["infoscope", "stage=collect", quote_override("collect.sweeps", [str(folder)]), *into])


def find_swept(jobs: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return of each job the overrides that are not the same in all of them, by key.

    >>> find_swept([["model=a", "seeds=[0]"], ["model=b", "seeds=[0]"]])
    [{'model': 'a'}, {'model': 'b'}]
    """
    pairs = [dict(_split_override(override) for override in job) for job in jobs]
    keys = dict.fromkeys(key for one in pairs for key in one)
    swept = [key for key in keys if len({one.get(key) for one in pairs}) > 1]
    return [{key.removesuffix("="): one[key] for key in swept if key in one} for one in pairs]


def find_layers(job: Sequence[str], jobs: Sequence[Sequence[str]]) -> tuple[int, ...]:
    """Return the other values of model.layer among jobs that are like one in all else.

    >>> find_layers(["model.layer=1", "seeds=[0]"], [["model.layer=1", "seeds=[0]"], ["model.layer=-1", "seeds=[0]"]])
    (-1,)

    Args:
        job, jobs: their overrides.
    """
    mine, alike = _split_layer(job), [_split_layer(one) for one in jobs]
    found = [layer for layer, others in alike if others == mine[1] and layer is not None and layer != mine[0]]
    return tuple(dict.fromkeys(found)) if mine[0] is not None else ()


def names_layer(overrides: Sequence[str]) -> bool:
    """Whether a job says which layer it reads."""
    return any(override.startswith("model.layer=") for override in overrides)


def check_layers(jobs: Sequence[Sequence[str]], config_dirs: Sequence[str] = ()) -> None:
    """Refuse a sweep over layers of which the model lacks one, or the stage cannot read one, before any job starts.

    The number of blocks is known from configurations alone. What else is wrong with a job is said to that job.

    Args:
        jobs: their overrides.
        config_dirs: as after `--config-dir`.

    Raises:
        InputError: such a layer.
    """
    from infoscope.vision.load import count_blocks  # imports torch, for which --help must not wait

    alike: dict[tuple[str, ...], list[int]] = {}
    for layer, others in map(_split_layer, jobs):
        if layer is not None:
            alike.setdefault(tuple(others), []).append(layer)
    for others, layers in alike.items():
        try:
            config = compose(others, config_dirs)
            n_blocks = count_blocks(config.model, config.clip)
        except InputError:
            continue
        for layer in layers:
            hook = replace(config.model.hook, layer=layer)
            hook = hook if n_blocks is None else hook.count_from_end(n_blocks)
            replace(config, model=replace(config.model, layer=hook.layer))  # refuses what does not go with such a layer


def _split_layer(overrides: Sequence[str]) -> tuple[int | None, list[str]]:
    """Return the value of model.layer, if it is a number, and the other overrides, ascending."""
    values = [override.partition("=")[2] for override in overrides if override.startswith("model.layer=")]
    others = sorted(override for override in overrides if not override.startswith("model.layer="))
    is_number = len(values) == 1 and re.fullmatch(r"-?\d+", values[0])
    return (int(values[0]) if is_number else None), others


def _split_override(override: str) -> tuple[str, str]:
    """Return ("key=", "value")."""
    key, equals, value = override.partition("=")
    return key + equals, value
