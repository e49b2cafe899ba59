"""The probe stage's work: what is missing is trained in one loop, each variant becomes an artifact of its own."""

from __future__ import annotations

from infoscope.artifacts import Artifact, Spec
from infoscope.config import Stage
from infoscope.data.images import ImageSet, LabelledImages
from infoscope.probes.config import ProbeConfig, check_probes
from infoscope.probes.inputs import ProbeData, ProbeInputs
from infoscope.probes.results import VariantResult, load_result, save_result
from infoscope.probes.run import run_probes
from infoscope.probes.variants import Variant
from infoscope.progress import flatten
from infoscope.sae.config import TokenChoice
from infoscope.vision.backbone import Backbone
from infoscope.vision.extract import TokenCache
from infoscope.workbench import Workbench


def build_probes(
    bench: Workbench,
    backbone: Backbone,
    seed: int,
    missing: list[Variant],
    specs: dict[Variant, Spec],
    original: Spec,
    sae: Artifact,
    train: tuple[Artifact, ImageSet],
    test: tuple[Artifact, ImageSet],
    probe: ProbeConfig,
) -> None:
    """Train what is missing in one loop; a chunk of variants becomes artifacts as soon as it is finished.

    Args:
        missing: the variants to train; `specs` says which artifact each becomes.
        original: of the unedited tokens, whose heads are read where they exist already.
        train, test: of each split, its tokens and its images.
        probe: the probes of the tasks that these images are for.

    Raises:
        InputError: as `run_probes`.
    """
    assert isinstance(train[1], LabelledImages)
    assert isinstance(test[1], LabelledImages)
    found = bench.store.find(original)
    by_key = {variant.key(sae.hash): specs[variant] for variant in reversed(missing)}
    inputs = ProbeInputs(
        bench.load_sae(sae),
        ProbeData(TokenCache(train[0].folder), train[1]),
        ProbeData(TokenCache(test[0].folder), test[1]),
        backbone,
        bench.config.model.layer,
        edits_prefix=bench.config.sae.tokens is TokenChoice.all,
    )
    check_probes(probe, inputs.backbone, inputs.layer, train[1], inputs.edits_patches, inputs.edits_prefix)
    with bench.track(Stage.probe, seed) as tracker, bench.display.bar(f"probing, seed {seed}") as advance:

        def keep(key: str, result: VariantResult) -> None:
            upstream = {"sae": sae, "train": train[0], "test": test[0]}
            bench.get(by_key[key], lambda work: save_result(work.folder, result), **upstream)
            tracker.log(flatten(result.metrics, f"{result.variant['name']}/"))

        run_probes(
            missing,
            inputs,
            probe,
            sae_key=sae.hash,
            original_heads=load_result(found.folder).heads if found else None,
            on_result=keep,
            progress=lambda what, done, of: advance(done, of),
        )
