"""The chain: what each stage needs, what it makes, and in which order.

    scenes -> (train_clip) -> tokens -> train_sae -> rank -> score -> partition -> probe

A stage is a method that returns its artifact (or artifacts) and asks the methods before it for what it needs; the store
builds only what is missing. Everything about *what* is computed lies in the packages; here is only *what depends on
what*. Keys hold what determines a result and nothing else.
"""

from __future__ import annotations

from functools import cached_property, partial
from pathlib import Path

import numpy as np

from infoscope.config import Stage, TokenBuffer, to_tree
from infoscope.data.check import check_sample
from infoscope.data.config import DataConfig, DataKind
from infoscope.data.images import LabelledImages, Truth
from infoscope.data.scene_factors import vocabulary
from infoscope.data.scene_set import SceneSet
from infoscope.pipeline.encoding import Encoding, write_json
from infoscope.pipeline.probing import build_probes
from infoscope.probes.config import ProbeConfig, Task
from infoscope.probes.variants import Role, Variant, make_matched_variants, make_variants
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.lightning import StepCounter
from infoscope.runtime.manifests import Artifact, Spec
from infoscope.runtime.store import Workspace
from infoscope.sae.checkpoint import save_sae
from infoscope.sae.origin import check_has_maps
from infoscope.sae.train import train_sae
from infoscope.scope.maps import make_trainer
from infoscope.scope.partition import Partition, make_partition
from infoscope.scope.ranking import Ranking, check_enough_images, rank_in_parts
from infoscope.scope.scores import Scores
from infoscope.scope.scoring import score_latents
from infoscope.tracking.lightning import TrackerLogger

TRUTHS = {Task.classification: Truth.labels, Task.segmentation: Truth.label_maps, Task.depth: Truth.depth}
"""What each task has to know of an image."""


