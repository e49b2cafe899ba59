"""Probing variants of the tokens: what is missing is trained in one loop, each variant becomes an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from infoscope.data.config import DataConfig
from infoscope.data.images import Truth
from infoscope.pipeline.context import Context, once
from infoscope.pipeline.stage import Handle
from infoscope.probes.config import Task
from infoscope.probes.features import FeatureFolders
from infoscope.probes.results import AblationResult, load_result, save_result
from infoscope.probes.run import run_probes
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import Artifact, compute_hash
from infoscope.runtime.progress import flatten
from infoscope.runtime.store import Workspace
from infoscope.scope.ablations import Ablation, Role
from infoscope.stages.images import advise_classes, check_maps, find_known, knows, probe_data
from infoscope.stages.probe.artifacts import AblationProbes, ProbeGroup
from infoscope.stages.probe.features import features_of, make_probe_inputs, note_features
from infoscope.stages.sae import sae_of
from infoscope.stages.tokens import Tokens

TRUTHS = {Task.classification: Truth.labels, Task.segmentation: Truth.label_maps, Task.depth: Truth.depth}
"""What each task has to know of an image."""
Probed = dict[Ablation, list[Artifact]]
"""The artifacts of each variant: one per data set."""


def list_probe_groups(ctx: Context) -> list[ProbeGroup]:
    """Return the tasks as they are probed: those that share a data set in one loop."""
    tasks: dict[str, tuple[DataConfig, list[Task]]] = {}
    for task in ctx.config.probe.tasks:
        data = probe_data(ctx, task)
        tasks.setdefault(repr(data), (data, []))[1].append(task)
    return [ProbeGroup(data, replace(ctx.config.probe, tasks=of)) for data, of in tasks.values()]


@once
def check_truths(ctx: Context) -> None:
    """Refuse tasks whose data do not know the truth or code it wrongly, and unknown targets.

    Raises:
        InputError: such a task or target; maps of labels or depth that are not what they should be.
    """
    for task in ctx.config.probe.tasks:
        data = probe_data(ctx, task)
        if not knows(ctx, TRUTHS[task], data):
            instead = f"{advise_classes(data)}, " if TRUTHS[task] is Truth.labels else ""
            raise InputError(
                f"Expected data that know {TRUTHS[task].value} for the probe of {task.name}, got"
                f" data={data.kind.name}: give {instead}probe_data.{task.name}, drop the task from probe.tasks, or"
                " ask for the scope alone (stage=report with data that know nothing)."
            )
        if task is not Task.classification:
            check_maps(ctx, data)
        else:
            find_known(ctx, data)[0].n_target_classes(ctx.config.probe.target)


def probe_variants(ctx: Context, seed: int, variants: Sequence[Ablation]) -> Probed:
    """Train and evaluate the probes of some variants, the original first; each set of tokens is an artifact.

    Tasks with data of their own have artifacts of their own: each variant has one per data set. Variants with equal
    tokens share one (an empty group has the original's), so what is stored in it names but the first of them.
    Other jobs may want some of the same variants: each is trained by the job that claims it first.
    """
    found: Probed = {variant: [] for variant in variants}
    assert variants[0].role is Role.original
    check_truths(ctx)
    sae_of(ctx, seed).get()
    n_new = n_all = 0
    for group in list_probe_groups(ctx):
        handles = {variant: AblationProbes.at(ctx, seed, group, variant) for variant in variants}
        while n_built := _probe_missing(ctx, seed, group, handles):
            n_new += n_built
        n_all += len({handle.hash for handle in handles.values()})
        for variant, handle in handles.items():
            found[variant].append(ctx.store.get(handle.spec))
    ctx.display.say(f"          probed ablations of seed {seed}: {n_new} built, {n_all - n_new} reused")
    return found


Handles = Mapping[Ablation, Handle[AblationResult]]


def _probe_missing(ctx: Context, seed: int, group: ProbeGroup, handles: Handles) -> int:
    """Probe the variants that are missing and that no other job is at, and return how many; 0: none is missing."""
    by_hash = {handle.hash: variant for variant, handle in reversed(list(handles.items()))}
    with ctx.store.claim([handle.spec for handle in handles.values()]) as claimed:
        if claimed:
            with ctx.recorded("probe"):
                _ProbeLoop(ctx, seed, group, handles).run([by_hash[name] for name in claimed])
        return len(claimed)


class _ProbeLoop:
    """One loop over variants of the tokens of one data set; a chunk becomes artifacts as soon as it is finished."""

    def __init__(self, ctx: Context, seed: int, group: ProbeGroup, handles: Handles) -> None:
        self.ctx, self.seed, self.group, self.handles = ctx, seed, group, handles
        self.sae = sae_of(ctx, seed)
        self.tokens = {split: Tokens.at(ctx, split, group.data) for split in ("train", "test")}
        self.upstream = {"sae": self.sae.get(), **{split: tokens.get() for split, tokens in self.tokens.items()}}
        self._is_resumed = False
        self.start_clock()

    def start_clock(self) -> None:
        """Let the seconds of the next chunk begin now."""
        self._last = time.perf_counter()

    def run(self, missing: list[Ablation]) -> None:
        """Train and evaluate what is missing.

        Raises:
            InputError: as `run_probes`.
        """
        ctx, probe, seed = self.ctx, self.group.probe, self.seed
        inputs = make_probe_inputs(ctx, seed, self.group.data)
        original = next(iter(self.handles))
        by_key = {variant.key(self.sae.hash): variant for variant in reversed(missing)}
        with ctx.track("probe", seed) as tracker, ctx.display.bar(f"probing, seed {seed}") as advance:
            key = [self.sae.hash, *(tokens.hash for tokens in self.tokens.values()), probe.cache_key_fields()]
            with ctx.store.open_progress("probe", key) as folder:
                self._is_resumed = any(folder.iterdir())
                run_probes(
                    missing,
                    inputs,
                    probe,
                    sae_key=self.sae.hash,
                    original_heads=None if original in missing else self._load(original).heads,
                    on_result=lambda key, result: self._keep(by_key[key], result),
                    progress=lambda what, done, of: advance(done, of, what),
                    folders=_StoredFolders(self, features_of(ctx, seed, self.group, missing)),
                    say=lambda sentence: ctx.display.say(f"          {sentence}"),
                    folder=folder,
                )
            if processes.is_main():
                for variant in by_key.values():
                    result = self._load(variant)
                    tracker.log(flatten(result.metrics, f"{result.variant['name']}/"))

    def _load(self, variant: Ablation) -> AblationResult:
        return load_result(self.ctx.store.get(self.handles[variant].spec).folder)

    def _keep(self, variant: Ablation, result: AblationResult) -> None:
        now = time.perf_counter()
        seconds, self._last = now - self._last, now

        def save(work: Workspace) -> None:
            save_result(work.folder, result)
            if not self._is_resumed:  # an earlier process has done a part: its seconds are lost
                work.notes["work"] = {"n": 1, "like": like_of(self.ctx, self.group), "seconds": seconds}

        with processes.alone():  # each process has variants of its own
            spec = self.handles[variant].spec
            self.ctx.store.get(spec, save, shared=False, **self.upstream)


def like_of(ctx: Context, group: ProbeGroup) -> object:
    """Return what the time of probing a variant depends on."""
    return [ctx.config.model.name, compute_hash(group.probe.cache_key_fields())]


class _StoredFolders(FeatureFolders):
    """Features as artifacts: other heads, another solver or an interrupted run find them again."""

    def __init__(self, loop: _ProbeLoop, handles: Mapping[str, Handle[Path]]) -> None:
        super().__init__(loop.ctx.store.root)
        self.loop, self.ctx, self.handles = loop, loop.ctx, handles

    def make(self, names: Sequence[str], fill: Callable[[dict[str, Path], Path | None], None]) -> dict[str, Path]:
        def build(works: dict[str, Workspace]) -> None:
            folder = works[min(works)].progress / compute_hash(sorted(works))
            folder.mkdir(exist_ok=True)
            start = time.perf_counter()
            with self.ctx.recorded("features"):
                fill({name: work.folder for name, work in works.items()}, folder)
            note_features({self.handles[name]: work for name, work in works.items()}, time.perf_counter() - start)

        specs = {name: self.handles[name].spec for name in names}
        upstream = dict.fromkeys(names, self.loop.upstream)
        made = self.ctx.store.get_together(specs, build, shared=True, upstream=upstream)
        self.loop.start_clock()  # their time is their own
        return {name: artifact.folder for name, artifact in made.items()}

    def check_disk(self, n_bytes: int) -> None:
        self.ctx.check_disk(n_bytes)
