"""How fast this machine is, measured in seconds on first use: with the configured backbone and pictures, and an SAE of
the configured size (a trained one where there is one)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from infoscope.data.config import DataKind
from infoscope.data.images import ImageBatch, ImageSet, LabelledImages, iterate_images
from infoscope.data.scene_set import SceneSet, save_scenes
from infoscope.pipeline.chain import Stages
from infoscope.pipeline.planning.probe_costs import (
    ProbeCosts,
    make_halves,
    make_nominal_variants,
    measure_chunk,
    shorten,
    time_work,
)
from infoscope.predictions.inputs import PredictInputs
from infoscope.predictions.prompts import Prompts, make_prompts
from infoscope.predictions.run import run_predictions
from infoscope.predictions.zero_shot import make_zero_shot_head
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.probes.run import run_probes
from infoscope.sae.config import SAEConfig, TokenChoice
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.module import make_sae
from infoscope.sae.train import train_sae
from infoscope.scope.confounds import compute_confounds
from infoscope.scope.emd import compute_emd
from infoscope.scope.group_activation import compute_outlier_acts
from infoscope.scope.maps import WantedMaps, encode_maps, make_trainer
from infoscope.scope.ranking import rank_images
from infoscope.scope.sinkhorn import compute_emd_sinkhorn
from infoscope.vision.extract import TokenCache, extract_tokens

N_CALIBRATION_IMAGES = 32
N_CALIBRATION_PAIRS = 400
N_SINKHORN_PAIRS = 24
N_SAE_STEPS = 12
SUPPORT_PATCHES = 12
"""Patches on which the calibration's maps are not zero: distances cost more on larger supports."""
PROBE_CALIBRATION_S = 4.0
"""Seconds that a short run of all variants may take; the probes are calibrated with fewer where it would be more."""


