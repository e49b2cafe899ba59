"""Commands about one SAE: describe-sae, export-sae, push-sae. Their arguments are those of the command line."""

from __future__ import annotations

import json as json_module
import shlex
from pathlib import Path
from typing import Any

from infoscope.commands.score_command import make_score_command
from infoscope.runtime.calls import make_options
from infoscope.runtime.output import say
from infoscope.sae import export
from infoscope.sae.describing import describe, list_facts
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.loading import import_alone


def describe_sae(path: str, *, json: bool = False, **options: Any) -> None:
    """Print what the file of an SAE is, what it computes, what it was trained on, what to beware of, and the command
    that scores it (of CLS tokens: measures it), in which "..." is to be filled in.

    Args:
        path: of a file, its folder or an artifact, or hf:owner/name/folder@revision.
        json: print it as one JSON object; null is "not said":
            format, file, sha256, address, revision, exported_from: texts; exported_from: what infoscope has exported;
            kind: text, what was trained; activation: text, what computes; k: whole number; threshold: number, of all;
            d_in, d_sae: whole numbers; token_norm: none, layer_norm or constant_norm; computes: list of formulas;
            backbone: text, as the file calls it; known_as: text, as infoscope does; layer, image_px: whole numbers;
            site: text; tokens: patch, all or cls; precision: bf16; facts: object; warnings: list of sentences;
            has_maps: true or false, whether they are scored; maps: sentence; command: text, what scores it, or
            without maps measures it.
        options: settings of sae=import, such as sae.k=32: what the file does not say.

    Raises:
        InputError: as `load_sae`.
    """
    config = make_options(ImportedConfig, {"path": path, **options})
    sae = import_alone(config)
    command = make_score_command(sae, config)
    if json:
        say(json_module.dumps({**list_facts(sae), "command": command}, indent=2, ensure_ascii=False))
        return
    heading = "to score" if list_facts(sae)["has_maps"] else "to measure"
    found = describe(sae) | ({} if command is None else {heading: command})
    width = max(map(len, found)) + 2
    for heading, words in found.items():
        for number, line in enumerate(words.splitlines()):
            say(f"{'' if number else heading:<{width}}{line}")


def export_sae(path: str, out: str, *, format: str = "saelens", **options: Any) -> None:
    """Write an SAE as another program reads it: everything that infoscope keeps apart is folded into the matrices.

    Args:
        path: of an artifact of train_sae or import_sae, or of any SAE that describe-sae knows.
        out: the folder, which is made.
        format: saelens (SAE.load_from_disk reads it), or plain (matrices, and the formula in plain.json).
        options: settings of sae=import, such as sae.k=32: what the file does not say; its own format is sae.format=.

    Raises:
        InputError: as `load_sae`; the format does not know such SAEs, or other files are in the way.
    """
    settings = {name.removeprefix("sae."): value for name, value in options.items()}
    sae = import_alone(make_options(ImportedConfig, {"path": path, **settings}))
    files = export.export_sae(sae, Path(out), format)  # pyright: ignore[reportArgumentType]
    source = sae.origin.source
    say(f"exported {source.words if source else f'{sae.activation.kind}, trained by infoscope'}")
    for file in files:
        say(f"wrote {file}")


def push_sae(
    path: str,
    repo: str,
    *,
    report: str | None = None,
    private: bool = False,
    confirm: bool = False,
    out: str | None = None,
) -> None:
    """Gather an SAE and a model card in a folder; with confirm=true, and not before, upload it to the Hugging Face hub.

    Args:
        path: of an artifact of train_sae or import_sae, or a folder that export-sae wrote.
        repo: owner/name on the hub; it is made where it does not exist.
        report: the folder of a report on this SAE, whose numbers the card then has.
        private: only its owner may see it; a repository that is public already is refused.
        confirm: upload it. A card that was edited since the last call stays as it is.
        out: the folder to gather in, which is made; else push-sae/owner/name below the current one.

    Raises:
        InputError: there is no such SAE or report, the report is of another SAE, files of others lie in `out`, or the
            hub refuses.
    """
    from infoscope.commands import push_sae as pushing  # and with it tables, which the others need not

    folder = Path(out).expanduser() if out else Path("push-sae", *repo.split("/"))
    made = pushing.push_sae(
        Path(path).expanduser(),
        repo,
        report=Path(report).expanduser() if report else None,
        private=private,
        confirm=confirm,
        out=folder,
    )
    say(f"gathered in {made.folder}: {', '.join(made.files)}")
    for note in made.notes:
        say(note)
    if made.url is not None:
        say(f"uploaded: {made.url}")
        return
    given = {"report": report, "out": out, "private": "true" if private else None, "confirm": "true"}
    options = [f"{name}={value}" for name, value in given.items() if value]
    say(f"nothing was uploaded; read and edit {made.folder / pushing.CARD}, then:")
    say(f"    {shlex.join(['infoscope', 'push-sae', path, repo, *options])}")
