"""infoscope view PATH: an explorer over http, to the browser of this machine."""

from __future__ import annotations

import os
import shlex
import sys
import webbrowser
from contextlib import suppress
from pathlib import Path

import yaml

from infoscope.config.overrides import quote_override
from infoscope.explorer.finding import INDEX, MADE_IN, find_explorer, read_explorer
from infoscope.explorer.server import open_server
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import CONFIG, read_manifest
from infoscope.runtime.output import say
from infoscope.runtime.uses import find_uses

_SAE_STAGES = ("train_sae", "import_sae")
_OVERRIDES = ".hydra/overrides.yaml"
"""In a run's folder: the settings of its command."""


def view(path: str, *, port: str = "8000", open: bool = True) -> None:
    """Serve an explorer on 127.0.0.1, to this machine alone, until Ctrl-C. It also opens from the disk, by a double
    click on its index.html: served, it is for folders on another machine, and one address for links.

    Args:
        path: the explorer's folder, its index.html, or an output_dir: then the explorer that was made last.
        port: of the address; where it is taken the next that is free is, with 0 any.
        open: show the page in the browser, where there is a screen.

    Raises:
        InputError: there is no explorer, or none that is whole; or no port is free.
    """
    number = _read_port(port)
    folder = _find(Path(path).expanduser())
    read_explorer(folder)
    with open_server(folder, number) as server:
        if number not in (0, server.server_port):
            say(f"port {number} is taken, this is on {server.server_port}")
        say(f"{folder}\nis at {server.address} for this machine alone; Ctrl-C ends it.")
        if "SSH_CONNECTION" in os.environ:
            to = f"{server.server_port}:localhost:{server.server_port}"
            say(f"From your machine: ssh -N -L {to} USER@THIS_ONE, then open that address there.")
        elif open and _has_screen():
            webbrowser.open(server.address)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    say("ended")


def _read_port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise InputError(f"Expected port= a number from 0 (any that is free) to 65535, got {text!r}.")
    return int(text)


def _has_screen() -> bool:
    """Whether a browser has where to open: without, the terminal's own would take the terminal."""
    return sys.platform in ("darwin", "win32") or bool({"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ))


def _find(path: Path) -> Path:
    """Return the folder of the explorer that is meant.

    Raises:
        InputError: there is none; with what is there, and the command that makes one of it.
    """
    found = find_explorer(path)
    if found is not None:
        return found
    manifest = read_manifest(path) if path.is_dir() else None
    stage, artifact = (manifest["stage"], manifest["hash"]) if manifest is not None else (None, None)
    command = _find_command(path, artifact)
    if stage == "explore":
        raise InputError(f"The explorer in {path} lacks {INDEX} or page/: copy the whole folder again.")
    if stage is not None and stage not in _SAE_STAGES:
        command = command or f"infoscope stage=explore ..., with the settings of {path / CONFIG}"
        raise InputError(f"{path} is an artifact of stage={stage} and no explorer, which this makes: {command}")
    if stage is None and (path / "artifacts").is_dir():
        command = command or f"infoscope stage=explore output_dir={shlex.quote(str(path))} ..."
        raise InputError(f"{path} holds no explorer: none is in {path / MADE_IN}, this makes one: {command}")
    if command := command or _make_import_command(path):
        raise InputError(f"{path} is an SAE: an explorer shows its scores too; this makes both: {command}")
    raise InputError(
        f"Expected an explorer's folder, its {INDEX} or an output folder, got {path}, which is none of them: an"
        " explorer is made by stage=explore."
    )


def _find_command(path: Path, artifact: str | None) -> str | None:
    """Return the command that makes an explorer with the settings of the newest run there; None: no run is known.

    Args:
        path: an output folder, or an artifact in one.
        artifact: its hash, which the run has used; None: any run will do.
    """
    path = path.resolve()
    output_dir = path if artifact is None else path.parents[2] if len(path.parents) > 2 else path
    if not (output_dir / "artifacts").is_dir():
        return None
    runs = [run for run, uses in find_uses(output_dir) if artifact is None or artifact in uses]
    runs = [run for run in runs if (run / _OVERRIDES).is_file()]
    if not runs:
        return None
    newest = max(runs, key=lambda run: (run / _OVERRIDES).stat().st_mtime_ns)
    try:
        overrides = [str(one) for one in yaml.safe_load((newest / _OVERRIDES).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return None
    kept = [one for one in overrides if one.lstrip("+~").partition("=")[0] not in ("stage", "plan")]
    return shlex.join(["infoscope", "stage=explore", *kept])


def _make_import_command(path: Path) -> str | None:
    """Return the command that scores an SAE and makes an explorer of it, as far as its file says; None: it is none."""
    from infoscope.commands.score_command import make_score_command  # and with them torch
    from infoscope.sae.hub import WEIGHTS
    from infoscope.sae.import_config import ImportedConfig
    from infoscope.sae.loading import import_alone

    config = ImportedConfig(path=str(path))
    try:
        return make_score_command(import_alone(config), config, "explore")
    except InputError:  # its file does not say all
        is_sae = path.is_file() and path.suffix in WEIGHTS
    arguments = ["stage=explore", "sae=import", quote_override("sae.path", str(path)), "model=...", "data=..."]
    return shlex.join(["infoscope", *arguments]) if is_sae else None
