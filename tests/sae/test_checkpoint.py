"""Saved SAEs: same outputs after loading, one sentence for every bad file."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import compute_checksum
from infoscope.sae.activations import Activation, ReLU, TopK
from infoscope.sae.checkpoint import load_sae, load_sae_info, save_sae
from infoscope.sae.config import TokenChoice, TokenNorm
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from tests.support import imported_samples
from tests.support.imported_samples import make_sae as make_imported
from tests.support.imported_samples import make_tokens


def make_saved(folder: Path, activation: Activation) -> SparseAutoencoder:
    sae = SparseAutoencoder(8, 24, activation, torch.full((8,), 0.1), scale=1 / 3, seed=1)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    save_sae(folder, sae, layer=2, backbone={"name": "tiny"}, training={"lr": 1e-3})
    return sae


@pytest.mark.parametrize("activation", [TopK(3), ReLU()])
@pytest.mark.parametrize("name", ["", "sae.safetensors", "sae.json"])
def test_loading_gives_the_same_outputs(tmp_path: Path, activation: Activation, name: str) -> None:
    sae = make_saved(tmp_path, activation)
    loaded = load_sae(tmp_path / name)
    x = torch.randn(300, 8, generator=torch.Generator().manual_seed(4))
    for ours, theirs in zip(loaded(x), sae(x), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(loaded.encode_sparse(x), sae.encode_sparse(x), strict=True):
        assert torch.equal(ours, theirs)
    assert type(loaded.activation) is type(sae.activation)
    assert loaded.W_enc.stride() == sae.W_enc.stride()
    assert not loaded.training


def test_file_holds_the_documented_names_and_shapes(tmp_path: Path) -> None:
    make_saved(tmp_path, TopK(3))
    shapes = {name: list(tensor.shape) for name, tensor in load_file(tmp_path / "sae.safetensors").items()}
    assert shapes == {"W_enc": [8, 24], "b_enc": [24], "W_dec": [24, 8], "b_dec": [8], "mean": [8], "scale": []}
    info = load_sae_info(tmp_path)
    assert (info["kind"], info["activation"], info["origin"]["layer"]) == ("topk", {"k": 3}, 2)
    assert (info["origin"]["backbone"], info["training"]) == ({"name": "tiny"}, {"lr": 1e-3})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 99}, "update infoscope"),
        ({"format_version": None}, "update infoscope"),
        ({"kind": "rectified"}, "'rectified'.*topk, relu, batchtopk"),
        ({"format": "other"}, "not written by infoscope"),
        ({"d_in": "8"}, "d_in missing or of the wrong type"),
        ({"d_in": 9}, "does not hold the SAE"),
        ({"activation": {"q": 1}}, "settings of a topk activation"),
        ({"kind": "capped", "activation": {"cap": 1}}, "settings of a capped activation"),
        ({"kind": "gated", "activation": {}}, "settings of a gated activation"),
        ({"token_norm": "batch_norm"}, "token_norm missing or of the wrong type"),
        ({"token_norm": []}, "token_norm missing or of the wrong type"),
        ({"activation": {"k": 25}}, r"sae\.k in 1\.\.24"),
        ({"sha256": "0"}, "damaged"),
    ],
)
def test_wrong_json_is_refused(tmp_path: Path, changes: dict, message: str) -> None:
    make_saved(tmp_path, TopK(3))
    file = tmp_path / "sae.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(InputError, match=message) as raised:
        load_sae(tmp_path)
    assert "\n" not in str(raised.value)


def test_missing_or_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no sae\.json"):
        load_sae(tmp_path / "nowhere")
    make_saved(tmp_path, TopK(3))
    weights, info = tmp_path / "sae.safetensors", tmp_path / "sae.json"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-5])
    with pytest.raises(InputError, match="checksum"):
        load_sae(tmp_path)
    weights.unlink()
    with pytest.raises(InputError, match=r"Expected sae\.safetensors"):
        load_sae(tmp_path)
    weights.write_bytes(whole)
    info.write_text(info.read_text()[:-20])
    with pytest.raises(InputError, match="expected JSON"):
        load_sae(tmp_path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    sae = make_saved(tmp_path, TopK(3))
    with torch.no_grad():
        sae.b_enc[0] = torch.nan
    save_sae(tmp_path, sae)
    with pytest.raises(InputError, match="NaN or Inf in b_enc"):
        load_sae(tmp_path)
    with torch.no_grad():
        sae.b_enc[0] = sae.scale.fill_(0)
    save_sae(tmp_path, sae)
    with pytest.raises(InputError, match=r"Expected a scale above 0 in .*, got 0: train"):
        load_sae(tmp_path)


@pytest.mark.parametrize("token_norm", imported_samples.NORMS)
@pytest.mark.parametrize("name", imported_samples.ACTIVATIONS)
def test_what_only_imported_saes_have_is_found_again(tmp_path: Path, name: str, token_norm: TokenNorm) -> None:
    sae, x = make_imported(name, token_norm, torch.float32), make_tokens(300, dtype=torch.float32)
    sae.data_mean = x.mean(0)
    save_sae(tmp_path, sae)
    loaded = load_sae(tmp_path)
    for ours, theirs in zip(loaded(x), sae(x), strict=True):
        assert torch.equal(ours, theirs)
    assert (loaded.token_norm, loaded.activation.is_signed) == (token_norm, name in ("signed", "capped"))
    assert torch.equal(loaded.centre, x.mean(0))
    assert loaded.activation.settings() == sae.activation.settings()


def change(folder: Path, changes: dict[str, Any]) -> None:
    """Change what `sae.json` says; the checksum of what lies beside it is right."""
    file, weights = folder / "sae.json", folder / "sae.safetensors"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes | {"sha256": compute_checksum(weights)}))


ORIGIN = {"layer": 1, "backbone": {}, "image_px": None, "tokens": None}
HOSTILE: dict[str, dict[str, Any]] = {
    "a million latents": {"d_sae": 10**6},
    "sizes beyond memory": {"d_sae": 10**12, "d_in": 10**12},
    "thresholds beyond memory": {"kind": "jumprelu", "activation": {"d_sae": 10**12}},
    "thresholds of another number": {"kind": "jumprelu", "activation": {"d_sae": 25}},
    "a threshold of 0": {"kind": "jumprelu", "activation": {"d_sae": 24, "threshold": 0}},
    "a threshold of text": {"kind": "jumprelu", "activation": {"d_sae": 24, "threshold": "x"}},
    "gates beyond memory": {"kind": "gated", "activation": {"d_sae": 10**12}},
    "an inner activation beyond memory": {
        "kind": "capped",
        "activation": {"inner": "jumprelu", "inner_settings": {"d_sae": 10**12}, "cap": 1.0},
    },
    "no inner settings": {"kind": "capped", "activation": {"inner": "relu", "inner_settings": [], "cap": 1.0}},
    "a cap of text": {"kind": "capped", "activation": {"inner": "relu", "inner_settings": {}, "cap": "x"}},
    "k of text": {"activation": {"k": "x"}},
    "k of a list": {"activation": {"k": [1]}},
    "no k": {"activation": {"k": None}},
    "k of true": {"activation": {"k": True}},
    "sizes of true": {"d_in": True},
    "sizes below 0": {"d_in": -8},
    "sizes of 0": {"d_in": 0, "d_sae": 0},
    "a kind of a list": {"kind": ["topk"]},
    "a long kind": {"kind": "x" * 10_000},
    "a version of 0": {"format_version": 0},
    "a version of a list": {"format_version": [2]},
    "a long version": {"format_version": 10**4000},
    "no origin": {"origin": {}},
    "an unknown part of the origin": {"origin": {**ORIGIN, "x": 1}},
    "tokens of a list": {"origin": {**ORIGIN, "tokens": []}},
    "codes in the origin": {"origin": {**ORIGIN, "site": "\x1b[31mred"}},
    "codes in the backbone": {"origin": {**ORIGIN, "backbone": {"a": [{"\x1b[31mred": 1}]}}},
    "codes in a fact": {"origin": {**ORIGIN, "source": {"format": "a", "kind": "b", "facts": {"c": "\x9b31m"}}}},
    "codes in a warning": {"origin": {**ORIGIN, "source": {"format": "a", "kind": "b", "warnings": ["\n"]}}},
    "codes in a setting": {"activation": {"\x1b[31mred": 1}},
    "a source of text": {"origin": {**ORIGIN, "source": "x"}},
    "codes in an old file": {"format_version": 1, **ORIGIN, "backbone": {"name": "\x1b[31mred"}},
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_a_stranger_wrote_is_one_sentence(tmp_path: Path, what: str) -> None:
    make_saved(tmp_path, TopK(3))
    load_sae(tmp_path)
    change(tmp_path, HOSTILE[what])
    with pytest.raises(InputError) as raised:
        load_sae(tmp_path)
    assert str(raised.value).isprintable()
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("text", ["[" * 100_000, "{" + '"a":{' * 100_000, '{"format_version": 1' + " " * 2**20 + "}"])
def test_json_without_end_is_one_sentence(tmp_path: Path, text: str) -> None:
    make_saved(tmp_path, TopK(3))
    (tmp_path / "sae.json").write_text(text)
    with pytest.raises(InputError, match="is damaged: expected JSON"):
        load_sae(tmp_path)


def make_header(**changes: Any) -> bytes:
    part = {"dtype": "F32", "shape": [8, 24], "data_offsets": [0, 768], **changes}
    return json.dumps({"W_enc": part}).encode()


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000, b"[]", b'{"W_enc": 3}', make_header(shape=[10**6, 10**6]), make_header(dtype=[]),
        make_header(shape=[-8, -24]), make_header(shape=["8", 24]), make_header(data_offsets=[-768, 0]),
        make_header(data_offsets=[768]), make_header(data_offsets=["0", 768]), make_header(),
    ],
)  # fmt: skip
def test_a_header_that_a_stranger_wrote_is_one_sentence(tmp_path: Path, header: bytes) -> None:
    make_saved(tmp_path, TopK(3))
    (tmp_path / "sae.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(768))
    for sizes in ({}, {"d_in": 10**6, "d_sae": 10**6}):
        change(tmp_path, sizes)
        with pytest.raises(InputError, match=r"does not hold the SAE that sae\.json describes"):
            load_sae(tmp_path)


def test_a_header_longer_than_the_file_takes_no_memory(tmp_path: Path) -> None:
    make_saved(tmp_path, TopK(3))
    (tmp_path / "sae.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    change(tmp_path, {})
    with pytest.raises(InputError, match="its header is of 4,611,686,018,427,387,904 bytes"):
        load_sae(tmp_path)


def test_nothing_is_made_of_the_sizes_that_a_stranger_says(tmp_path: Path) -> None:
    """Thresholds of jumprelu are filled as they are made: 400 MB here."""
    make_saved(tmp_path, TopK(3))
    change(tmp_path, {"kind": "jumprelu", "activation": {"d_sae": 10**8}, "d_sae": 10**8})
    before = read_peak()
    with pytest.raises(InputError, match=r"W_enc is \[8, 24\], expected \[8, 100000000\]"):
        load_sae(tmp_path)
    assert read_peak() - before < 50 * 2**20


def read_peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("tokens", ["all", "sideways", None, []])
def test_files_of_version_1_are_read(tmp_path: Path, tokens: Any) -> None:
    sae = make_saved(tmp_path, TopK(3))
    file = tmp_path / "sae.json"
    info = json.loads(file.read_text())
    origin = info.pop("origin")
    del info["token_norm"]
    old = {
        "format_version": 1,
        "layer": 2,
        "backbone": origin["backbone"],
        "image_px": 96,
        "training": {"tokens": tokens},
    }
    file.write_text(json.dumps(info | old))
    loaded = load_sae(tmp_path)
    assert torch.equal(loaded.W_enc, sae.W_enc)
    known = TokenChoice.all if tokens == "all" else None
    assert loaded.origin == Origin(2, {"name": "tiny"}, 96, known)
