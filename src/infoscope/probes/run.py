"""Training and evaluating the probes of many variants: chunk by chunk, each finished variant handed on at once."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import Tensor

from infoscope.probes.checks import check_probes
from infoscope.probes.classification import count_variants_at_a_time, measure_classification, train_classification
from infoscope.probes.config import ProbeConfig, Readout, Task
from infoscope.probes.dense import DenseProbes, make_dense_views
from infoscope.probes.extraction import measure_shares
from infoscope.probes.feature_files import WantedFeatures, write_features
from infoscope.probes.features import MEANS, FeatureFolders, Features
from infoscope.probes.heads import LinearMaps, join_maps
from infoscope.probes.inputs import ProbeInputs
from infoscope.probes.rates import Heads, TaskOutcome, Trained
from infoscope.probes.results import AblationResult
from infoscope.runtime import processes
from infoscope.runtime.parts import Checkpoint, cut, load_state, save_state
from infoscope.runtime.progress import format_bytes
from infoscope.scope.ablations import Ablation, Progress, Role, describe_variant, finite, no_progress
from infoscope.scope.editing import AblationEditor

_RESULTS_FILE = "results.pt"
OnResult = Callable[[str, AblationResult], object]
"""Called with (variant key, result) as soon as all tasks of the variant are finished."""


def run_probes(
    variants: Sequence[Ablation],
    inputs: ProbeInputs,
    config: ProbeConfig,
    sae_key: str = "",
    original_heads: Heads | None = None,
    on_result: OnResult = lambda key, result: None,
    progress: Progress = no_progress,
    folders: FeatureFolders | None = None,
    say: Callable[[str], object] = lambda sentence: None,
    folder: Path | None = None,
) -> dict[str, AblationResult]:
    """Return {variant key: result}; variants with equal tokens are trained once, under the name of the first.

    The numbers depend on the configuration and the variant alone: not on which others run with it, nor on the chunks
    (up to the rounding of differently shaped products).

    Classification reads features that one pass over each split makes for all variants; heads are then trained for
    `variants_per_chunk` variants at a time, those of classification for as many as `memory_gb` allows. Several
    processes of a job share that pass, and then the chunks: heads know nothing of each other, so no gradient is
    exchanged, and what a process returns are the results of its own chunks.

    Args:
        sae_key: what tells SAEs apart in the keys, see `Ablation.key`.
        original_heads: `heads` of the original variant's result, where it was made before; otherwise the original must
            be among the variants, and is trained first.
        on_result: gets each result as soon as its chunk is done, so that an interruption loses one chunk at most.
        folders: where the features of classification lie, or will lie; None: in a temporary folder, for this run.
        say: callback(sentence), called once if not all variants are classified at a time: says how many are.
        folder: where an interrupted run goes on from, in the middle of a chunk too; None: nowhere. Results are the
            same, bit for bit, if the rest of the same variants is asked for.

    Raises:
        InputError: probes that an edit could not change, an unknown target, too few images, NaN or Inf in tokens, heads
            that diverge at every learning rate.
    """
    check_probes(config, inputs.backbone, inputs.layer, inputs.train.images, inputs.edits_patches, inputs.edits_prefix)
    unique = _unite(variants, sae_key)
    first = next(iter(unique), "")
    assert original_heads is not None or not unique or unique[first].role is Role.original, (
        "the original tokens' heads are neither given nor among the variants"
    )
    results = {} if folder is None else _hand_on_finished(folder, list(unique), on_result)
    if original_heads is None and first in results:
        original_heads = results[first].heads
    unique = {key: variant for key, variant in unique.items() if key not in results}
    if not unique:
        return results
    here, keys = processes.current(), list(unique)
    chunks = [keys[part] for part in cut(len(keys), min(config.variants_per_chunk, -(-len(keys) // here.size)))]
    with ExitStack() as stack:
        work = _Work(inputs, config, unique, folder, progress)
        if Task.classification in config.tasks:
            in_memory = folders or FeatureFolders(Path(stack.enter_context(tempfile.TemporaryDirectory())))
            work.make_features(in_memory, say)
        results |= work.run(chunks[here.rank :: here.size] or [[]], original_heads, on_result)
    processes.barrier()
    return results


class _Work:
    """What the chunks of a run share."""

    def __init__(
        self,
        inputs: ProbeInputs,
        config: ProbeConfig,
        variants: Mapping[str, Ablation],
        folder: Path | None,
        progress: Progress,
    ) -> None:
        self.inputs, self.config, self.variants = inputs, config, variants
        self.folder, self.progress = folder, progress
        dense_rows = inputs.choose_rows(config.n_dense_train_images, config.n_dense_test_images, config.seed)
        views = make_dense_views(inputs, config, dense_rows, progress)
        self.dense = [DenseProbes(inputs, config, view) for view in views]
        self.rows = inputs.choose_rows(config.n_train_images, config.n_test_images, config.seed)
        self.features: Features | None = None
        self.size = config.variants_per_chunk

    def make_features(self, folders: FeatureFolders, say: Callable[[str], object]) -> None:
        """Make what classification reads, as far as it is missing, by one pass over each split.

        Says how many variants are classified together, if that is not all of them.
        """
        inputs, config, variants, rows = self.inputs, self.config, self.variants, self.rows

        def fill(missing: dict[str, Path], folder: Path | None) -> None:
            wanted = WantedFeatures(inputs, variants, missing, folder)
            write_features([wanted], config, rows, folders.check_disk, self.progress)

        n_classes, n_images = inputs.train.images.n_target_classes(config.target), sum(map(len, rows.values()))
        self.size, n_bytes = count_variants_at_a_time(config, n_images, inputs.sae.d_in, n_classes)
        if self.size < len(variants):
            of = f"{self.size} of {len(variants)} variants"
            say(f"classification: {of} at a time, {format_bytes(self.size * n_bytes)}")
        names = [*variants, MEANS] if Readout.patch_mean in config.readouts else list(variants)
        self.features = Features(inputs, config, folders.make(names, fill), rows)

    def run(
        self, chunks: Sequence[Sequence[str]], original_heads: Heads | None, on_result: OnResult
    ) -> dict[str, AblationResult]:
        """Train and measure some chunks of variants, of which one may be empty, and hand their results on."""
        results = {}
        for chunk in chunks:
            trained = self.train(chunk) if chunk else {}
            if original_heads is None:  # nobody can measure before; the main process has trained them just now
                own = {task: maps.take(slice(1)).to("cpu") for task, (maps, _) in trained.items()}
                original_heads = processes.broadcast(own)
            if chunk:
                measured = dict(self.measure(chunk, trained, original_heads))
                self.hand_on(chunk, measured, on_result)
                results |= measured
        return results

    def _open(self, chunk: Sequence[str], name: str = "") -> Path | None:
        """Return where work on a chunk, or on some of it, is kept."""
        if self.folder is None:
            return None
        folder = self.folder / hashlib.sha256("\n".join(chunk).encode()).hexdigest()[:16] / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def hand_on(self, chunk: Sequence[str], measured: Mapping[str, AblationResult], on_result: OnResult) -> None:
        """Hand on a chunk's results, kept until all are: retrained in another batch, the rest rounds otherwise."""
        folder = self._open(chunk)
        if folder is not None:
            save_state(folder / _RESULTS_FILE, {key: _to_state(result) for key, result in measured.items()})
        for key, result in measured.items():
            on_result(key, result)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _measure_shares(self, chunk: Sequence[str]) -> list[tuple[float, float]]:
        """Return the shares of mass and energy that each variant removes, as the features know them or by a pass."""
        if self.features is not None:
            return [self.features.shares(key) for key in chunk]
        variants, folder = [self.variants[key] for key in chunk], self._open(chunk, "shares")
        return measure_shares(self.inputs, self.config, self.rows["test"], variants, folder, self.progress)

    def _divide(self, chunk: Sequence[str]) -> list[dict[str, Ablation]]:
        """Return a chunk as what classification holds at a time."""
        return [{key: self.variants[key] for key in chunk[part]} for part in cut(len(chunk), self.size)]

    def train(self, chunk: Sequence[str]) -> Trained:
        """Return the heads of all tasks for a chunk of variants, the chosen ones; kept once they are there."""
        folder = self._open(chunk)
        editor, trained = AblationEditor(self.inputs.sae, [self.variants[key] for key in chunk]), {}
        features, parts = self.features, []
        with processes.alone():
            for probes in self.dense:
                trained |= _train_once(probes.name, folder, partial(probes.train, editor, folder))
            if features is not None:
                for number, part in enumerate(self._divide(chunk)):
                    at = self._open(chunk, f"classification-{number}")
                    train = partial(train_classification, self.inputs, self.config, features, part, at, self.progress)
                    parts.append(_train_once("classification", at, train))
        for task in parts[0] if parts else []:
            maps, records = zip(*(part[task] for part in parts), strict=True)
            trained[task] = (join_maps([of.to("cpu") for of in maps]), list(chain(*records)))
        return trained

    def measure(
        self, chunk: Sequence[str], trained: Trained, original_heads: Heads
    ) -> Iterator[tuple[str, AblationResult]]:
        """Yield (key, result) of a chunk's variants on the test split."""
        editor, seen = AblationEditor(self.inputs.sae, [self.variants[key] for key in chunk]), {}
        with processes.alone():
            for probes in self.dense:
                seen |= probes.measure_test(editor, trained, original_heads, self._open(chunk))
            shares = dict(zip(chunk, self._measure_shares(chunk), strict=True))
        first = 0
        for part in self._divide(chunk):
            read: dict[str, TaskOutcome] = {}
            if self.features is not None:
                here = slice(first, first + len(part))
                of_part = {task: (maps.take(here), records[here]) for task, (maps, records) in trained.items()}
                read = measure_classification(self.inputs, self.config, self.features, part, of_part, original_heads)
            for i, (key, variant) in enumerate(part.items()):
                places = {task: (outcome, i) for task, outcome in read.items()}
                places |= {task: (outcome, first + i) for task, outcome in seen.items()}
                yield key, _assemble(variant, shares[key], places)
            first += len(part)


