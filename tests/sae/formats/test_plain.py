"""Any matrices, by the names that one gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenNorm
from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import (
    D_IN,
    D_SAE,
    K,
    Reference,
    compute,
    constant_norm,
    draw_tokens,
    draw_vector,
    draw_weights,
    layer_norm,
    measure_deviation,
    relu,
    topk,
)

W = draw_weights(9, unit_rows=False)
LIMITS = draw_vector(9, -0.2, 0.8)
MEAN = draw_vector(10, n=D_IN)
KEYS = {"W_enc": "enc.T", "W_dec": "dec.T", "b_enc": "b1", "b_dec": "b2"}


def write(folder, suffix=".safetensors", **more):
    state = {
        "enc": W.tensor("W_enc", transpose=True),
        "dec": W.tensor("W_dec", transpose=True),
        "b1": W.tensor("b_enc"),
        "b2": W.tensor("b_dec")[None],
        "t": torch.from_numpy(LIMITS),
        "m": torch.from_numpy(MEAN),
        **more,
    }
    path = folder / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(path, **{name: tensor.numpy() for name, tensor in state.items()})
    else:
        (save_file if suffix == ".safetensors" else torch.save)(state, path)
    return path


def load(path, keys=(), **options):
    return load_sae(path, format="plain", **{"keys": {**KEYS, **dict(keys)}, "kind": "relu", **options})


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_matrices_are_read_by_name(tmp_path, suffix):
    sae = load(write(tmp_path, suffix))
    assert measure_deviation(sae, compute(W)) < 1e-5
    assert sae.origin.source is not None
    assert sae.origin.source.facts == {"dtype": "float32"}


def group_max(a):
    grouped = relu(a).reshape(len(a), K, -1)
    return (grouped * (np.arange(grouped.shape[2]) == grouped.argmax(2)[:, :, None])).reshape(a.shape)


@pytest.mark.parametrize(
    ("options", "act"),
    [
        ({"kind": "topk", "k": K}, lambda a: topk(relu(a))),
        ({"kind": "matryoshka_k", "k": K}, lambda a: topk(relu(a))),
        ({"kind": "signed_topk", "k": D_SAE - 2}, lambda a: topk(a, D_SAE - 2)),
        ({"kind": "groupmax", "k": K}, group_max),
        ({"kind": "tanh_relu"}, lambda a: np.tanh(relu(a))),
        ({"kind": "batchtopk", "threshold": 0.4}, lambda a: a * (a > 0.4)),
        ({"kind": "jumprelu", "keys": {"threshold": "t"}}, lambda a: relu(a) * (a > LIMITS)),
        ({"kind": "matryoshka_prefix", "threshold": -1.0}, relu),
        ({"soft_cap": 2.0}, lambda a: 2 * np.tanh(relu(a) / 2)),
    ],
)
def test_the_kind_is_given(tmp_path, options, act):
    keys = options.pop("keys", {})
    sae = load(write(tmp_path), keys, **options)
    assert measure_deviation(sae, compute(W, act)) < 1e-5
    assert sae.origin.source is not None
    assert sae.origin.source.kind == options.get("kind", "relu").removeprefix("signed_")
    assert sae.origin.source.facts.get("k") == options.get("k")


@pytest.mark.parametrize(("norm", "reference"), [("layer_norm", layer_norm), ("constant_norm", constant_norm)])
@pytest.mark.parametrize("subtract", [True, False])
def test_a_norm_per_token_and_what_is_subtracted(tmp_path, norm, reference, subtract):
    sae = load(write(tmp_path), token_norm=TokenNorm[norm], subtract_b_dec=subtract)
    assert measure_deviation(sae, compute(W, relu, subtract, reference)) < 1e-5


@pytest.mark.parametrize("is_file", [True, False])
def test_mean_and_scale(tmp_path, is_file):
    np.save(tmp_path / "mean.npy", MEAN)
    given = {"mean_file": tmp_path / "mean.npy"} if is_file else {"keys": {"mean": "m"}}
    sae = load(write(tmp_path), given.pop("keys", {}), scale=0.5, **given)
    x_n = 0.5 * (draw_tokens().astype(np.float64) - MEAN)
    z = relu((x_n - W.double("b_dec")) @ W.double("W_enc") + W.double("b_enc"))
    assert measure_deviation(sae, Reference(z, (z @ W.double("W_dec") + W.double("b_dec")) / 0.5 + MEAN)) < 1e-5


def test_matrices_may_lie_deep(tmp_path):
    torch.save(
        {"run": {"sae": [1, {"a": 3}], "W": {"enc": W.tensor("W_enc")}}, "dec": W.tensor("W_dec")}, tmp_path / "x.pt"
    )
    sae = load_sae(tmp_path, format="plain", keys={"W_enc": "run.W.enc", "W_dec": "dec"}, kind="topk", k=K)
    z = topk(relu(draw_tokens().astype(np.float64) @ W.double("W_enc")))
    assert measure_deviation(sae, Reference(z, z @ W.double("W_dec"))) < 1e-5


def test_one_matrix_may_be_both(tmp_path):
    sae = load_sae(write(tmp_path), format="plain", keys={"W_enc": "enc.T", "W_dec": "enc"}, kind="relu")
    z = relu(draw_tokens().astype(np.float64) @ W.double("W_enc"))
    assert measure_deviation(sae, Reference(z, z @ W.double("W_enc").T)) < 1e-5


@pytest.mark.parametrize(
    ("keys", "say"),
    [
        ({"W_enc": "enc"}, r"for W_enc give enc\.T"),
        ({"W_dec": "dec"}, r"for W_dec give dec\.T"),
        ({"W_enc": "enc", "W_dec": "dec"}, r"for W_enc give enc\.T and for W_dec give dec\.T"),
        ({"W_enc": "encoder.T"}, "there is no tensor encoder in it"),
        ({"W_encoder": "enc.T"}, "did you mean W_enc"),
        ({"threshold": "t"}, "kind=relu has none"),
        ({"b_enc": "b2"}, "W_enc"),
    ],
)
def test_wrong_keys_say_what_came_and_what_to_do(tmp_path, keys, say):
    with pytest.raises(InputError, match=say.replace("kind=relu", 'kind="?relu"?')):
        load(write(tmp_path), keys)


def test_without_biases_one_of_both_is_transposed(tmp_path):
    with pytest.raises(InputError, match=r"append \.T to enc or to dec\.T"):
        load_sae(write(tmp_path), format="plain", keys={"W_enc": "enc", "W_dec": "dec.T"}, kind="relu")


@pytest.mark.parametrize(
    ("options", "say"),
    [
        ({"kind": "gated"}, "kind"),
        ({"kind": "topk"}, "k="),
        ({"kind": "jumprelu"}, "threshold"),
        ({"k": 3}, "k=3"),
        ({"threshold": 0.1}, "threshold"),
        ({"kind": "topk", "k": D_SAE + 1}, "number of latents"),
    ],
)
def test_what_a_kind_needs_or_does_not_read(tmp_path, options, say):
    with pytest.raises(InputError, match=say):
        load(write(tmp_path), **options)


def test_kind_and_keys_are_asked_for(tmp_path):
    path = write(tmp_path)
    with pytest.raises(InputError, match="kind="):
        load_sae(path, format="plain", keys=KEYS)
    with pytest.raises(InputError, match=r"W_enc and W_dec in .*enc \[24, 8\]"):
        load_sae(path, format="plain", kind="relu")
    with pytest.raises(InputError, match="no known format"):
        load_sae(path)


def test_nan_is_refused(tmp_path):
    with pytest.raises(InputError, match="NaN"):
        load(write(tmp_path, b1=torch.full((D_SAE,), torch.nan)))


def test_a_square_matrix_may_have_come_transposed(tmp_path):
    state = {"a": torch.eye(D_IN) * 2, "b": torch.eye(D_IN)}
    save_file(state, tmp_path / "w.safetensors")
    sae = load_sae(tmp_path, format="plain", keys={"W_enc": "a", "W_dec": "b"}, kind="relu")
    assert sae.origin.source is not None
    assert "square" in sae.origin.source.warnings[0]


def test_matrices_may_lie_in_lists(tmp_path):
    w = draw_weights(1)
    content = {"layers": [{"E": w.tensor("W_enc")}, [w.tensor("W_dec")]], "sizes": [1, 2]}
    keys = {"W_enc": "layers.0.E", "W_dec": "layers.1.0"}
    torch.save(content, tmp_path / "a.pt")
    sae = load_sae(tmp_path, format="plain", kind="relu", keys=keys)
    assert sae.W_enc.equal(w.tensor("W_enc"))
    assert sae.W_dec.equal(w.tensor("W_dec"))


@pytest.mark.parametrize(
    "name",
    [
        "activation.log_threshold",
        "log_jumprelu_threshold",
        "threshold_log",
        "logthr",
        "log_thr",
        "a.log",
        "thresholdLog",
    ],
)
def test_logarithms_of_thresholds_are_not_taken_for_thresholds(tmp_path, name):
    path = write(tmp_path, **{name: torch.from_numpy(LIMITS).clone()})
    with pytest.raises(InputError, match=f"{name} by its name holds logarithms"):
        load(path, {"threshold": name}, kind="jumprelu")


@pytest.mark.parametrize("name", ["threshold", "logit_threshold", "prologue.threshold", "catalog_threshold"])
def test_other_names_of_thresholds_are_taken(tmp_path, name):
    path = write(tmp_path, **{name: torch.from_numpy(LIMITS).clone()})
    assert load(path, {"threshold": name}, kind="jumprelu").d_sae == len(LIMITS)
