"""The whole chain on a backbone whose global and local features are known: it must give the paper's signs.

Planted registers carry the scene's light on one leaping patch, and every other patch tells only about itself. So the
latents of registers must score high and the others low; without the high group the light is gone and the map of the
scene stays; without the low group it is the other way round. A backbone of random weights must show no such thing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from infoscope.data.reader import iterate_images
from infoscope.data.scenes.scene_set import SceneSet, save_scenes
from infoscope.probes.config import ProbeConfig
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.probes.results import AblationResult
from infoscope.probes.run import run_probes
from infoscope.sae.activations import ReLU
from infoscope.sae.config import TopKConfig
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.train import train_sae
from infoscope.scope.ablations import make_ablations
from infoscope.scope.cds import uniform_chance_score
from infoscope.scope.config import PartitionConfig, Rule, ScopeConfig
from infoscope.scope.partition import Partition, make_partition
from infoscope.scope.ranking import Ranking
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import score_latents
from infoscope.stages.contextual_dependency.measure import contextual_dependency
from infoscope.vision.backbone import Backbone
from infoscope.vision.config import ContrastiveConfig
from infoscope.vision.open_clip.backbone import OpenClipBackbone
from infoscope.vision.open_clip.contrastive import make_clip_config
from infoscope.vision.planted import PlantedRegisters
from infoscope.vision.tokens.extract import TokenCache, extract_tokens
from tests.support.scope_samples import rank

LAYER = -2
K_CDS = 8
CHANCE = 1 / 4
"""Top-1 of guessing the light."""
SAE_CONFIG = TopKConfig(
    k=5,  # as many as a patch has local codes
    expansion_factor=2,
    n_tokens=600 * 1024,
    batch_tokens=1024,
    lr=3e-3,
    dead_after_tokens=30_000,
    eval_tokens=4096,
)
PROBE_CONFIG = ProbeConfig(
    target="light",
    seed=0,
    held_out_share=0.2,
    classification_lrs=[0.01, 0.03, 0.1],
    classification_batch_images=64,
    n_dense_train_images=120,
    n_dense_test_images=40,
    segmentation_lrs=[3e-3],
    depth_lrs=[3e-2],
    dense_steps=100,
    n_held_out_pixels_per_image=64,
)


@dataclass
class Split:
    """One split of the scenes and its tokens."""

    scenes: SceneSet
    cache: TokenCache


@dataclass
class Chain:
    """What each step of the chain left."""

    backbone: Backbone
    train: Split
    test: Split
    sae: SparseAutoencoder
    sae_figures: dict[str, float]
    ranking: Ranking
    scores: Scores
    partition: Partition
    results: dict[str, AblationResult]
    """By name of the variant."""

    @property
    def cds(self) -> np.ndarray:
        return self.scores.cds(K_CDS).values

    def metric(self, variant: str, task: str, name: str) -> float:
        value = self.results[variant].metrics[task][name]
        assert value is not None
        return value

    def top1(self, variant: str) -> float:
        """Accuracy of the light read from the mean patch."""
        return self.metric(variant, "classification/patch_mean", "top1")

    def pixel_accuracy(self, variant: str) -> float:
        return self.metric(variant, "segmentation", "pixel_accuracy")

    def rmse_m(self, variant: str) -> float:
        return self.metric(variant, "depth", "rmse_m")


def make_chain(
    backbone: Backbone, scenes: dict[str, SceneSet], partition: PartitionConfig, folder: Path, seed: int = 0
) -> Chain:
    """Run every step of the chain with library functions alone."""
    splits = {}
    for name, images in scenes.items():
        (folder / name).mkdir()
        cache = extract_tokens(
            backbone,
            lambda rows, n, of=images: iterate_images(of, backbone.image_px, n, rows),
            len(images),
            LAYER,
            folder / name,
            batch_images=50,
        )
        splits[name] = Split(images, cache)
    train, test = splits["train"], splits["test"]
    sae, figures = train_sae(train.cache, SAE_CONFIG, seed, folder / "progress")
    ranking = rank(sae, train.cache, K_CDS)
    config = ScopeConfig(k_cds=K_CDS, k_max=K_CDS, n_workers=1)
    scores = score_latents(backbone, sae, train.scenes, ranking, config, layer=LAYER)
    mass = ranking.mean_act * sae.W_dec.detach().norm(dim=1).numpy()
    groups = make_partition(scores.cds(K_CDS).values, mass, partition)
    drawable = ~groups.unscored & (ranking.firing_rate > 0)
    variants = make_ablations(groups.groups, drawable, mass, n_draws=2, seed=seed)
    wanted = [v for v in variants if v.role.name != "control" or (v.group == "high" and v.control.name == "size")]
    inputs = ProbeInputs(
        sae, ProbeData(train.cache, train.scenes), ProbeData(test.cache, test.scenes), backbone, layer=LAYER
    )
    results = run_probes(wanted, inputs, PROBE_CONFIG)
    named = {result.variant["name"]: result for result in results.values()}
    return Chain(backbone, train, test, sae, figures, ranking, scores, groups, named)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SceneSet]:
    """Three hundred training and two hundred test scenes, one patch larger than what the backbones see."""
    sets = {}
    for split, n_images in (("train", 300), ("test", 200)):
        folder = tmp_path_factory.mktemp(split)
        save_scenes(folder, seed=0, split=split, n_images=n_images, size_px=104)
        sets[split] = SceneSet(folder)
    return sets


def make_random_clip(seed: int) -> OpenClipBackbone:
    config = ContrastiveConfig(width=32, layers=3, text_layers=1, embed_dim=32, patch_px=8, grid=12)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        clip = open_clip.CLIP(**make_clip_config(config, vocab_size=50))
    fingerprint = {"architecture": "tiny clip", "weights": f"random, seed {seed}"}
    options = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "fingerprint": fingerprint}
    return OpenClipBackbone(clip.eval().requires_grad_(False), **options)


def compute_register_share(chain: Chain) -> np.ndarray:
    """Return the share of each latent's activation mass that lies on the planted register tokens; NaN if it is dead."""
    backbone = chain.backbone
    assert isinstance(backbone, PlantedRegisters)
    tokens = chain.train.cache.tokens(slice(None)).patches
    on_register = (tokens @ backbone.directions[backbone.n_local :].T).amax(-1) > backbone.register_norm / 2
    assert (on_register.sum(1) == 1).all()
    with torch.no_grad():
        acts = chain.sae.encode(tokens).double()
    return (acts[on_register].sum(0) / acts.sum((0, 1))).numpy()