class Calibration:
    """What things cost on this machine with the configured backbone, pictures and SAE size, measured on first use.

    Args:
        stages: over a store that need not hold anything.
        folder: for what the measurements write.

    Raises (every measurement):
        InputError: if the backbone or the pictures cannot be read.
    """

    def __init__(self, stages: Stages, folder: Path) -> None:
        self.stages, self.config, self.backbone, self.folder = stages, stages.config, stages.backbone, folder
        self.layer = self.backbone.check_layer(self.config.model.layer)

    # what is measured on

    @cached_property
    def _rendering(self) -> tuple[SceneSet, float]:
        """Some scenes, and how long they took."""
        data, folder = self.config.data, self.folder / "scenes"
        folder.mkdir()
        seconds = time_work(lambda: save_scenes(folder, data.seed, "train", N_CALIBRATION_IMAGES, data.size_px))
        return SceneSet(folder), seconds

    @cached_property
    def images_set(self) -> ImageSet:
        """Pictures like those of the command."""
        return self._rendering[0] if self.config.data.kind is DataKind.scenes else self.stages.sets_on_disk()[0]

    @cached_property
    def _encoding(self) -> tuple[TokenCache, float]:
        """Their tokens, and how long encoding took."""
        backbone, index = self.backbone, np.arange(min(N_CALIBRATION_IMAGES, len(self.images_set)))

        def encode(rows: np.ndarray) -> TokenCache:
            def read(positions: np.ndarray, batch_images: int) -> Iterator[ImageBatch]:
                images, on_error = self.images_set, self.config.data.on_error
                return iterate_images(images, backbone.image_px, batch_images, rows[positions], on_error=on_error)

            return extract_tokens(backbone, read, len(rows), self.layer, self.folder, batch_images=16)

        encode(index[:4])  # warm up
        seconds = time_work(lambda: encode(index))
        return TokenCache(self.folder), seconds

    @property
    def _cache(self) -> TokenCache:
        return self._encoding[0]

    @cached_property
    def _sae(self) -> SparseAutoencoder:
        """A trained SAE if there is one, else an untrained one that is as sparse: what an edit costs hangs on that."""
        for seed in self.config.seeds:
            found = self.stages.store.find(self.stages.sae_spec(seed))
            if found is not None:
                return self.stages.load_sae(found)
        sae = make_sae(self.config.sae, torch.as_tensor(self._cache.mean), self._cache.scale, 0)
        sae.requires_grad_(False)
        make_sparse(sae, self._cache.tokens(slice(None)).patches.flatten(0, 1), getattr(self.config.sae, "k", 16))
        return sae.to(self.stages.device)

    # rates, per second

    @cached_property
    def scenes(self) -> float:
        """Scenes rendered in one process."""
        return N_CALIBRATION_IMAGES / self._rendering[1]

    @cached_property
    def images(self) -> float:
        """Images read and encoded."""
        return len(self._cache) / self._encoding[1]

    @cached_property
    def tokens(self) -> float:
        """Tokens that an SAE is trained on."""
        config, folder = self.config.sae, self.folder / "sae"
        return config.batch_tokens / _time_sae_step(self._cache, config, folder, self.stages.device.type)

    @cached_property
    def ranked(self) -> float:
        """Images ranked."""
        scope = self.config.scope
        return len(self._cache) / _time_again(
            lambda: rank_images(self._sae, self._cache.batches(16), scope.n_ranks, scope.rank_by)
        )

    @cached_property
    def distances(self) -> float:
        """Exact distances in one process, between sparse random maps."""
        first, second = _make_maps(N_CALIBRATION_PAIRS, self.backbone.grid - self.config.scope.shift_patches)
        return N_CALIBRATION_PAIRS / _time_again(lambda: compute_emd(first, second))

    @cached_property
    def sinkhorn(self) -> float:
        """Approximate distances."""
        first, second = _make_maps(N_SINKHORN_PAIRS, self.backbone.grid - self.config.scope.shift_patches)
        blur = self.config.scope.sinkhorn_blur
        compute_emd_sinkhorn(first[:1], second[:1], blur)  # imports
        return N_SINKHORN_PAIRS / time_work(lambda: compute_emd_sinkhorn(first, second, blur))

    @cached_property
    def texts(self) -> float:
        """Texts embedded."""
        prompts = self._few_prompts
        n_texts = len(prompts.class_names) * len(prompts.templates)
        return n_texts / _time_again(lambda: make_zero_shot_head(self.backbone, prompts))

    # seconds per unit

    @cached_property
    def cropped_s(self) -> float:
        """Both crops of one image encoded, for one SAE."""
        return self._time_crops(1)

    @cached_property
    def cropped_sae_s(self) -> float:
        """What each further SAE adds to it."""
        return max(0.0, self._time_crops(3) - self.cropped_s) / 2

    @cached_property
    def group_activation_s(self) -> float:
        """Group activation of one image."""
        return _time_again(lambda: compute_outlier_acts(self._sae, self._cache, math.inf)) / len(self._cache)

    @cached_property
    def confounds_s(self) -> float:
        """Confounds of one image."""
        k_max = self.config.scope.n_ranks
        return _time_again(lambda: compute_confounds(self._sae, self._cache, self.images_set, k_max)) / len(self._cache)

    @cached_property
    def resumed_s(self) -> float:
        """One image edited, sent through the remaining blocks, and predicted."""
        n_images, chosen = min(16, len(self._cache)), self.config.sae.tokens
        config = replace(self.config.predict, n_images=n_images, n_shown=0)
        inputs = PredictInputs(
            self._sae,
            self._cache,
            self.backbone,
            self.config.model.layer,
            edits_patches=chosen is not TokenChoice.cls,
            edits_prefix=chosen is not TokenChoice.patch,
        )
        head, variants = make_zero_shot_head(self.backbone, self._few_prompts), make_halves(self._sae.d_sae, 16)
        run_predictions(variants[:1], inputs, head, replace(config, n_images=4))  # warm up
        seconds = time_work(lambda: run_predictions(variants, inputs, head, config))
        return seconds / (len(variants) * n_images)

    @cached_property
    def mean_entries(self) -> float:
        """Latents that are active somewhere in an image."""
        patches = self._cache.tokens(slice(None)).patches.to(self.stages.device)
        with torch.no_grad():
            acts = [self._sae.encode_sparse(one) for one in patches]
        return float(np.mean([len(torch.unique(indices[values > 0])) for values, indices in acts]))

    @cached_property
    def probes(self) -> ProbeCosts:
        """What probes cost by the number of variants in a chunk."""
        images, config = self.images_set, self.config.probe
        assert isinstance(images, LabelledImages)
        data, edits_prefix = ProbeData(self._cache, images), self.config.sae.tokens is TokenChoice.all
        inputs = ProbeInputs(self._sae, data, data, self.backbone, self.layer, edits_prefix=edits_prefix)
        n_large = min(config.variants_per_chunk, len(make_nominal_variants(self.config)))
        n_small = max(1, n_large // 8)
        warming_s = time_work(lambda: run_probes(make_halves(self._sae.d_sae, n_small), inputs, shorten(config, 8)))
        n_bearable = int(n_small * PROBE_CALIBRATION_S / warming_s)
        n_large = min(n_large, max(n_small + 1, n_bearable))
        small, large = (measure_chunk(inputs, config, n) for n in (n_small, n_large))
        return ProbeCosts(small, large)

    def _time_crops(self, n_saes: int) -> float:
        """Return the seconds per image of encoding both crops for some SAEs; what starting costs drops out."""
        backbone, scope, n_each = self.backbone, self.config.scope, 4  # maps that an SAE wants of an image
        n = min(len(self._cache), max(4, int(self.images)))  # about a second's worth of a large backbone
        few = max(1, n // 8)

        def run(n_images: int) -> float:
            top_images = np.tile(np.arange(n_images), n_each)[: self._sae.d_sae, None]
            wanted = [WantedMaps(self._sae, np.arange(len(top_images)), top_images)] * n_saes
            trainer = make_trainer(self.stages.device.type)
            return time_work(lambda: encode_maps(backbone, self.images_set, wanted, scope, self.layer, trainer))

        best = min(run(n) for _ in range(3))  # the first one warms up
        return max(0.0, best - min(run(few), run(few))) / max(1, n - few)

    @cached_property
    def _few_prompts(self) -> Prompts:
        prompts = make_prompts(self.config.predict, self.images_set)
        return Prompts(prompts.class_names[:4], prompts.templates[:4])


def _time_again(work: Callable[[], Any]) -> float:
    """Return the seconds that something short takes the second time."""
    work()
    return time_work(work)


class _StepTimes(L.Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.times.append(time.perf_counter())


def _time_sae_step(cache: TokenCache, config: SAEConfig, folder: Path, accelerator: str) -> float:
    """Return the median seconds of some training steps, the first one left out."""
    timer = _StepTimes()
    short = replace(config, n_tokens=N_SAE_STEPS * config.batch_tokens, eval_tokens=16)
    train_sae(cache, short, 0, folder, accelerator=accelerator, callbacks=[timer])
    return float(np.median(np.diff(timer.times)))


@torch.no_grad()
def make_sparse(sae: SparseAutoencoder, tokens: torch.Tensor, k: int) -> None:
    """Lower the encoder's bias until at most k latents per token are active on average."""
    is_sparse = (sae.encode(tokens) > 0).sum() <= k * len(tokens)
    if not is_sparse:  # kinds with a threshold, which only training raises
        margin = sae.pre_acts(tokens) - getattr(sae.activation, "threshold", 0.0)
        sae.b_enc.sub_(margin.flatten().topk(k * len(tokens)).values[-1])


def _make_maps(n_pairs: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return two lists of sparse random maps of `side` x `side` patches."""
    rng = np.random.default_rng(0)
    maps = np.zeros((2, n_pairs, side * side))
    for one in maps.reshape(-1, side * side):
        one[rng.permutation(side * side)[:SUPPORT_PATCHES]] = rng.random(min(SUPPORT_PATCHES, side * side))
    first, second = maps.reshape(2, -1, side, side)
    return first, second
