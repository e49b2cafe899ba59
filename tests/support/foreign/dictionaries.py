"""Random dictionaries in the formats of other toolkits, of any width, as the stages read them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from infoscope.sae.activations import TopK
from infoscope.sae.export import export_sae
from infoscope.sae.model import SparseAutoencoder
from tests.support.foreign.arrays import Weights, draw_vector, draw_weights
from tests.support.foreign.pickled import package

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


def write_msae(folder: Path, w: Weights) -> Path:
    """Matryoshka over k, of pooled embeddings: its inference is ReLU of everything."""
    d_in, d_sae = w["W_enc"].shape
    names = {"encoder": "W_enc", "decoder": "W_dec", "pre_bias": "b_dec", "latent_bias": "b_enc"}
    content = {"model": {name: w.tensor(of) for name, of in names.items()}, "mean_center": torch.zeros(d_in)}
    name = f"{d_sae}_{d_in}_TopKReLU_64_RW_False_False_0.0_cc3m_ViT-B~16_train_image_9_{d_in}.pth"
    torch.save(content | {"scaling_factor": 0.25, "target_norm": np.sqrt(d_in)}, folder / name)
    return folder


def write_sae_for_vlm(folder: Path, w: Weights) -> Path:
    """Matryoshka over prefixes, of pooled embeddings."""
    place = (
        folder / "imagenet_train_activations_clip-vit-large-patch14-336_-1_post_projection_matroyshka_batch_top_k_20_x4"
    )
    place.mkdir()
    d_sae = w["W_enc"].shape[1]
    state = {name: w.tensor(name) for name in MATRICES}
    sizes = torch.tensor([d_sae // 4, d_sae - d_sae // 4])
    torch.save(state | {"k": torch.tensor(K), "threshold": torch.tensor(0.5), "group_sizes": sizes}, place / "ae.pt")
    return place


def write_overcomplete(folder: Path, w: Weights) -> Path:
    """A whole module, pickled."""
    d_in, d_sae = w["W_enc"].shape
    with package() as made:
        encoder, linear = made.make_class("overcomplete.sae.modules.MLPEncoder")(), nn.Linear(d_in, d_sae)
        linear.weight.data, linear.bias.data = w.tensor("W_enc", transpose=True), w.tensor("b_enc")
        encoder.mlp_blocks, encoder.final_block = nn.ModuleList(), nn.Sequential(linear, nn.Identity())
        encoder.final_activation = nn.ReLU()
        layer = made.make_class("overcomplete.sae.dictionary.DictionaryLayer")()
        layer._weights = nn.Parameter(w.tensor("W_dec"))
        layer.register_buffer("multiplier", torch.tensor(0.0))
        layer.normalization = made.make_function("overcomplete.sae.dictionary.normalize_l2")
        model = made.make_class("overcomplete.sae.topk_sae.TopKSAE")()
        model.encoder, model.dictionary, model.top_k = encoder, layer, K
        torch.save(model, folder / "sae.pth")
    return folder


def write_visaebench(folder: Path, w: Weights) -> Path:
    """Batch top-k on the last block's tokens."""
    d_in, d_sae = w["W_enc"].shape
    state = {
        "encoder.final_block.0.weight": w.tensor("W_enc", transpose=True),
        "dictionary._weights": w.tensor("W_dec"),
    }
    state |= {"encoder.final_block.0.bias": w.tensor("b_enc"), "dictionary.multiplier": torch.tensor(0.0)}
    torch.save(state, folder / "sae.pt")
    config = {"architecture": "batchtopk", "backbone": "clip_vitb16", "d_model": d_in, "dict_size": d_sae, "k": K}
    config |= {"threshold": 0.5, "activation_dir": "/scratch/clip_vitb16/layer_11", "expansion_factor": 1}
    (folder / "config.yaml").write_text("".join(f"{key}: {value}\n" for key, value in config.items()))
    return folder


def write_clipscope(folder: Path, w: Weights) -> Path:
    """Top-k whose code may be negative, of all tokens."""
    d_in, d_sae = w["W_enc"].shape
    place = folder / "22_resid"
    place.mkdir()
    state = {"pre_b": w.tensor("b_dec"), "enc": w.tensor("W_enc"), "dec": w.tensor("W_dec")}
    torch.save({"n_features": d_sae, "d_in": d_in, "k": K, "model_state_dict": state}, place / "1200013184.pt")
    return place


def write_dncbm(folder: Path, w: Weights) -> Path:
    """One bias for both ends, of pooled embeddings."""
    state = {"tied_bias": w.tensor("b_dec"), "encoder._weight": w.tensor("W_enc", transpose=True)}
    state |= {"encoder._bias": w.tensor("b_enc"), "decoder._weight": w.tensor("W_dec", transpose=True)}
    torch.save(state, folder / "sparse_autoencoder_final.pt")
    return folder


def write_clip_topk_sae(folder: Path, w: Weights) -> Path:
    """Top-k of pooled embeddings, with a count per feature."""
    d_in, d_sae = w["W_enc"].shape
    state = {name: w.tensor(name) for name in MATRICES}
    save_file(state | {"feature_counts": torch.zeros(d_sae)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"d_model": d_in, "n_features": d_sae, "k": K}))
    return folder


def write_exported(folder: Path, w: Weights) -> Path:
    """What infoscope exports as plain matrices."""
    sae = SparseAutoencoder.of(*(w.tensor(name) for name in MATRICES), TopK(K))
    export_sae(sae.requires_grad_(False), folder, "plain")
    return folder


def write_plain(folder: Path, w: Weights) -> Path:
    """Matrices of no toolkit's."""
    save_file(
        {"dictionary": w.tensor("W_dec"), "reader": w.tensor("W_dec", transpose=True)}, folder / "mine.safetensors"
    )
    return folder / "mine.safetensors"


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
"""What the stages are tried with: activations and norms of all kinds."""
OTHERS: dict[str, Callable[[Path, Weights], Path]] = {
    "msae": write_msae,
    "sae_for_vlm": write_sae_for_vlm,
    "overcomplete": write_overcomplete,
    "visaebench": write_visaebench,
    "clipscope": write_clipscope,
    "dncbm": write_dncbm,
    "clip_topk_sae": write_clip_topk_sae,
    "exported": write_exported,
    "plain": write_plain,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"format": "plain", "kind": "relu", "keys": {"W_enc": "reader", "W_dec": "dictionary"}}
}
"""What must be said of an SAE, where its files do not say it."""


def write_dictionary(name: str, folder: Path, d_in: int, d_sae: int) -> Path:
    """Write a random dictionary in one of these formats into a folder of its own, and return what sae.path= takes."""
    place = folder / name
    place.mkdir(parents=True)
    weights = draw_weights(1, d_in=d_in, d_sae=d_sae)
    weights["b_enc"] = (weights["b_enc"] - 0.5).astype(np.float32)
    return (WRITERS | OTHERS)[name](place, weights)
