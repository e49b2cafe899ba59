"""What determines each artifact: the specs of the chain, known before anything is built.

Keys hold what determines a result and nothing else: no path, device, worker count or time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from infoscope.config import to_tree
from infoscope.data.config import DataConfig, DataKind
from infoscope.data.images import ImageSet
from infoscope.data.recognition import name_settings
from infoscope.data.scene_set import make_scenes_fingerprint
from infoscope.data.sets import make_image_sets
from infoscope.pipeline.workbench import Workbench
from infoscope.probes.config import ProbeConfig, Readout, Task
from infoscope.probes.features import MEANS
from infoscope.probes.variants import Role, Variant
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import Spec
from infoscope.scope.config import Diagonal
from infoscope.vision.open_clip_backbone import compute_model_fingerprint, find_facts
from infoscope.vision.origins import Facts


class Specs(Workbench):
    """The specs of one configuration."""

    @cached_property
    def model_fingerprint(self) -> dict[str, Any]:
        """What determines the backbone, known without building it."""
        with self.display.bar("reading the weights' checksum"):
            return compute_model_fingerprint(self.config.model, self._trained_folder)

    @cached_property
    def model_facts(self) -> Facts | None:
        """The model's activation, mean and std, and who says so; None for planted backbones."""
        return find_facts(self.config.model, self._trained_folder)

    @cached_property
    def _trained_folder(self) -> Path | None:
        """Where the CLIP of stage train_clip lies, if the configuration asks for one."""
        if self.config.model.pretrained != "train_clip":
            return None
        found = self.store.find(self.clip_spec)
        if found is None:
            raise InputError("model.pretrained=train_clip: there is no such CLIP yet, run stage=train_clip first.")
        return found.folder

    def scenes_spec(self, split: str, n_images: int, data: DataConfig | None = None) -> Spec:
        """A split of the scenes."""
        data = data or self.config.data
        return Spec("scenes", split, make_scenes_fingerprint(data.seed, split, n_images, data.size_px))

    @cached_property
    def clip_spec(self) -> Spec:
        """The CLIP of stage train_clip.

        Raises:
            InputError: if the data have no captions.
        """
        clip, data = self.config.clip, self.config.data
        if data.kind is not DataKind.scenes:
            raise InputError(f"stage=train_clip learns from captioned scenes: use data=scenes, not {data.kind.name}.")
        key = [self.scenes_spec(split, n).key for split, n in clip.sets.items()]
        return Spec("train_clip", "scenes_clip", {"clip": to_tree(clip), "scenes": key})

    def probe_data(self, task: Task) -> DataConfig:
        """What a task is probed on; tokens of whole images are not kept where it is shown crops instead."""
        data: DataConfig = getattr(self.config.probe_data, task.name)
        if data.kind is DataKind.own:
            return self.config.data
        return replace(data, store_tokens=False) if self.config.probe.crops(task) else data

    def sets_on_disk(self, data: DataConfig | None = None) -> tuple[ImageSet, ImageSet]:
        """The training and the test images of a data set that is not rendered."""
        data = data or self.config.data
        key = repr(data)
        if key not in self._sets_on_disk:
            with self.display.bar(f"listing the images of data={data.kind.name}"), self.naming_settings(data):
                self._sets_on_disk[key] = sets = make_image_sets(data)
            if data.kind is DataKind.image_folder:
                held_out = f"{len(sets[1]):,} held out as test images (data.test_share={data.test_share:g})"
                self.display.say(f"          {data.root}: {len(sets[0]):,} training images, {held_out}")
            for left_out in dict.fromkeys(images.left_out.describe() for images in sets if images.left_out):
                self.display.say(f"          {data.root}: left out {left_out}")
        return self._sets_on_disk[key]

    @contextmanager
    def naming_settings(self, data: DataConfig) -> Iterator[None]:
        """Let what is wrong with the data of a probe be told in terms of `probe_data`; `data` are the experiment's own.

        Raises:
            InputError: what was raised inside.
        """
        try:
            yield
        except InputError as error:
            tasks = [task.name for task in self.config.probe.tasks if self.probe_data(task) == data != self.config.data]
            if not tasks or type(error) is not InputError:
                raise
            raise InputError(name_settings(str(error), f"probe_data.{tasks[0]}")) from error

    def share_sets(self, other: Specs) -> None:
        """Use the image sets that another configuration has found on the disk, where the data are the same."""
        self._sets_on_disk = other._sets_on_disk

    @cached_property
    def _sets_on_disk(self) -> dict[str, tuple[ImageSet, ImageSet]]:
        return {}

    def n_images(self, split: str, data: DataConfig | None = None) -> int:
        """Images of a split, unreadable ones included."""
        data = data or self.config.data
        if data.kind is DataKind.scenes:
            return data.n_train if split == "train" else data.n_test
        return len(self.sets_on_disk(data)[0 if split == "train" else 1])

    def images_fingerprint(self, split: str, data: DataConfig | None = None) -> dict[str, Any]:
        """What determines a split's images, known before they are rendered."""
        data = data or self.config.data
        if data.kind is DataKind.scenes:
            return self.scenes_spec(split, self.n_images(split, data), data).key
        images = self.sets_on_disk(data)[0 if split == "train" else 1]
        with self.display.bar(f"reading the checksum of {len(images):,} {split} images"):
            return images.fingerprint

    def tokens_spec(self, split: str, data: DataConfig | None = None) -> Spec:
        """The tokens of a split."""
        data, model = data or self.config.data, self.config.model
        key = {
            "model": self.model_fingerprint,
            "layer": model.layer,
            "images": self.images_fingerprint(split, data),
            "dtype": data.cache_dtype if data.store_tokens else None,
        }
        return Spec("tokens", f"{model.name}-{split}", key)

    def sae_spec(self, seed: int) -> Spec:
        """The SAE of a seed."""
        key = {"tokens": self.tokens_spec("train").hash, "sae": self.config.sae.determining(), "seed": seed}
        return Spec("train_sae", self.sae_name(seed), key)

    def rank_spec(self, seed: int) -> Spec:
        """The ranking of the training images for the latents of a seed's SAE."""
        scope = self.config.scope
        key = {
            "sae": self.sae_spec(seed).hash,
            "tokens": self.tokens_spec("train").hash,
            "k_max": scope.n_ranks,
            "rank_by": scope.rank_by.name,
        }
        return Spec("rank", self.sae_name(seed), key)

    def score_spec(self, seed: int) -> Spec:
        """The distances between the maps of shifted crops."""
        scope = self.config.scope
        key = {
            "sae": self.sae_spec(seed).hash,
            "ranking": self.rank_spec(seed).hash,
            "model": self.model_fingerprint,
            "layer": self.config.model.layer,
            "images": self.images_fingerprint("train"),
            "shift_patches": scope.shift_patches,
            "emd": scope.emd.name if scope.emd.name == "exact" else [scope.emd.name, scope.sinkhorn_blur],
        }
        if scope.diagonal is not Diagonal.main:
            key["diagonal"] = scope.diagonal.name
        return Spec("score", self.sae_name(seed), key)

    def probe_groups(self) -> list[tuple[DataConfig, ProbeConfig]]:
        """The tasks that share a data set are probed in one loop: [(data, probes of those tasks)]."""
        tasks: dict[str, tuple[DataConfig, list[Task]]] = {}
        for task in self.config.probe.tasks:
            data = self.probe_data(task)
            tasks.setdefault(repr(data), (data, []))[1].append(task)
        return [(data, replace(self.config.probe, tasks=of)) for data, of in tasks.values()]

    def probe_spec(self, seed: int, variant: Variant, data: DataConfig, probe: ProbeConfig) -> Spec:
        """The probes of one variant of the tokens of one data set; equal tokens have one."""
        config = self.config
        name = variant.name if variant.role is Role.original else f"{variant.name}-seed{seed}"
        key = {
            "probe": probe.determining(),
            "tokens": [self.tokens_spec(split, data).hash for split in ("train", "test")],
            "model": self.model_fingerprint,
            "layer": config.model.layer,
            "variant": variant.key(self.sae_spec(seed).hash),
        }
        return Spec("probe", f"{config.model.name}-{name}", key)

    def feature_specs(
        self, seed: int, variants: Iterable[Variant], data: DataConfig, probe: ProbeConfig
    ) -> dict[str, Spec]:
        """What classification reads of some variants, by variant key, and means of images, if it does, as `MEANS`."""
        config, sae = self.config, self.sae_spec(seed).hash
        shared = {
            "tokens": [self.tokens_spec(split, data).hash for split in ("train", "test")],
            "images": probe.chosen_images,
        }
        read = {"model": self.model_fingerprint, "layer": config.model.layer}
        read["readouts"] = [readout.name for readout in probe.cls_readouts]
        if probe.cls_readouts:
            read["dtype"] = probe.feature_dtype
        specs: dict[str, Spec] = {}
        if Readout.patch_mean in probe.readouts:
            specs[MEANS] = Spec("image_means", self.sae_name(seed), {**shared, "sae": sae})
        for variant in variants:
            name = variant.name if variant.role is Role.original else f"{variant.name}-seed{seed}"
            key = variant.key(sae)
            specs.setdefault(key, Spec("features", f"{config.model.name}-{name}", {**shared, **read, "variant": key}))
        return specs

    def sae_name(self, seed: int) -> str:
        """What artifacts of a seed are called, for people."""
        return f"{self.config.model.name}-{self.config.sae.kind}-seed{seed}"