def compute_auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the chance that a positive scores higher than a negative."""
    above = scores[positive][:, None] - scores[~positive][None, :]
    return float((above > 0).mean() + (above == 0).mean() / 2)


@pytest.fixture(scope="module")
def planted(scenes: dict[str, SceneSet], tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("planted")
    return make_chain(PlantedRegisters(), scenes, PartitionConfig(gamma=0.25), folder)


@pytest.fixture(scope="module")
def random_weights(scenes: dict[str, SceneSet], tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """The same chain on a tiny CLIP of random weights; the high group is about as large as the planted one."""
    partition = PartitionConfig(rule=Rule.quantile, quantile=0.7)
    return make_chain(make_random_clip(seed=0), scenes, partition, tmp_path_factory.mktemp("random"))


def test_known_directions_score_low_for_local_codes_and_chance_for_registers(scenes: dict[str, SceneSet]) -> None:
    backbone = PlantedRegisters()
    sae = SparseAutoencoder(backbone.d_in, backbone.n_codes, ReLU())
    with torch.no_grad():
        sae.W_enc.copy_(backbone.directions.T)
        sae.W_dec.copy_(backbone.directions)
        sae.b_enc.fill_(-0.7)  # a local code is 1, less or more grain
        sae.b_enc[backbone.n_local :] = -backbone.register_norm / 2
    found = contextual_dependency(
        backbone, sae.requires_grad_(False), scenes["train"], layer=LAYER, k_cds=60, n_workers=1
    )
    registers, local = found.cds[backbone.n_local :], found.cds[: backbone.n_local]
    assert np.isfinite(found.cds).all()
    assert local.max() < 0.15 < 0.3 < registers.min()
    # two places drawn evenly and independently: what a hash of the crop comes to
    assert registers.mean() == pytest.approx(
        uniform_chance_score(found.scores.grid - found.scores.shift_patches), abs=0.05
    )


def test_register_latents_score_high_and_the_rest_low(planted: Chain) -> None:
    share = compute_register_share(planted)
    scored = np.isfinite(planted.cds) & np.isfinite(share)
    is_register = share > 0.5
    assert (is_register & scored).sum() >= 4  # at least one for each light
    assert compute_auroc(planted.cds[scored], is_register[scored]) > 0.97
    high, low = planted.cds[scored & is_register], planted.cds[scored & ~is_register]
    assert 0.3 < high.mean() < 0.5
    assert low.mean() < 0.15
    assert (planted.partition.high & ~is_register).sum() <= 2
    assert not (planted.partition.low & is_register).any()


def test_the_local_latents_hold_most_of_the_mass(planted: Chain) -> None:
    assert planted.sae_figures["fvu"] < 0.2
    assert planted.results["error_preserving_without_high"].variant["mass_share"] < 0.15
    assert planted.results["error_preserving_without_low"].variant["mass_share"] > 0.8


@pytest.mark.parametrize("readout", ["patch_mean", "cls_final"])
def test_without_the_high_group_the_light_is_gone(planted: Chain, readout: str) -> None:
    task = f"classification/{readout}"
    original = planted.metric("original", task, "top1")
    assert original > 0.85
    without = planted.results["error_preserving_without_high"]
    assert without.metrics[task]["top1"] < original - 0.4  # 0.7 would be all the way to chance
    assert without.frozen_head[task]["top1"] < original - 0.5
    # the plain reconstruction is no linear map of the tokens: a new head finds some light in what the others miss
    reconstructed = planted.results["reconstruct_without_high"]
    assert reconstructed.metrics[task]["top1"] < original - 0.25
    assert reconstructed.frozen_head[task]["top1"] < original - 0.5


@pytest.mark.parametrize("mode", ["error_preserving", "reconstruct"])
def test_without_the_high_group_the_map_of_the_scene_stays(planted: Chain, mode: str) -> None:
    without = f"{mode}_without_high"
    assert planted.pixel_accuracy(without) == pytest.approx(planted.pixel_accuracy("original"), abs=0.03)
    assert planted.rmse_m(without) == pytest.approx(planted.rmse_m("original"), abs=0.15)


@pytest.mark.parametrize("mode", ["error_preserving", "reconstruct"])
def test_without_the_low_group_the_map_is_gone_and_the_light_stays(planted: Chain, mode: str) -> None:
    without = f"{mode}_without_low"
    assert planted.top1(without) > planted.top1("original") - 0.05
    assert planted.pixel_accuracy(without) < planted.pixel_accuracy("original") - 0.1
    assert planted.metric(without, "segmentation", "miou") < planted.metric("original", "segmentation", "miou") - 0.05
    assert planted.rmse_m(without) > planted.rmse_m("original") + 0.25


def test_a_random_group_of_the_same_size_does_neither(planted: Chain) -> None:
    for draw in range(2):
        control = f"random_size_of_high_{draw}"
        assert planted.top1(control) > planted.top1("error_preserving_without_high") + 0.3
        assert planted.rmse_m(control) < planted.rmse_m("error_preserving_without_low") - 0.2


def test_random_weights_have_scores_but_no_group_that_holds_the_light(random_weights: Chain, planted: Chain) -> None:
    values = random_weights.cds[np.isfinite(random_weights.cds)]
    assert len(values) > 30
    assert values.min() >= 0
    assert values.max() <= 1
    highest = random_weights.cds[random_weights.partition.high].mean()  # of the highest third
    assert highest < planted.cds[planted.partition.high].mean() - 0.05
    for task in ("classification/patch_mean", "classification/cls_final"):
        original = random_weights.metric("original", task, "top1")
        assert original > CHANCE + 0.25  # random projections of colours tell the light
        assert random_weights.metric("error_preserving_without_high", task, "top1") > original - 0.1
    # so high and low part nothing here: whatever the map loses without the low group, the light is not its counterpart
    assert random_weights.pixel_accuracy("error_preserving_without_high") == pytest.approx(
        random_weights.pixel_accuracy("original"), abs=0.05
    )
