"""Which probes are refused because nothing could change what they read."""

from __future__ import annotations

from infoscope.data.images import ImageSet
from infoscope.data.scenes.scene_set import SceneSet
from infoscope.probes.config import ProbeConfig, Readout, Task
from infoscope.runtime.errors import InputError
from infoscope.vision.backbone import Backbone


def check_probes(
    config: ProbeConfig,
    backbone: Backbone | None,
    layer: int,
    images: ImageSet | type[SceneSet],
    edits_patches: bool = True,
    edits_prefix: bool = False,
) -> None:
    """Refuse probes that an edit could not change, and targets that the data do not have.

    Args:
        backbone: needed for the readout cls_final alone.
        layer: the hooked block.
        edits_patches, edits_prefix: which tokens the SAE was trained on, and so which are edited.

    Raises:
        InputError: a readout or task that reads no edited token, cls_final from the last block, unknown target.
    """
    dense = [task.name for task in (Task.segmentation, Task.depth) if task in config.tasks]
    if dense and not edits_patches:
        raise InputError(f"{' and '.join(dense)} read patch tokens, which an SAE for CLS leaves alone: drop the task.")
    if Task.classification not in config.tasks:
        return
    if Readout.patch_mean in config.readouts and not edits_patches:
        raise InputError("The readout patch_mean cannot change under an SAE for CLS alone: use cls_layer or cls_final.")
    if Readout.cls_layer in config.readouts and not edits_prefix:
        raise InputError(
            "The readout cls_layer cannot change: the SAE was trained on patch tokens and leaves CLS alone; use"
            " patch_mean or cls_final, or an SAE that covers CLS."
        )
    if Readout.cls_layer in config.readouts and backbone is not None and not backbone.has_cls:
        raise InputError("The readout cls_layer needs a CLS token, which this model does not have: use patch_mean.")
    if Readout.cls_final in config.readouts:
        if backbone is None:
            raise InputError("The readout cls_final needs the backbone, to go on from the edited tokens: give it.")
        if backbone.check_layer(layer) == backbone.n_layers - 1:
            raise InputError(
                f"The readout cls_final needs a block after the hooked one, but model.layer={layer} is the last: use"
                " patch_mean, or an earlier layer."
            )
    n_classes = images.n_target_classes(config.target)
    if n_classes < 2:
        raise InputError(f"Expected a target with at least two classes, but {config.target!r} has {n_classes}.")