def _hand_on_finished(folder: Path, keys: Sequence[str], on_result: OnResult) -> dict[str, AblationResult]:
    """Hand on what an interrupted run had worked out of the variants asked for, in order, and return it everywhere.

    What was kept of it is deleted then; what other jobs keep stays.
    """
    results = {}
    if processes.current().rank == 0:
        found = {key: state for _, states in _load_finished(folder) for key, state in states.items()}
        results = {key: _from_state(found[key]) for key in keys if key in found}
        for key, result in results.items():
            on_result(key, result)
        for path, states in _load_finished(folder):
            if any(key in results for key in states):
                shutil.rmtree(path.parent, ignore_errors=True)
    return processes.broadcast(results)


def _load_finished(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the file of each finished chunk, and the state of each of its results by variant key."""
    for path in sorted(folder.glob(f"*/{_RESULTS_FILE}")):
        with suppress(FileNotFoundError):  # another job's, which has just handed it on
            yield path, load_state(path)


def _to_state(result: AblationResult) -> dict[str, Any]:
    return {**result.to_json(), "heads": {task: maps._asdict() for task, maps in result.heads.items()}}


def _from_state(state: dict[str, Any]) -> AblationResult:
    return AblationResult(**{**state, "heads": {task: LinearMaps(**maps) for task, maps in state["heads"].items()}})


def _train_once(name: str, folder: Path | None, train: Callable[[], Trained]) -> Trained:
    """Return the heads that lie in the folder, or train them and keep them there."""
    kept = Checkpoint(folder and folder / f"trained-{name}.pt")
    state = kept.load()
    if state is not None:
        return {task: (LinearMaps(one["weight"], one["bias"]), one["lr"]) for task, one in state.items()}
    trained = train()
    kept.save({task: {**maps._asdict(), "lr": records} for task, (maps, records) in trained.items()})
    return trained


def _unite(variants: Sequence[Ablation], sae_key: str) -> dict[str, Ablation]:
    """Return variants by key, the original first; of those with equal tokens the first one."""
    unique: dict[str, Ablation] = {}
    for variant in sorted(variants, key=lambda variant: variant.role is not Role.original):
        unique.setdefault(variant.key(sae_key), variant)
    return unique


def _assemble(
    variant: Ablation, shares: tuple[float, float], places: dict[str, tuple[TaskOutcome, int]]
) -> AblationResult:
    """Return the result of a variant: of each task, what lies at its place of an outcome."""

    def read(values: dict[str, Tensor], place: int) -> dict[str, float | None]:
        # torchmetrics gives a single head's value without its axis.
        return {name: finite(value.reshape(-1)[place].item()) for name, value in values.items()}

    return AblationResult(
        describe_variant(variant, *shares),
        {task: read(outcome.metrics, place) for task, (outcome, place) in places.items()},
        {task: read(outcome.frozen_head, place) for task, (outcome, place) in places.items()},
        {task: outcome.lr[place] for task, (outcome, place) in places.items()},
        {
            task: LinearMaps(*(part.detach().cpu().clone() for part in outcome.heads.take(slice(place, place + 1))))
            for task, (outcome, place) in places.items()
        },
    )