class Stages(Encoding):
    """The chain of one configuration over one store: from pictures to probes."""

    @cached_property
    def _trained_folder(self) -> Path | None:
        return self.train_clip().folder if self.config.model.pretrained == "train_clip" else None

    def train_clip(self) -> Artifact:
        """Train a CLIP on captioned scenes of its own stream."""
        from infoscope.vision.contrastive import compute_retrieval, train_clip
        from infoscope.vision.tokenizer import WordTokenizer

        clip, spec = self.config.clip, self.clip_spec

        def build(work: Workspace) -> None:
            train, test = (SceneSet(self.scenes(split, n).folder) for split, n in clip.sets.items())
            words = vocabulary()
            with self.track(Stage.train_clip) as tracker, self.display.bar("training CLIP", unit="steps") as advance:
                options = self.trainer_options(advance, tracker)
                trained = train_clip(
                    clip,
                    train,
                    words,
                    work.folder,
                    work.progress,
                    trainer_options=options,
                )
                captions = [test.caption(i) for i in range(len(test))]
                tokenizer = WordTokenizer(words, clip.context_length)
                figures = compute_retrieval(trained.cpu(), test.images, captions, tokenizer)
                tracker.log(figures)
            write_json(work.folder / "training.json", {"config": to_tree(clip), "held_out": figures})

        return self.get(spec, build)

    def train_sae(self, seed: int) -> Artifact:
        """Train the SAE of one seed on the training split's tokens."""
        config = self.config
        tokens = self.tokens("train")

        def build(work: Workspace) -> None:
            what = f"training SAE, seed {seed}"
            with self.track(Stage.train_sae, seed) as tracker, self.display.bar(what, unit="steps") as advance:
                source = self.open_tokens("train")
                sae, figures = train_sae(
                    source,
                    config.sae,
                    seed,
                    work.progress,
                    accelerator=self.device.type,
                    callbacks=[StepCounter(advance)],
                    logger=TrackerLogger(tracker),
                    buffer_device=self.device if config.trainer.token_buffer is TokenBuffer.device else "cpu",
                )
                tracker.log(figures)
            if processes.is_main():
                backbone = source.meta.get("backbone", self.model_fingerprint)  # older tokens do not name theirs
                save_sae(work.folder, sae, backbone=backbone, training=self.tree["sae"])
                write_json(work.folder / "metrics.json", figures)

        return self.get(self.sae_spec(seed), build, shared=True, tokens=tokens)

    def rank(self, seed: int) -> Artifact:
        """Rank the training images for every latent."""
        scope = self.config.scope
        check_has_maps(self.config.sae.tokens)
        sae, tokens = self.train_sae(seed), self.tokens("train")

        def build(work: Workspace) -> None:
            source = self.open_tokens("train")
            check_enough_images(len(source), scope.k_cds)
            bar = self.display.bar(f"ranking images, seed {seed}", len(source), "images")
            with self.track(Stage.rank, seed) as tracker, bar as advance:
                ranking = rank_in_parts(
                    self.load_sae(sae),
                    source,
                    scope.n_ranks,
                    scope.rank_by,
                    advance,
                    work.progress / "ranked",
                )
                if processes.current().rank == 0:
                    ranking.save(work.folder)
                tracker.log({"n_images": ranking.n_images, "silent_latents": int((ranking.firing_rate == 0).sum())})

        return self.get(self.rank_spec(seed), build, shared=True, sae=sae, tokens=tokens)

    def score(self, seed: int) -> Artifact:
        """Score every latent on shifted crops of the images that it ranks."""
        config, scope = self.config, self.config.scope
        sae, ranked = self.train_sae(seed), self.rank(seed)
        images = self.image_sets[0]
        check_enough_images(Ranking.load(ranked.folder).n_images, scope.k_cds)

        def build(work: Workspace) -> None:
            ranking = Ranking.load(ranked.folder)
            self.backbone.check_layer(config.model.layer)
            maps_bytes = ranking.d_sae * ranking.k_max * 2 * self.backbone.grid**2 * 4
            self.check_disk(2 * maps_bytes - work.progress_bytes)  # in parts, and joined
            with self.track(Stage.score, seed) as tracker, self.display.bar(f"scoring, seed {seed}") as advance:
                scores = score_latents(
                    self.backbone,
                    self.load_sae(sae),
                    images,
                    ranking,
                    scope,
                    layer=config.model.layer,
                    maps_file=work.folder / "maps.npy",
                    trainer=make_trainer(self.device.type),
                    crop_progress=partial(advance, part="encoding crops"),
                    progress=partial(advance, part="moving earth (EMD)"),
                    n_readers=config.data.n_workers,
                    progress_folder=work.progress,
                )
                if processes.current().rank == 0:
                    scores.save(work.folder)
                cds = scores.cds(scope.k_cds).values
                if not np.isnan(cds).all():
                    tracker.log({"mean_cds": float(np.nanmean(cds)), "scored_share": float((~np.isnan(cds)).mean())})

        return self.get(self.score_spec(seed), build, shared=True, sae=sae, ranking=ranked)

    def partition(self, seed: int) -> Partition:
        """Divide the latents by their scores on the training split: arithmetic on the score artifact."""
        cds = Scores.load(self.score(seed).folder).cds(self.config.scope.k_cds).values
        return make_partition(cds, Ranking.load(self.rank(seed).folder).mean_act, self.config.partition)

    def variants(self, seed: int) -> list[Variant]:
        """Return what is removed from the tokens, the original ones first: groups, everything, random controls."""
        ranking, partition, probe = Ranking.load(self.rank(seed).folder), self.partition(seed), self.config.probe
        return make_variants(
            dict(partition.groups),
            drawable=~partition.unscored & (ranking.mean_act > 0),
            mass=ranking.mean_act,
            n_draws=probe.n_draws,
            seed=probe.seed,
        )

    def matched_variants(self, seed: int) -> list[Variant]:
        """Return the groups thinned out until they fire equally often; none for bands."""
        ranking, groups = Ranking.load(self.rank(seed).folder), dict(self.partition(seed).groups)
        return make_matched_variants(groups, ranking.firing_rate, ranking.mean_act, self.config.probe.seed)

    def probe(self, seed: int) -> dict[Variant, list[Artifact]]:
        """Train and evaluate the probes of every variant of one seed."""
        self.check_truths()
        return self.probe_variants(seed, self.variants(seed) + self.matched_variants(seed))

    def probe_variants(self, seed: int, variants: list[Variant]) -> dict[Variant, list[Artifact]]:
        """Train and evaluate the probes of some variants, the original first; each set of tokens is an artifact.

        Tasks with data of their own have artifacts of their own: each variant has one per data set. Variants with equal
        tokens share one (an empty group has the original's), so what is stored in it names but the first of them.
        Other jobs may want some of the same variants: each is trained by the job that claims it first.
        """
        self.check_truths()
        sae, found = self.train_sae(seed), {variant: [] for variant in variants}
        assert variants[0].role is Role.original
        n_new = n_all = 0
        for data, probe in self.probe_groups():
            specs = {variant: self.probe_spec(seed, variant, data, probe) for variant in variants}
            while n_built := self._probe_missing(seed, specs, sae, data, probe):
                n_new += n_built
            n_all += len({spec.hash for spec in specs.values()})
            for variant, spec in specs.items():
                found[variant].append(self.get(spec, must_exist))
        self.display.say(f"          probed variants of seed {seed}: {n_new} built, {n_all - n_new} reused")
        return found

    def _probe_missing(
        self, seed: int, specs: dict[Variant, Spec], sae: Artifact, data: DataConfig, probe: ProbeConfig
    ) -> int:
        """Probe the variants that are missing and that no other job is at, and return how many; 0: none is missing."""
        by_hash = {spec.hash: variant for variant, spec in reversed(specs.items())}
        original = next(iter(specs.values()))
        with self.store.claim(specs.values()) as claimed:
            if not claimed:
                return 0
            missing = [by_hash[name] for name in claimed]
            tokens = [self.tokens(split, data) for split in ("train", "test")]
            sources = [self.open_tokens(split, data) for split in ("train", "test")]
            train, test = zip(tokens, sources, self.open_sets(data), strict=True)
            build_probes(
                self,
                self.backbone,
                seed,
                missing,
                specs,
                None if original.hash in claimed else self.get(original, must_exist),
                sae,
                train,
                test,
                probe,
                self.feature_specs(seed, missing, data, probe),
                self.backbone_at,
                data.n_workers,
            )
            return len(missing)

    def knows_truths(self) -> bool:
        """Whether there is anything to probe: some task whose data know the truth."""
        return any(self._knows(task) for task in self.config.probe.tasks)

    def check_truths(self) -> None:
        """Refuse tasks whose data do not know the truth or code it wrongly, and unknown targets, before hours of work.

        Raises:
            InputError: such a task or target; maps of labels or depth that are not what they should be, see
                `check_sample`.
        """
        for task in self.config.probe.tasks:
            data = self.probe_data(task)
            if not self._knows(task):
                raise InputError(
                    f"Expected data that know {TRUTHS[task].value} for the probe of {task.name}, got"
                    f" data={data.kind.name}: give probe_data.{task.name}, drop the task from probe.tasks, or ask for"
                    " the scope alone (stage=report with data that know nothing)."
                )
            if task is Task.classification and (known := self.find_known(data)[0]):
                known.n_target_classes(self.config.probe.target)
            self._check_sample(task)

    def _check_sample(self, task: Task) -> None:
        """Read some of the maps that a task learns, once."""
        data = self.probe_data(task)
        is_read = task is not Task.classification and data.kind is not DataKind.scenes
        if is_read and repr(data) not in self._sampled:
            for images in self.open_sets(data):
                assert isinstance(images, LabelledImages)
                with self.naming_settings(data):
                    check_sample(images)
            self._sampled.add(repr(data))

    @cached_property
    def _sampled(self) -> set[str]:
        return set()

    def _knows(self, task: Task) -> bool:
        return all(known and TRUTHS[task] in known.truths for known in self.find_known(self.probe_data(task)))

    def find_known(self, data: DataConfig) -> list[LabelledImages | type[SceneSet] | None]:
        """Return what knows the truth of each split, None where nothing does; scenes need not be rendered for it."""
        if data.kind is DataKind.scenes:
            return [SceneSet, SceneSet]
        return [images if isinstance(images, LabelledImages) else None for images in self.open_sets(data)]


def must_exist(work: Workspace) -> None:
    """Build nothing: for an artifact that the same run has just made."""
    raise AssertionError("a variant that was just trained is not in the store")
