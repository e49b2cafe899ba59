"""Tensors of one memory, such as tied weights, are read as those of two: what scales one leaves the other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infoscope.sae.loading import load_sae
from tests.support.foreign.arrays import D_IN, D_SAE, K, draw_tokens, draw_vector, draw_weights
from tests.support.foreign.files import save

W = draw_weights(21, unit_rows=False)
B_ENC, B_DEC = W.tensor("b_enc"), W.tensor("b_dec")
SAELENS = {"d_in": D_IN, "d_sae": D_SAE, "architecture": "topk", "k": K, "rescale_acts_by_decoder_norm": True}
TUNED = {"d_in": D_IN, "d_sae": D_SAE, "finetuning_scaling_factor": True}
POOLED = {"input_dim": D_IN, "hidden_dim": D_SAE, "k": K}
VISAEBENCH = {"architecture": "topk", "k": K, "d_model": D_IN, "dict_size": D_SAE}
State = Callable[[Tensor, Tensor], dict[str, Any]]


def name(E: Tensor, D: Tensor, **more: Any) -> dict[str, Any]:
    return {"W_enc": E, "b_enc": B_ENC, "W_dec": D, "b_dec": B_DEC, **more}


def fuse(E: Tensor, D: Tensor) -> dict[str, Any]:
    encoder = {"encoder.final_block.0.weight": E.T, "encoder.final_block.0.bias": B_ENC}
    return encoder | {"dictionary._weights": D, "dictionary.multiplier": torch.tensor(0.3)}


def relax(E: Tensor, D: Tensor) -> dict[str, Any]:
    more = {"dictionary.Relax": D, "dictionary.W": E.T[:, :5], "dictionary.C": D[:5].clone()}
    return {"encoder.final_block.0.weight": E.T, "encoder.final_block.0.bias": B_ENC, **more}


def weigh(E: Tensor, D: Tensor) -> dict[str, Any]:
    gains = {"encoder.0.weight_g": torch.ones(D_SAE, 1), "decoder.weight_g": torch.full((1, D_SAE), 2.0)}
    return {"encoder.0.weight_v": E.T, "encoder.0.bias": B_ENC, "decoder.weight_v": D.T, **gains}


CASES: dict[str, tuple[State, str, dict[str, Any] | None, dict[str, Any]]] = {
    "patchsae": (lambda E, D: {"cfg": {"block_layer": -2}, "state_dict": name(E, D)}, "", None, {}),
    "saelens": (name, "cfg.json", SAELENS, {}),
    "saelens, finetuned": (
        lambda E, D: name(E, D, finetuning_scaling_factor=torch.from_numpy(draw_vector(3, 0.5, 2))),
        "cfg.json",
        TUNED,
        {},
    ),
    "dictionary_learning": (
        lambda E, D: {"encoder.weight": E.T, "encoder.bias": B_ENC, "decoder.weight": D.T, "bias": B_DEC},
        "config.json",
        {"trainer": {"dict_class": "AutoEncoder"}},
        {},
    ),
    "clip_topk_sae": (lambda E, D: name(E, D, feature_counts=torch.zeros(D_SAE)), "config.json", POOLED, {}),
    "visaebench": (fuse, "config.json", VISAEBENCH, {}),
    "overcomplete": (fuse, "", None, {"k": K}),
    "overcomplete, archetypes": (relax, "", None, {"k": K}),
    "attributing_clip": (weigh, "", None, {"k": K}),
}


@torch.no_grad()
@pytest.mark.parametrize("is_linear", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_tied_weights_are_read_as_two(tmp_path: Path, case: str, is_linear: bool) -> None:
    make, config_name, config, options = CASES[case]
    E = torch.nn.functional.normalize(W.tensor("W_enc"), dim=0) * torch.linspace(0.3, 1.05, D_SAE)
    E = E.T.contiguous().T if is_linear else E.contiguous()
    x, found = torch.from_numpy(draw_tokens()), []
    for i, decoder in enumerate([E.T, E.T.clone()]):
        sae = load_sae(save(tmp_path / f"{i}/sae.pt", make(E, decoder), config, config_name), **options)
        assert sae.origin.source is not None
        assert sae.origin.source.format == case.partition(",")[0]
        found.append((sae.encode(x), sae(x).x_hat))
    for tied, own in zip(*found, strict=True):
        assert float((tied - own).abs().max()) <= 1e-5 * float(own.abs().max())
        assert bool(own.any())
