"""What is refused before anything is built: all that the configured stage could only say hours later."""

from __future__ import annotations

from dataclasses import dataclass

from infoscope.config import Stage
from infoscope.data.images import Truth
from infoscope.pipeline.analyses import Analyses
from infoscope.predictions.inputs import check_predictions
from infoscope.predictions.prompts import choose_class_names
from infoscope.probes.checks import check_probes
from infoscope.probes.config import Task
from infoscope.probes.crops import round_to_patches
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.sae.origin import check_has_maps
from infoscope.sae.stream import check_batch
from infoscope.sae.token_sets import check_prefix
from infoscope.scope.config import Rule
from infoscope.scope.crops import check_shift
from infoscope.scope.ranking import check_enough_images
from infoscope.vision.backbone import Backbone, check_layer
from infoscope.vision.extract import compute_cache_bytes

_TRAINS = (Stage.train_clip, Stage.train_sae)
_CROPS = (Stage.score, Stage.probe, Stage.predict, Stage.stability, Stage.select, Stage.outliers, Stage.report)
"""Stages that need scores, or outlier tokens, from two crops of a picture."""


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a backbone.

    d_in, grid, n_prefix: width of a token, patches per side, tokens before them.
    lacks_saes: whether SAEs are to be trained.
    n_layers: None where tokens exist, and so does their layer.
    backbone: itself, where something is to be encoded.
    """

    d_in: int
    grid: int
    n_prefix: int
    lacks_saes: bool
    n_layers: int | None = None
    backbone: Backbone | None = None


class Checks(Analyses):
    """The early checks of one configuration."""

    def check(self) -> None:
        """Refuse what the configured stage, and what comes before it, could not be done with; nothing is built.

        Of several processes the main one looks.

        Raises:
            InputError: images, truths, classes, weights, a layer, sizes, a device or a disk that will not do.
        """
        n_processes = processes.current().size
        if processes.is_main():
            with processes.alone():
                self._check(n_processes)

    def _check(self, n_processes: int) -> None:
        stage = self.config.stage
        if stage is Stage.check_data:
            return
        _ = self.device
        if stage is Stage.train_clip:
            _ = self.clip_spec
            return
        self._check_images()
        if self._is_probed:
            self._check_probe_images()
        if stage is Stage.predict:
            self.check_split("test", self.config.data)
            known = self.find_known(self.config.data)[1]
            choose_class_names(self.config.predict, known if known and Truth.labels in known.truths else None)
        facts = self._find_facts()
        if facts.lacks_saes:
            check_batch(self.config.sae.batch_tokens, n_processes)
        self._check_sizes(facts)
        if facts.backbone is not None:
            self._check_backbone(facts.backbone)

    @property
    def _is_probed(self) -> bool:
        stage = self.config.stage
        return stage in (Stage.probe, Stage.select) or (stage is Stage.report and self.knows_truths())

    def _check_images(self) -> None:
        self.check_split("train", self.config.data)
        n = self.n_images("train")
        if n < 2:
            raise InputError(f"Expected tokens of at least 2 images, one of them held out, got {n}.")
        if self.config.stage not in _TRAINS:
            check_has_maps(self.config.sae.tokens)
            check_enough_images(n, self.config.scope.k_cds)

    def _check_probe_images(self) -> None:
        self.check_truths()
        for data, probe in self.probe_groups():
            self.check_split("test", data)
            counts = [probe.n_train_images] if Task.classification in probe.tasks else []
            counts += [probe.n_dense_train_images] if set(probe.tasks) - {Task.classification} else []
            n = self.n_images("train", data)
            if (least := min(n, *(count or n for count in counts))) < 2:
                raise InputError(f"Expected at least two training images for the probes, got {least}.")

    def _find_facts(self) -> ModelFacts:
        """Return what is known of the backbone, which is loaded if something is to be encoded."""
        config = self.config
        if config.model.pretrained == "train_clip" and self.store.find(self.clip_spec) is None:
            return ModelFacts(config.clip.width, config.clip.grid, 1, True, config.clip.layers)
        lacks_saes = any(self.store.find(self.sae_spec(seed)) is None for seed in config.seeds)
        tokens = self.store.find(self.tokens_spec("train"))
        scores = map(self.score_spec, config.seeds if config.stage in _CROPS else [])
        if tokens is not None and all(self.store.find(spec) is not None for spec in scores):
            meta = tokens.read_json("tokens.json")
            return ModelFacts(meta["d_in"], meta["grid"], meta["n_prefix"], lacks_saes)
        loaded = self.backbone
        return ModelFacts(loaded.d_in, loaded.grid, loaded.n_prefix_tokens, lacks_saes, loaded.n_layers, loaded)

    def _check_sizes(self, facts: ModelFacts) -> None:
        """Refuse what does not fit the model's sizes."""
        config = self.config
        if facts.n_layers is not None:
            check_layer(config.model.layer, facts.n_layers)
        check_prefix(config.sae.tokens, facts.n_prefix)
        d_sae = config.sae.expansion_factor * facts.d_in
        config.sae.check_width(d_sae)
        if config.stage in _CROPS:
            check_shift(facts.grid, config.scope.shift_patches)
            self._check_groups(d_sae)

    def _check_groups(self, d_sae: int) -> None:
        """Refuse more groups than there are latents to put into them."""
        config = self.config
        rule, number = config.partition.chosen
        counts = {"partition.n_bands": number} if rule is Rule.bands else {}
        if config.stage is Stage.select:
            counts |= {"select.n_bands": config.select.n_bands, "select.n_kept[0]": config.select.n_kept[0]}
        for name, count in counts.items():
            if count is not None and count > d_sae:
                raise InputError(f"Expected {name} to be at most {d_sae}, the number of latents, got {count}.")

    def _check_backbone(self, backbone: Backbone) -> None:
        """Refuse what the model cannot do, and what the disk cannot hold."""
        config, layer = self.config, self.config.model.layer
        for data, probe in self.probe_groups() if self._is_probed else []:
            known = self.find_known(data)[0]
            assert known is not None
            check_probes(probe, backbone, layer, known, edits_prefix=config.sae.tokens is not TokenChoice.patch)
            for task in probe.tasks:
                if (crops := probe.crops(task)) and crops.crop_px is not None:
                    self.backbone_at(round_to_patches(crops.crop_px, backbone.patch_px))
        if config.stage is Stage.predict:
            check_predictions(backbone, layer)
        self.check_disk(self._count_bytes(backbone))

    def _count_bytes(self, backbone: Backbone) -> int:
        """Return what the tokens and the maps that are missing need on the disk; maps first in parts, then joined."""
        config, n_bytes = self.config, 0
        if config.data.store_tokens and self.store.find(self.tokens_spec("train")) is None:
            n_bytes += compute_cache_bytes(backbone, self.n_images("train"), config.data.cache_dtype)
        scored = config.seeds if config.stage in _CROPS and config.stage is not Stage.outliers else []
        n_missing = sum(self.store.find(self.score_spec(seed)) is None for seed in scored)
        n_maps = config.sae.expansion_factor * backbone.d_in * config.scope.n_ranks * 2
        return n_bytes + n_maps * backbone.grid**2 * 4 * (n_missing + min(1, n_missing))
