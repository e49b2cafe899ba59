"""SAEs of DN-CBM: one bias for both ends, and a dimension of components."""

from __future__ import annotations

import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.loading import load_sae
from infoscope.vision.hooks import POOLED
from tests.support.foreign.arrays import D_IN, D_SAE, compute, draw_weights, measure_deviation

W = draw_weights(8)


def write(folder, components=1, older=True, repeated=True, **more):
    folder.mkdir(parents=True, exist_ok=True)
    under = "_" if older else ""
    state = {
        "tied_bias": W.tensor("b_dec"),
        f"encoder.{under}weight": W.tensor("W_enc", transpose=True),
        f"encoder.{under}bias": W.tensor("b_enc"),
        f"decoder.{under}weight": W.tensor("W_dec", transpose=True),
    }
    if repeated:
        state |= {f"{end}_bias._bias_reference": W.tensor("b_dec") for end in ("pre_encoder", "post_decoder")}
    if components:
        state = {name: torch.stack([tensor] * components) for name, tensor in state.items()}
    torch.save(state | more, folder / "sparse_autoencoder_final.pt")
    return folder


@pytest.mark.parametrize("components", [0, 1])
@pytest.mark.parametrize("older", [True, False])
@pytest.mark.parametrize("repeated", [True, False])
def test_a_tied_bias_is_subtracted_and_added(tmp_path, components, older, repeated):
    sae = load_sae(write(tmp_path, components, older, repeated))
    assert measure_deviation(sae, compute(W)) < 1e-5
    assert sae.origin.source is not None
    assert (sae.origin.site, sae.origin.source.format, sae.origin.source.kind) == (POOLED, "dncbm", "relu")


@pytest.mark.parametrize(
    ("place", "backbone", "site"),
    [
        ("clip_ViT-B16/out/lr0.0005_l1coeff3e-05_ef8_rf10_hookout_bs4096_epo200", "clip_ViT-B16", POOLED),
        ("clip_RN50/out/lr0.0005_l1coeff3e-05_ef8_rf10_hookout_bs4096_epo200", "clip_RN50", POOLED),
        ("clip_RN50/layer4/lr0.0005_l1coeff3e-05_ef8_rf10_hooklayer4_bs4096_epo200", "clip_RN50", "layer4"),
        ("mine", None, POOLED),
    ],
)
def test_its_folders_say_the_backbone(tmp_path, place, backbone, site):
    origin = load_sae(write(tmp_path / "cc3m" / place / "sae_checkpoints")).origin
    assert origin.source is not None
    assert (origin.source.backbone, origin.site) == (backbone, site)
    assert origin.source.facts.get("dataset") == (backbone and "cc3m")


@pytest.mark.parametrize(
    ("options", "say"),
    [
        ({"components": 2}, "several places"),
        ({"post_decoder_bias._bias_reference": torch.zeros(1, D_IN)}, "tied_bias"),
        ({"encoder.threshold": torch.zeros(1, D_SAE)}, "threshold"),
    ],
)
def test_other_models_are_refused(tmp_path, options, say):
    with pytest.raises(InputError, match=say):
        load_sae(write(tmp_path, **options))
