"""Whatever a file holds, every reader reads it or refuses it by one sentence."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from infoscope.runtime.calls import make_options
from infoscope.runtime.errors import InputError
from infoscope.sae.formats import load_formats
from infoscope.sae.formats.base import Options
from infoscope.sae.import_config import ImportedConfig
from infoscope.sae.loading import assemble, load_sae, read_found
from tests.support.foreign.arrays import D_IN, D_SAE, draw_weights
from tests.support.foreign.dictionaries import OPTIONS, OTHERS, WRITERS, write_dictionary
from tests.support.foreign.rewriting import WEIGHTS, find_weights, load_part, save_part

W = draw_weights(11)
WORDS = (
    *("W_enc", "W_dec", "b_enc", "b_dec", "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias", "bias"),
    *("encoder.final_block.0.weight", "encoder.final_block.0.bias", "dictionary._weights", "dictionary.multiplier"),
    *(
        "tied_bias",
        "pre_b",
        "enc",
        "dec",
        "k",
        "threshold",
        "feature_counts",
        "state_dict",
        "model_state_dict",
        "model",
    ),
    *("encoder.0.weight_g", "encoder.0.weight_v", "encoder.0.bias", "decoder.weight_g", "decoder.weight_v", "cfg"),
    *("mean_center", "scaling_factor", "pre_bias", "latent_bias", "encoder", "decoder", "thresholds", "config"),
)
SETTINGS = ("activation", "architecture", "k", "d_in", "num_latents", "trainer", "layer", "normalize_activations")


def draw(rng: random.Random, depth: int = 0) -> Any:
    """Return a value as a file could have it."""
    sides = [D_IN, D_SAE, 1, 0]
    kind = rng.randrange(10 if depth < 2 else 8)
    if kind < 4:
        return torch.zeros([rng.choice(sides) for _ in range(rng.randrange(4))])
    if kind == 4:
        return W.tensor(rng.choice(list(W)), transpose=rng.random() < 0.5)
    if kind < 8:
        return rng.choice([None, True, 3, 2.5, -1, "relu", "", b"x", [], [1, "a"], 10**30])
    return {rng.choice(WORDS): draw(rng, depth + 1) for _ in range(rng.randrange(12))}


TEXTS = (".json", ".yaml")
WRITTEN = sorted((WRITERS | OTHERS).keys() - {"overcomplete"})  # a whole module


@pytest.mark.parametrize("name", WRITTEN)
def test_no_content_breaks_a_reader(tmp_path: Path, name: str) -> None:
    """Some values of a whole checkpoint are others; no reader ends by an error that `load_sae` would put into words."""
    rng, n_read = random.Random(WRITTEN.index(name)), 0
    place = write_dictionary(name, tmp_path, D_IN, D_SAE)
    files = [path for path in (tmp_path / name).rglob("*") if path.suffix in (*TEXTS, *WEIGHTS)]
    source = load_sae(place, **OPTIONS.get(name, {})).origin.source
    assert source is not None
    given = make_options(ImportedConfig, {"path": "-", **OPTIONS.get(name, {})})
    whole = {file: file.read_bytes() for file in files}
    for _ in range(60):
        file = rng.choice(files)
        part = load_part(file)
        for _ in range(rng.randrange(1, 3)):
            is_header = "header" in part and rng.random() < 0.5
            change(rng, part["header" if is_header else "content"], ".json" if is_header else file.suffix)
        save_part(file, part)
        with suppress(InputError):
            found = read_found(find_weights(place))
            load_formats()[source.format].recognise(found)
            options = Options(given)
            foreign = load_formats()[source.format].read(found, options)
            options.check()
            assert assemble(foreign).d_in > 0
            n_read += 1
        file.write_bytes(whole[file])
    assert 0 < n_read < 60


def change(rng: random.Random, content: Any, kind: str) -> None:
    """Replace a value somewhere in nested dicts, take it away, or add one."""
    inner = content
    while parts := [value for value in inner.values() if isinstance(value, dict) and value]:
        if rng.random() < 0.3:
            break
        inner = rng.choice(parts)
    key = rng.choice([*inner, rng.choice(WORDS + SETTINGS)])
    if rng.random() < 0.2:
        inner.pop(key, None)
        return
    value = draw(rng)
    while not fits(value, kind):
        value = draw(rng)
    inner[key] = value


def fits(value: Any, kind: str) -> bool:
    """Whether a file of this kind can hold a value."""
    if kind == ".safetensors":
        return isinstance(value, torch.Tensor)
    with suppress(TypeError):
        return kind not in TEXTS or bool(json.dumps(value))
    return False


def list_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where text stands in nested dicts and lists."""
    if isinstance(value, str):
        yield place
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from list_places(part, (*place, key))


