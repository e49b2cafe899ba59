"""The README's table of formats: each row is what describe-sae says of a file that was written here."""

from __future__ import annotations

from pathlib import Path

import pytest

from infoscope import load_sae
from infoscope.sae.describing import describe
from infoscope.sae.formats import NAMES, load_formats
from tests.support.foreign.dictionaries import OPTIONS, OTHERS, WRITERS, write_dictionary

README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
EXAMPLES = (*WRITERS, *OTHERS)


def make_row(name: str, folder: Path) -> str:
    """Return the row of an example, as Markdown."""
    found = describe(load_sae(write_dictionary(name, folder, 24, 24), **OPTIONS.get(name, {})))
    format = found["format"].split()[0]
    computes = "; ".join(f"`{line}`" for line in found["computes"].splitlines()).replace("|", r"\|")
    return f"| `{format}` | {load_formats()[format].LABEL} | {found['kind']} | {computes} |"


@pytest.mark.parametrize("name", EXAMPLES)
def test_each_row_is_what_describe_sae_says(name: str, tmp_path: Path) -> None:
    assert make_row(name, tmp_path) in README.splitlines()


def test_every_format_has_a_row() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| `")]
    assert {row.split("`")[1] for row in rows} >= set(NAMES)
