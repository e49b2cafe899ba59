"""The READMEs: their links lead somewhere, and the commands in them are composed."""

from __future__ import annotations

import inspect
import re
import shlex
from dataclasses import asdict
from enum import Enum
from pathlib import Path

import pytest

from infoscope import registry
from infoscope.commands.experiments.sweep import add_defaults, choose_settings
from infoscope.config.overrides import has_layers
from infoscope.config.sweeps import expand_sweep
from infoscope.config.tree import compose
from infoscope.scope.config import ExtentConfig
from tests.support.experiment_samples import load_experiment

ROOT = Path(__file__).parents[2]
FILES = [
    *(ROOT / folder / "README.md" for folder in (".", "conf", "src/infoscope", "experiments", "tests")),
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def find_anchors(file: Path) -> set[str]:
    """Return what a page can be entered by: its headings, as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def find_commands(file: Path) -> list[str]:
    """Return the arguments of every `infoscope` command that is set apart as code, one string each."""
    text = re.sub(r" *\\\n +", " ", file.read_text(encoding="utf-8"))
    commands = re.findall(r"^    infoscope\b *([^#\n]*)", text, re.MULTILINE)
    return [one for one in commands if "--" not in one and "$" not in one]


def find_scripts(file: Path) -> list[str]:
    """Return name and arguments of every file of experiments/ that is called in a line of code, one string each."""
    text = re.sub(r" *\\\n +", " ", file.read_text(encoding="utf-8"))
    return [
        f"{name} {of}" for name, of in re.findall(r"^    python experiments/(\w+)\.py *([^#\n]*)", text, re.MULTILINE)
    ]


SCRIPTS = sorted({script for file in FILES for script in find_scripts(file)})


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(file: Path) -> None:
    for link in LINK.findall(file.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = file.parent / path if path else file
        assert target.exists(), link
        assert not anchor or anchor in find_anchors(target), link


@pytest.mark.parametrize("command", sorted({command for file in FILES for command in find_commands(file)}))
def test_commands_are_composed(command: str) -> None:
    """Of a sweep, its first job; what belongs to its launcher is Hydra's. Of what composes nothing, what it takes."""
    if (tool := registry.find_tool(command.split()[0] if command.split() else "")) is not None:
        given = shlex.split(command)[1:]
        options = dict(one.split("=", 1) for one in given if "=" in one)
        inspect.signature(tool.load()).bind(*[one for one in given if "=" not in one], **options)
        return
    arguments = [one for one in shlex.split(command) if one not in ("-m", "...") and not one.startswith("hydra")]
    is_sweep = "-m" in command.split() or has_layers(arguments)
    first = expand_sweep(arguments)[0] if is_sweep else arguments
    config = compose(first)
    for one in first:
        key, _, value = one.partition("=")
        if key == "stage":
            assert config.stage.name == value


def test_commands_are_found() -> None:
    assert sum(len(find_commands(file)) for file in FILES) > 15
    assert len(SCRIPTS) > 5


@pytest.mark.parametrize("command", SCRIPTS)
def test_commands_of_experiments_are_composed(command: str) -> None:
    """Of a sweep, its first job under the first and the last of the settings that are compared."""
    name, *arguments = shlex.split(command)
    experiment = getattr(load_experiment(name), "EXPERIMENT", None)
    if experiment is None:  # a script of another kind
        return
    settings, given = choose_settings(experiment.settings, arguments)
    first = expand_sweep(add_defaults([f"stage={experiment.stages[0]}", *experiment.defaults], given))[0]
    for setting in {*settings[:1], *settings[-1:]} or {""}:
        assert compose([*setting.split(), *first]).stage.name in experiment.stages


def test_settings_of_extents_are_listed_with_their_defaults() -> None:
    text = (ROOT / "conf" / "README.md").read_text(encoding="utf-8")
    rows = text.partition("| `scope.extent.` | default |")[2].partition("\n\n")[0]
    told = dict(re.findall(r"^\| `(\w+)` \| `?([^`|, ]+(?:,\d+)*)", rows, re.MULTILINE))
    defaults = asdict(ExtentConfig())
    assert told.keys() == defaults.keys()
    for name, default in defaults.items():
        value = default.name if isinstance(default, Enum) else "null" if default is None else str(default)
        assert told[name].replace(",", "") == value, name