TENSORS_ALONE = {*("attributing_clip", "clip_topk_sae", "clipscope", "dncbm", "msae", "plain", "sae_for_vlm")}


@pytest.mark.parametrize("text", ["\x1b[31m{}\x1b[0m", "{}\x9b31m", "{}\n", "{}" + "x" * 5000])
@pytest.mark.parametrize("name", WRITTEN)
def test_no_text_of_a_file_is_shown_that_a_terminal_obeys_or_that_fills_it(tmp_path, name, text):
    place, n_places = write_dictionary(name, tmp_path, D_IN, D_SAE), 0
    load_sae(place, **OPTIONS.get(name, {}))
    for file in [path for path in (tmp_path / name).rglob("*") if path.suffix in (".json", ".yaml", *WEIGHTS)]:
        before = file.read_bytes()
        whole = load_part(file)
        for where in list_places(whole):
            n_places += 1
            part = inner = load_part(file)
            for key in where[:-1]:
                inner = inner[key]
            inner[where[-1]] = text.format(inner[where[-1]])
            save_part(file, part)
            said = describe(place, name)
            assert said.isprintable(), where
            assert len(said) < 6000, where
            file.write_bytes(before)
    assert n_places > 0 or name in TENSORS_ALONE


def describe(place: Path, name: str) -> str:
    """Return what is said of an SAE: all of its origin, or why it is refused."""
    try:
        return json.dumps(load_sae(place, **OPTIONS.get(name, {})).origin.to_json(), ensure_ascii=False).replace(
            "\\", "\x1b"
        )
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("text", ["{}", "[]", "[" * 100_000, '{"format_version": Infinity}', '{"hash": 1, "files": 2}'])
def test_a_manifest_of_others_makes_no_folder_ours(tmp_path, text):
    place = write_dictionary("saelens", tmp_path, D_IN, D_SAE)
    (place / "manifest.json").write_text(text)
    source = load_sae(place).origin.source
    assert source is not None
    assert source.format == "saelens"


def test_a_folder_of_infoscope_is_ours(tmp_path):
    manifest = {"format_version": 2, "hash": "a", "files": {}, "stage": "rank", "upstream": {}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="found an artifact of the stage rank: give a folder of train_sae"):
        load_sae(tmp_path)


def test_a_file_of_several_formats_is_asked_about(tmp_path, monkeypatch):
    formats = load_formats()
    for name in ("sparsify", "dncbm"):
        monkeypatch.setattr(formats[name], "recognise", lambda found: True)
    torch.save({"W": torch.zeros(2)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="sparsify or dncbm"):
        load_sae(tmp_path)


def test_what_is_no_path_is_one_sentence(tmp_path):
    for path in ("a" * 5000, "~nobody-of-this-name/x", tmp_path / ("b" * 300)):
        with pytest.raises(InputError, match=r"^(Cannot read|Expected the file or folder)"):
            load_sae(path)


def test_a_file_that_cannot_be_read_is_not_passed_over_in_a_folder(tmp_path):
    whole = draw_weights(1)
    torch.save(
        {"cfg": {"block_layer": 1}, "state_dict": {name: whole.tensor(name) for name in whole}}, tmp_path / "a.pt"
    )
    (tmp_path / "b.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-50])
    with pytest.raises(InputError, match=r"holds 2 files: a\.pt, b\.pt"):
        load_sae(tmp_path)


@pytest.mark.parametrize("factor", [1e-46, 1e39, float("inf"), float("nan"), 0.0])
def test_a_scale_that_float32_does_not_hold_is_refused(tmp_path, factor):
    w = draw_weights(1)
    names = {"encoder": "W_enc", "decoder": "W_dec", "pre_bias": "b_dec", "latent_bias": "b_enc"}
    content = {"model": {name: w.tensor(of) for name, of in names.items()}, "mean_center": torch.zeros(D_IN)}
    file = tmp_path / f"{D_SAE}_{D_IN}_ReLU_003_False_False_0.0_cc3m_ViT-L~14_train_image_9_{D_IN}.pth"
    torch.save(content | {"scaling_factor": factor, "target_norm": 1.0}, file)
    with pytest.raises(InputError, match=r"scaling_factor|multiplies tokens"):
        load_sae(file)
