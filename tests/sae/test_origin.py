"""What an SAE knows of the tokens it was trained on, and that it is not used on others by mistake."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.data.pictures import Pictures
from infoscope.data.reader import iterate_images
from infoscope.predictions.inputs import PredictInputs
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.runtime.errors import InputError
from infoscope.sae.activations import ReLU, TopK
from infoscope.sae.checkpoint import load_sae, save_sae
from infoscope.sae.config import TokenChoice, TopKConfig
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin, check_edits, check_has_maps, check_tokens, choose_layer
from infoscope.sae.passes import measure_one
from infoscope.sae.source import Source
from infoscope.sae.train import train_sae
from infoscope.scope.config import ScopeConfig, StabilityConfig
from infoscope.scope.confounds import measure_confounds
from infoscope.scope.group_activation import measure_outlier_acts
from infoscope.scope.rescoring import ScoredSAE, compute_stability
from infoscope.scope.scoring import score_latents
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.load import load_backbone
from infoscope.vision.planted import PlantedRegisters
from infoscope.vision.tokens.extract import TokenCache, extract_tokens
from tests.support.memory_tokens import MemoryTokens
from tests.support.scope_samples import rank

LAYER = 2  # of the four of scenes_clip


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone()


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    return Pictures(np.random.default_rng(0).integers(0, 256, (6, 104, 104, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def tokens(backbone: Backbone, pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    def read(rows: np.ndarray, n: int) -> Any:
        return iterate_images(pictures, backbone.image_px, n, rows)

    return extract_tokens(backbone, read, len(pictures), LAYER, tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def sae(tokens: TokenCache, tmp_path_factory: pytest.TempPathFactory) -> SparseAutoencoder:
    """Trained in Python, saved and loaded."""
    config = TopKConfig(k=2, expansion_factor=1, n_tokens=256, batch_tokens=128, eval_tokens=100)
    folder = tmp_path_factory.mktemp("sae")
    save_sae(folder, train_sae(tokens, config, 0, folder / "progress")[0])
    return load_sae(folder)


def make_sae(d_in: int, origin: Origin | None = None) -> SparseAutoencoder:
    sae = SparseAutoencoder(d_in, 8, TopK(2))
    sae.origin = origin or Origin()
    return sae


def test_an_sae_knows_its_origin_through_training_and_files(sae: SparseAutoencoder, backbone: Backbone) -> None:
    assert sae.origin == Origin(LAYER, backbone.fingerprint, backbone.image_px, TokenChoice.patch, backbone.site)
    assert choose_layer(sae, backbone) == LAYER


def test_one_layer_has_two_spellings(sae: SparseAutoencoder, backbone: Backbone) -> None:
    for layer in (LAYER, -2, np.int64(LAYER)):
        assert choose_layer(sae, backbone, layer) == LAYER  # pyright: ignore[reportArgumentType]
    assert choose_layer(make_sae(128, Origin(layer=-2)), backbone) == LAYER
    assert choose_layer(make_sae(128, Origin(layer=-2)), backbone, 2) == LAYER


def test_another_layer_is_refused_by_name_unless_one_insists(sae: SparseAutoencoder, backbone: Backbone) -> None:
    for layer in (0, -4):
        with pytest.raises(InputError, match=rf"after block 2, and layer={layer} is block 0 of 4.*check_origin=False"):
            choose_layer(sae, backbone, layer)
        assert choose_layer(sae, backbone, layer, check_origin=False) == 0
    for layer in (4, -5):
        with pytest.raises(InputError, match=r"-4\.\.3"):
            choose_layer(sae, backbone, layer, check_origin=False)
    with pytest.raises(InputError, match=r"layer to be a whole number, got 1\.5"):
        choose_layer(sae, backbone, 1.5)  # pyright: ignore[reportArgumentType]


def test_an_sae_of_unknown_origin_wants_a_layer(backbone: Backbone) -> None:
    with pytest.raises(InputError, match=r"does not know which block it reads.*give layer="):
        choose_layer(make_sae(128), backbone)
    assert choose_layer(make_sae(128), backbone, -1) == 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ModelConfig(pretrained="random", seed=1), r"weights sha256:\w{12}\.\.\., given random:1"),
        (ModelConfig(image_px=128), "images of 96 px, given 128 px"),
        (
            ModelConfig(mean=[0.4, 0.4, 0.4], std=[0.3, 0.3, 0.3]),
            r"mean \[0\.5, 0\.5, 0\.5\], given \[0\.4, 0\.4, 0\.4\]",
        ),
        (ModelConfig(mean=[0.5, 0.5, 0.5], std=[0.3, 0.3, 0.3]), r"std \[.*\], given \[0\.3, 0\.3, 0\.3\]"),
        (ModelConfig(quick_gelu=True), "other settings of the architecture such as quick_gelu"),
    ],
    ids=["weights", "image size", "mean", "std", "quick_gelu"],
)
def test_another_backbone_of_equal_width_is_refused_by_name(
    sae: SparseAutoencoder, config: ModelConfig, words: str
) -> None:
    other = load_backbone(config)
    with pytest.raises(InputError, match=f"another backbone than the one given: .*{words}.*check_origin=False") as told:
        choose_layer(sae, other)
    assert "\n" not in str(told.value)
    assert choose_layer(sae, other, check_origin=False) == LAYER


def test_another_family_is_refused_by_name() -> None:
    planted = load_backbone(ModelConfig(kind=ModelKind.planted_registers))
    trained = Origin(0, {"kind": "timm", "arch": "vit_tiny", "weights": "random:0"}, planted.image_px)
    with pytest.raises(InputError, match="family timm, given planted_registers"):
        choose_layer(make_sae(planted.d_in, trained), planted)
    own = PlantedRegisters(12, 8, 32)  # a backbone of one's own: whatever it calls itself
    with pytest.raises(InputError, match="family timm, given none"):
        choose_layer(make_sae(own.d_in, trained), own)
    assert choose_layer(make_sae(own.d_in, Origin.of(own, -1)), own) == 1


def test_rounding_is_no_mismatch(sae: SparseAutoencoder) -> None:
    assert choose_layer(sae, load_backbone(ModelConfig(precision="bfloat16"))) == LAYER


def test_another_width_is_one_sentence_everywhere(backbone: Backbone) -> None:
    narrow, x = make_sae(16), torch.zeros(2, 9, 32)
    for check_origin in (True, False):
        with pytest.raises(InputError, match="tokens of width 16, and this backbone gives tokens of width 128"):
            choose_layer(narrow, backbone, 2, check_origin)
    calls = [
        lambda: narrow(x),
        lambda: narrow.encode(x),
        lambda: narrow.encode_sparse(x[0]),
        lambda: narrow.normalise(x),
    ]
    calls += [lambda: rank(narrow, MemoryTokens(x), 2), lambda: make_sae(1).normalise(x)]
    for call in calls:
        with pytest.raises(InputError, match="width"):
            call()


def test_every_door_refuses_another_layer(
    sae: SparseAutoencoder, backbone: Backbone, pictures: Pictures, tokens: TokenCache
) -> None:
    config = ScopeConfig(k_cds=2, k_max=2, n_workers=1)
    ranking = rank(sae, tokens, 2)
    scores = score_latents(backbone, sae, pictures, ranking, config)
    scored = [ScoredSAE(0, sae, ranking, scores, None)]
    data: Any = ProbeData(tokens, pictures)  # pyright: ignore[reportArgumentType]
    backbone.n_images_encoded = 0
    doors = [
        lambda: score_latents(backbone, sae, pictures, ranking, config, layer=1),
        lambda: compute_stability(backbone, scored, pictures, None, config, StabilityConfig(), layer=1),
        lambda: ProbeInputs(sae, data, data, backbone, layer=1),
        lambda: PredictInputs(sae, tokens, backbone, layer=1),
    ]
    for door in doors:
        with pytest.raises(InputError, match="trained on the tokens after block 2, and layer=1 is block 1"):
            door()
    assert backbone.n_images_encoded == 0
    insisted = score_latents(backbone, sae, pictures, ranking, config, layer=1, check_origin=False)
    assert not np.array_equal(insisted.emd, scores.emd, equal_nan=True)
    assert PredictInputs(sae, tokens, backbone, layer=1, check_origin=False).layer == 1
    with pytest.raises(InputError, match="ranking of this SAE's 8 latents, got one of 128"):
        score_latents(backbone, make_sae(128), pictures, ranking, config, layer=2)


def test_tokens_of_another_layer_or_backbone_are_refused(
    sae: SparseAutoencoder, backbone: Backbone, pictures: Pictures, tokens: TokenCache, tmp_path: Path
) -> None:
    def read(rows: np.ndarray, n: int) -> Any:
        return iterate_images(pictures, backbone.image_px, n, rows)

    earlier = extract_tokens(backbone, read, len(pictures), 1, tmp_path)
    foreign = SimpleNamespace(meta={**tokens.meta, "backbone": {**backbone.fingerprint, "weights": "random:1"}})
    check_tokens(sae, tokens, object(), SimpleNamespace(meta={"layer": LAYER}))
    check_tokens(make_sae(128), earlier)
    with pytest.raises(InputError, match=r"given: weights sha256:\w{12}\.\.\., given random:1"):
        check_tokens(sae, foreign)
    check_tokens(sae, foreign, other_weights=True)  # said, and of nothing else
    with pytest.raises(InputError, match="block 2, given block 1"):
        check_tokens(sae, earlier, other_weights=True)
    larger = SimpleNamespace(meta={**tokens.meta, "grid": 14, "backbone": {"weights": "random:1"}})
    with pytest.raises(InputError, match="images of 96 px, given 112 px"):
        check_tokens(sae, larger, other_weights=True)
    data: Any = ProbeData(earlier, pictures)  # pyright: ignore[reportArgumentType]
    doors = [
        lambda: measure_one(earlier, measure_confounds(sae, pictures, 16)),
        lambda: measure_one(earlier, measure_outlier_acts(sae, earlier, 1.0)),
        lambda: ProbeInputs(sae, data, data),
        lambda: PredictInputs(sae, earlier, backbone),
    ]
    for door in doors:
        with pytest.raises(InputError, match="other tokens than those given: block 2, given block 1"):
            door()
    ProbeInputs(sae, data, data, check_origin=False)


def test_tokens_that_were_not_trained_on_are_not_read() -> None:
    cls, patch, every = (
        make_sae(4, Origin(tokens=choice)) for choice in (TokenChoice.cls, TokenChoice.patch, TokenChoice.all)
    )
    with pytest.raises(InputError, match="SAE of CLS tokens has no activation maps"):
        check_has_maps(cls.origin)
    with pytest.raises(InputError, match="SAE of CLS tokens has no activation maps"):
        rank(cls, MemoryTokens(torch.zeros(2, 9, 4)), 2)
    for sae, edits in ((cls, (False, True)), (patch, (True, False)), (every, (True, True))):
        check_has_maps(sae.origin) if sae is not cls else None
        check_edits(sae, *edits)
        check_edits(make_sae(4), *edits)
        with pytest.raises(InputError, match=f"sae.tokens={sae.origin.tokens.name}"):  # pyright: ignore
            check_edits(sae, not edits[0], True)


def test_files_of_an_earlier_infoscope_know_what_they_held(tmp_path: Path) -> None:
    save_sae(tmp_path, make_sae(4), layer=3, backbone={"kind": "open_clip"}, training={"tokens": "cls"})
    file = tmp_path / "sae.json"
    info = json.loads(file.read_text())
    origin = info.pop("origin")
    del info["token_norm"]
    info |= {"format_version": 1, "layer": origin["layer"], "backbone": origin["backbone"]}
    file.write_text(json.dumps(info))
    assert load_sae(tmp_path).origin == Origin(3, {"kind": "open_clip"}, None, TokenChoice.cls)
    for wrong in ({"layer": "2"}, {"tokens": "half"}, {"image_px": 9.5}):
        file.write_text(json.dumps(info | wrong))
        with pytest.raises(InputError, match=f"{next(iter(wrong))} missing or of the wrong type"):
            load_sae(tmp_path)


def test_the_whole_origin_is_kept(tmp_path: Path) -> None:
    source = Source("saelens", "topk", "w.safetensors", "ab", "clip_b16", "hf:a/b", "c0ffee", {"k": 3}, ("Beware.",))
    sae = make_sae(4, Origin(-2, {"kind": "open_clip"}, 224, TokenChoice.all, "resid_post", source))
    save_sae(tmp_path, sae)
    assert load_sae(tmp_path).origin == sae.origin
    file = tmp_path / "sae.json"
    info = json.loads(file.read_text())
    for wrong in ({"layer": "2"}, {"tokens": "half"}, {"image_px": 9.5}, {"source": {"q": 1}}, {"source": 3}, {"q": 1}):
        file.write_text(json.dumps(info | {"origin": {**info["origin"], **wrong}}))
        with pytest.raises(InputError, match="is damaged"):
            load_sae(tmp_path)
    for wrong in (None, [], "here"):
        file.write_text(json.dumps(info | {"origin": wrong}))
        with pytest.raises(InputError, match="origin missing or of the wrong type"):
            load_sae(tmp_path)


def test_what_one_says_of_an_own_sae_is_saved_with_it(tmp_path: Path, backbone: Backbone) -> None:
    sae = SparseAutoencoder(128, 8, ReLU())
    sae.origin = Origin.of(backbone, -2, TokenChoice.all)
    save_sae(tmp_path, sae)
    assert load_sae(tmp_path).origin == sae.origin
