"""Random dictionaries in the formats of other toolkits, of any width, as the stages read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from tests.support.foreign.arrays import Weights, draw_vector, draw_weights

BACKBONE = "scenes_clip"
K = 4
MATRICES = ("W_enc", "b_enc", "W_dec", "b_dec")


def write_patchsae(folder: Path, w: Weights) -> Path:
    """ReLU, all tokens."""
    config = {"model_name": BACKBONE, "block_layer": -2, "module_name": "resid", "class_token": None}
    state = {name: w.tensor(name) for name in MATRICES}
    torch.save({"cfg": config, "state_dict": state}, folder / "sae.pt")
    return folder


def write_saelens(folder: Path, w: Weights) -> Path:
    """Top-k of tokens of one norm."""
    save_file({name: w.tensor(name) for name in MATRICES}, folder / "sae_weights.safetensors")
    d_in, d_sae = w["W_enc"].shape
    config = {"architecture": "topk", "k": K, "d_in": d_in, "d_sae": d_sae, "apply_b_dec_to_input": True}
    config |= {"normalize_activations": "constant_norm_rescale", "rescale_acts_by_decoder_norm": False}
    config |= {"metadata": {"model_name": BACKBONE, "hook_name": "blocks.2.hook_resid_post"}}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def write_prisma(folder: Path, w: Weights) -> Path:
    """Top-k after a layer norm of each token."""
    d_in, d_sae = w["W_enc"].shape
    torch.save({name: w.tensor(name) for name in MATRICES}, folder / "n_images_9.pt")
    config = {"d_in": d_in, "d_sae": d_sae, "activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    config |= {"normalize_activations": "layer_norm", "architecture": "standard", "model_name": BACKBONE}
    config |= {"hook_point_layer": 2, "layer_subtype": "hook_resid_post", "context_size": 145}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_saev(folder: Path, w: Weights) -> Path:
    """Top-k whose code may be negative."""
    d_in, d_sae = w["W_enc"].shape
    activation = {"cls": "TopK", "params": {"key": "top-k", "top_k": K}}
    header = {"schema": 5, "cfg": {"d_model": d_in, "d_sae": d_sae, "activation": activation}}
    with (folder / "sae.pt").open("wb") as file:
        file.write(json.dumps(header).encode() + b"\n")
        state = {name: w.tensor(name) for name in MATRICES}
        torch.save(state | {"b_enc": state["b_enc"] - 3}, file)  # some of the largest are below 0
    return folder


def write_jumprelu(folder: Path, w: Weights) -> Path:
    """dictionary_learning: a threshold of each latent, 0 among them."""
    d_in, d_sae = w["W_enc"].shape
    threshold = draw_vector(3, 0.0, 1.0, d_sae)
    threshold[: d_sae // 4] = 0
    state = {name: w.tensor(name) for name in MATRICES}
    torch.save(state | {"threshold": torch.from_numpy(threshold)}, folder / "ae.pt")
    _write_trainer(folder, "JumpReluAutoEncoder", d_in, d_sae)
    return folder


def write_gated(folder: Path, w: Weights) -> Path:
    """dictionary_learning: a gate and a magnitude."""
    d_in, d_sae = w["W_enc"].shape
    state = {"encoder.weight": w.tensor("W_enc", transpose=True), "decoder.weight": w.tensor("W_dec", transpose=True)}
    state |= {"decoder_bias": w.tensor("b_dec")}
    state |= {
        name: torch.from_numpy(draw_vector(i, -0.5, 0.5, d_sae))
        for i, name in enumerate(("gate_bias", "mag_bias", "r_mag"))
    }
    torch.save(state, folder / "ae.pt")
    _write_trainer(folder, "GatedAutoEncoder", d_in, d_sae)
    return folder


def write_groupmax(folder: Path, w: Weights) -> Path:
    """sparsify: the largest of each run of neighbours."""
    d_in, d_sae = w["W_enc"].shape
    state = {"encoder.weight": w.tensor("W_enc", transpose=True), "encoder.bias": w.tensor("b_enc")}
    save_file(state | {"W_dec": w.tensor("W_dec"), "b_dec": w.tensor("b_dec")}, folder / "sae.safetensors")
    config = {"activation": "groupmax", "num_latents": d_sae, "k": K, "d_in": d_in, "expansion_factor": 1}
    (folder / "cfg.json").write_text(json.dumps(config))
    return folder


def write_attributing_clip(folder: Path, w: Weights) -> Path:
    """Top-k whose decoder gives a direction alone."""
    d_sae = w["W_enc"].shape[1]
    state = {"encoder.0.bias": w.tensor("b_enc"), "encoder.0.weight_v": w.tensor("W_enc", transpose=True)}
    state |= {"encoder.0.weight_g": torch.ones(d_sae, 1), "decoder.weight_g": torch.ones(1, d_sae)}
    state |= {"decoder.weight_v": w.tensor("W_dec", transpose=True)}
    place = folder / f"scenes_clip_x_topk-spatial-{K}-9_layer--2_lr_0.1"
    place.mkdir()
    torch.save({"state_dict": state, "pytorch-lightning_version": "2.5.0", "epoch": 1}, place / "last.ckpt")
    return place


def _write_trainer(folder: Path, name: str, d_in: int, d_sae: int) -> None:
    trainer: dict[str, Any] = {"dict_class": name, "activation_dim": d_in, "dict_size": d_sae, "layer": 2}
    (folder / "config.json").write_text(json.dumps({"trainer": trainer}))


WRITERS: dict[str, Callable[[Path, Weights], Path]] = {
    "patchsae": write_patchsae,
    "saelens": write_saelens,
    "prisma": write_prisma,
    "saev": write_saev,
    "jumprelu": write_jumprelu,
    "gated": write_gated,
    "groupmax": write_groupmax,
    "attributing_clip": write_attributing_clip,
}


def write_dictionary(name: str, folder: Path, d_in: int, d_sae: int) -> Path:
    """Write a random dictionary in one of these formats into a folder of its own, and return what sae.path= takes."""
    place = folder / name
    place.mkdir(parents=True)
    weights = draw_weights(1, d_in=d_in, d_sae=d_sae)
    weights["b_enc"] = (weights["b_enc"] - 0.5).astype(np.float32)
    return WRITERS[name](place, weights)
