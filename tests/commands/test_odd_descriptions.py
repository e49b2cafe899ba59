"""Whatever value stands in the description of an SAE of ours, it is described as it is, or refused by one sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infoscope.commands.push_sae import push_sae
from infoscope.commands.saes import describe_sae
from infoscope.runtime.errors import InputError
from infoscope.sae.activations import TopK
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.config import TokenChoice
from infoscope.sae.export import export_sae
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.source import Source

FACTS = {"pickled": ["a.B"], "k": 2, "threshold": 0.5, "folded": "x", "fitted_scale": 1.0, "needs_statistics": False}
SOURCE = Source("patchsae", "topk", "vit.pt", "ab" * 32, "openai/clip-vit-base-patch16", facts=FACTS, warnings=("W.",))
ORIGIN = Origin(-2, {"kind": "open_clip", "weights": "tag:ViT-B-16:openai"}, 224, TokenChoice.all, "resid_post", SOURCE)
FILES = {"ours": "sae.json", "plain": "plain.json", "saelens": "cfg.json"}
ODD = (None, True, -4, 10**30, 2.5, float("nan"), "x", "", [], [5], {}, {"a": 1})


def write(folder: Path, form: str) -> Path:
    """Write a small SAE, and return its description."""
    sae = SparseAutoencoder(4, 8, TopK(2), seed=0).requires_grad_(False)
    sae.origin = ORIGIN
    if form == "ours":
        save_sae(folder, sae)
    else:
        export_sae(sae, folder, form)  # pyright: ignore[reportArgumentType]
    return folder / FILES[form]


def list_places(value: Any, *before: Any) -> Iterator[tuple[Any, ...]]:
    """Yield where values stand in a description, the inner ones too."""
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield (*before, name)
        yield from list_places(inner, *before, name)


def change(file: Path, text: str, where: tuple[Any, ...], value: Any) -> None:
    info = inner = json.loads(text)
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    file.write_text(json.dumps(info))


@pytest.mark.long
@pytest.mark.parametrize("form", FILES)
def test_no_value_breaks_a_command(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "sae", form)
    text, options = file.read_text(), {"report": None, "private": False, "confirm": False}
    refused, n_described = list[str](), 0
    for where in list_places(json.loads(text)):
        for value in ODD:
            change(file, text, where, value)
            try:
                describe_sae(str(file.parent))
                describe_sae(str(file.parent), json=True)
                (tmp_path / "out/README.md").unlink(missing_ok=True)
                push_sae(file.parent, "owner/name", out=tmp_path / "out", **options)
                n_described += 1
            except InputError as error:
                refused.append(str(error))
            said = capsys.readouterr().out
            assert "in the format of x" not in said
            assert "NaN" not in said  # which is no JSON
    assert min(len(refused), n_described) > 20
    assert "".join(refused).isprintable()


IMPOSSIBLE = [
    (("origin", "layer"), 10**30),
    (("origin", "layer"), -4097),
    (("origin", "image_px"), -4),
    (("origin", "image_px"), 10**30),
    (("origin", "source", "format"), "nope"),
    (("origin", "source", "kind"), "x"),
    (("origin", "source", "warnings"), "abc"),
    (("origin", "source", "facts", "pickled"), 5),
    (("origin", "source", "facts", "pickled"), [5]),
    (("origin", "source", "facts", "fitted_scale"), "x"),
    (("origin", "source", "facts", "needs_statistics"), "no"),
]


@pytest.mark.parametrize(("where", "value"), IMPOSSIBLE)
@pytest.mark.parametrize("form", FILES)
def test_what_infoscope_cannot_have_written_is_refused(
    tmp_path: Path, form: str, where: tuple[Any, ...], value: Any
) -> None:
    file = write(tmp_path, form)
    describe_sae(str(tmp_path))
    change(file, file.read_text(), ("metadata", "infoscope", *where) if form == "saelens" else where, value)
    with pytest.raises(InputError, match=r"origin is not as infoscope (writes|wrote) it"):
        describe_sae(str(tmp_path))


@pytest.mark.parametrize("version", [True, 1.0, 2.0])
def test_a_version_is_a_whole_number(tmp_path: Path, version: Any) -> None:
    file = write(tmp_path, "ours")
    describe_sae(str(tmp_path))
    change(file, file.read_text(), ("format_version",), version)
    with pytest.raises(InputError, match=f"has format version {version}, this infoscope reads up to 2"):
        describe_sae(str(tmp_path))
