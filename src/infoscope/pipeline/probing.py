"""The probe stage's work: what is missing is trained in one loop, each variant becomes an artifact of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from infoscope.config import Stage
from infoscope.data.images import ImageSet, LabelledImages
from infoscope.pipeline.workbench import Workbench
from infoscope.probes.checks import check_probes
from infoscope.probes.config import ProbeConfig
from infoscope.probes.features import FeatureFolders
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.probes.results import VariantResult, load_result, save_result
from infoscope.probes.run import run_probes
from infoscope.probes.variants import Variant
from infoscope.runtime import processes
from infoscope.runtime.manifests import Artifact, Spec, compute_hash
from infoscope.runtime.progress import flatten
from infoscope.runtime.store import Workspace
from infoscope.sae.config import TokenChoice
from infoscope.vision.backbone import Backbone
from infoscope.vision.token_source import TokenSource


def build_probes(
    bench: Workbench,
    backbone: Backbone,
    seed: int,
    missing: list[Variant],
    specs: dict[Variant, Spec],
    original: Artifact | None,
    sae: Artifact,
    train: tuple[Artifact, TokenSource, ImageSet],
    test: tuple[Artifact, TokenSource, ImageSet],
    probe: ProbeConfig,
    features: Mapping[str, Spec],
    backbone_at: Callable[[int], Backbone],
    n_workers: int,
) -> None:
    """Train what is missing in one loop; a chunk of variants becomes artifacts as soon as it is finished.

    Args:
        missing: the variants to train; `specs` says which artifact each becomes.
        original: of the unedited tokens, whose heads are read; None: it is the first of the missing.
        train, test: of each split, its tokens as an artifact and as they are read, and its images.
        probe: the probes of the tasks that these images are for.
        features: what classification's features become, by variant key and `MEANS`.
        backbone_at, n_workers: for crops, see `ProbeInputs`.

    Raises:
        InputError: as `run_probes`.
    """
    assert isinstance(train[2], LabelledImages)
    assert isinstance(test[2], LabelledImages)
    by_key = {variant.key(sae.hash): specs[variant] for variant in reversed(missing)}
    inputs = ProbeInputs(
        bench.load_sae(sae),
        ProbeData(train[1], train[2]),
        ProbeData(test[1], test[2]),
        backbone,
        bench.config.model.layer,
        edits_prefix=bench.config.sae.tokens is TokenChoice.all,
        backbone_at=backbone_at,
        n_workers=n_workers,
    )
    check_probes(probe, inputs.backbone, inputs.layer, train[2], inputs.edits_patches, inputs.edits_prefix)
    upstream = {"sae": sae, "train": train[0], "test": test[0]}
    with bench.track(Stage.probe, seed) as tracker, bench.display.bar(f"probing, seed {seed}") as advance:

        def keep(key: str, result: VariantResult) -> None:
            with processes.alone():  # each process has variants of its own
                bench.get(by_key[key], lambda work: save_result(work.folder, result), shared=False, **upstream)

        key = [sae.hash, train[0].hash, test[0].hash, probe.determining()]
        with bench.store.open_progress("probe", key) as folder:
            run_probes(
                missing,
                inputs,
                probe,
                sae_key=sae.hash,
                original_heads=load_result(original.folder).heads if original else None,
                on_result=keep,
                progress=lambda what, done, of: advance(done, of, what),
                folders=_StoredFolders(bench, features, upstream),
                say=lambda sentence: bench.display.say(f"          {sentence}"),
                folder=folder,
            )
        if processes.is_main():
            for spec in by_key.values():
                made = bench.store.find(spec)
                assert made is not None, "a variant that was just trained is not in the store"
                result = load_result(made.folder)
                tracker.log(flatten(result.metrics, f"{result.variant['name']}/"))


class _StoredFolders(FeatureFolders):
    """Features as artifacts: other heads, another solver or an interrupted run find them again."""

    def __init__(self, bench: Workbench, specs: Mapping[str, Spec], upstream: dict[str, Artifact]) -> None:
        super().__init__(bench.store.root)
        self.bench, self.specs, self.upstream = bench, specs, upstream

    def make(self, names: Sequence[str], fill: Callable[[dict[str, Path], Path | None], None]) -> dict[str, Path]:
        def build(works: dict[str, Workspace]) -> None:
            folder = works[min(works)].progress / compute_hash(sorted(works))
            folder.mkdir(exist_ok=True)
            fill({name: work.folder for name, work in works.items()}, folder)

        specs = {name: self.specs[name] for name in names}
        made = self.bench.get_together(specs, build, shared=True, **self.upstream)
        return {name: artifact.folder for name, artifact in made.items()}

    def check_disk(self, n_bytes: int) -> None:
        self.bench.check_disk(n_bytes)
