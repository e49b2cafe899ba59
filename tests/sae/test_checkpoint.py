"""Saved SAEs: same outputs after loading, one sentence for every bad file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from infoscope.runtime.errors import InputError
from infoscope.sae.activations import Activation, ReLU, TopK
from infoscope.sae.checkpoint import load_sae, load_sae_info, save_sae
from infoscope.sae.config import TokenNorm
from infoscope.sae.model import SparseAutoencoder
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
