"""Sizes and the number of a block in a configuration are read or refused, whatever their type; none is left out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from infoscope.runtime.errors import InputError
from infoscope.sae.formats.values import parse_hook, read_layer
from infoscope.sae.loading import load_sae
from infoscope.sae.model import SparseAutoencoder
from tests.support.foreign.arrays import D_IN, D_SAE
from tests.support.foreign.dictionaries import write_dictionary
from tests.support.foreign.rewriting import find_weights, load_part, save_part

SIZES = [
    *[("patchsae", "d_in"), ("patchsae", "d_sae"), ("saelens", "d_in"), ("prisma", "d_sae")],
    *[("saev", "d_sae"), ("groupmax", "num_latents"), ("clipscope", "n_features"), ("gated", "dict_size")],
]


def load(folder: Path, format: str, said: Mapping[str, Any]) -> SparseAutoencoder:
    """Read a dictionary whose configuration, a file or a part of the weights', says this too."""
    place = write_dictionary(format, folder, D_IN, D_SAE)
    file = next(place.glob("*.json"), None) or find_weights(place)
    part = load_part(file)
    content = part["content"]
    parts = [part.get("header", {}).get("cfg"), content.get("cfg"), content.get("trainer"), content]
    next(config for config in parts if config is not None).update(said)
    save_part(file, part)
    return load_sae(place)


@pytest.mark.parametrize(("format", "name"), SIZES)
def test_sizes_are_whole_numbers_that_fit(tmp_path: Path, format: str, name: str) -> None:
    right = D_IN if name == "d_in" else D_SAE
    assert load(tmp_path / "right", format, {name: float(right)}).d_in == D_IN
    with pytest.raises(InputError, match=f"Expected {name} to be a whole number above 0, found '{right}'"):
        load(tmp_path / "text", format, {name: str(right)})
    with pytest.raises(InputError, match=f"{name}={right + 1}"):
        load(tmp_path / "wrong", format, {name: right + 1})


@pytest.mark.parametrize(
    ("format", "name"), [("patchsae", "block_layer"), ("prisma", "hook_point_layer"), ("gated", "layer")]
)
def test_layers_are_read_or_refused(tmp_path: Path, format: str, name: str) -> None:
    for i, said in enumerate((10, 10.0, "10")):
        assert load(tmp_path / str(i), format, {name: said}).origin.layer == 10
    with pytest.raises(InputError, match=f"Expected {name} to be the number of one block, found 1.5"):
        load(tmp_path / "half", format, {name: 1.5})


@pytest.mark.parametrize(
    ("format", "name"), [("patchsae", "block_layer"), ("prisma", "hook_point_layer"), ("gated", "layer")]
)
def test_a_layer_that_is_no_block_is_not_said(tmp_path: Path, format: str, name: str) -> None:
    for i, said in enumerate(("", "all", [3, 4])):
        origin = load(tmp_path / str(i), format, {name: said}).origin
        assert origin.layer is None
        assert origin.source is not None
        warnings = [text for text in origin.source.warnings if f"says {name}: {said!r}, which is not one block" in text]
        assert len(warnings) == bool(said)


@pytest.mark.parametrize(("said", "layer"), [("all", None), ("meanpool", None), ([-2], -2), (7, 7)])
@pytest.mark.parametrize("part", ["data", "train_data"])
def test_the_block_of_the_data_of_saev(tmp_path: Path, part: str, said: Any, layer: int | None) -> None:
    place = write_dictionary("saev", tmp_path, D_IN, D_SAE)
    (find_weights(place).parent / "config.json").write_text(json.dumps({part: {"layer": said}}))
    origin = load_sae(find_weights(place)).origin
    assert origin.layer == layer
    assert origin.source is not None
    assert any("which is not one block" in text for text in origin.source.warnings) == (layer is None)


def test_the_number_of_a_block() -> None:
    assert [read_layer(said, "layer") for said in (None, 0, -2, "-2", 4096.0, [1])] == [None, 0, -2, -2, 4096, 1]
    assert not any(read_layer(said, "layer") for said in ("", "all", "meanpool", [], [3, 4], [[1]], ["x"]))
    for said in (10**400, 4097, "9999", 10**5000, 1e300, [9999]):
        with pytest.raises(InputError, match="Expected layer to be at most 4096, found "):
            read_layer(said, "layer")
    for said in (True, 1.5, math.nan, math.inf, "1.5", [True], {}):
        with pytest.raises(InputError, match="Expected layer to be the number of one block, found "):
            read_layer(said, "layer")


def test_a_hook_of_a_block_that_no_network_has_is_refused() -> None:
    assert parse_hook("blocks.-2.hook_resid_post") == (-2, "resid_post")
    with pytest.raises(InputError, match="at most 4096, found '99999'"):
        parse_hook("blocks.99999.hook_resid_post")
