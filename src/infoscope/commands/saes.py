"""Commands about one SAE: describe-sae, export-sae, push-sae. Their arguments are those of the command line."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Any

from infoscope.runtime.output import say
from infoscope.sae import export
from infoscope.sae.describing import describe
from infoscope.sae.loading import load_sae


def describe_sae(path: str, *, json: bool = False, **options: Any) -> None:
    """Print what the file of an SAE is, what it computes, what it was trained on, and what to beware of.

    Args:
        path: of a file, its folder or an artifact, or hf:owner/name/folder@revision.
        json: print it as JSON.
        options: as of `load_sae`.

    Raises:
        InputError: as `load_sae`.
    """
    found = describe(load_sae(path, **options))
    if json:
        say(json_module.dumps(found, indent=2, ensure_ascii=False))
        return
    width = max(map(len, found)) + 2
    for heading, words in found.items():
        for number, line in enumerate(words.splitlines()):
            say(f"{'' if number else heading:<{width}}{line}")


def export_sae(path: str, out: str, *, format: str = "saelens") -> None:
    """Write an SAE as another program reads it: everything that infoscope keeps apart is folded into the matrices.

    Args:
        path: of an artifact of train_sae or import_sae, or of any SAE that describe-sae knows.
        out: the folder, which is made.
        format: saelens (SAE.load_from_disk reads it), or plain (matrices, and the formula in cfg.json).

    Raises:
        InputError: as `load_sae`; the format does not know such SAEs, or other files are in the way.
    """
    for file in export.export_sae(load_sae(path), Path(out), format):  # pyright: ignore[reportArgumentType]
        say(f"wrote {file}")
