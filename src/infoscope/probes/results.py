"""What came out for one variant, as a JSON file and the heads it was measured with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from infoscope.probes.heads import LinearMaps
from infoscope.runtime.errors import InputError
from infoscope.scope.ablations import Ablation, describe_variant

RESULT_FILE, HEADS_FILE = "result.json", "heads.safetensors"


@dataclass
class AblationResult:
    """One row of the ablation table.

    Args:
        variant: name, mode, role, group, control, draw, n_latents, empty, overlap, mass_share_train (on the training
            split, what controls were matched by), mass_share and energy_share (on the test tokens).
        metrics: {"classification/<readout>" | "segmentation" | "depth": {metric: value}} of heads trained on this
            variant's tokens; None: nothing to measure on.
        frozen_head: the same of the heads trained on the original tokens, applied to this variant's.
        lr: {task: {"best", "at_edge", "held_out": {learning rate: metric}}}.
        heads: {task: the chosen head, one variant}, maps of raw tokens or vectors.
    """

    variant: dict[str, Any]
    metrics: dict[str, dict[str, float | None]]
    frozen_head: dict[str, dict[str, float | None]]
    lr: dict[str, dict[str, Any]]
    heads: dict[str, LinearMaps] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the heads, as plain JSON types."""
        return {"variant": self.variant, "metrics": self.metrics, "frozen_head": self.frozen_head, "lr": self.lr}

    def relabel(self, variant: Ablation) -> AblationResult:
        """Return the same result for another variant with the same tokens (equal groups, empty groups)."""
        shares = {name: self.variant[name] for name in ("mass_share", "energy_share")}
        return AblationResult(describe_variant(variant, **shares), self.metrics, self.frozen_head, self.lr, self.heads)


def load_results(folders: Sequence[Path], variant: Ablation) -> AblationResult:
    """Return the results of one variant on one or more data sets as one, named after `variant`.

    The removed shares are those on the first data set's test tokens.
    """
    first, *others = (load_result(folder) for folder in folders)
    for other in others:
        for name in ("metrics", "frozen_head", "lr", "heads"):
            getattr(first, name).update(getattr(other, name))
    return first.relabel(variant)


def save_result(folder: Path, result: AblationResult) -> None:
    """Write `result.json` and `heads.safetensors` into an existing folder."""
    tensors = {}
    for task, maps in result.heads.items():
        tensors[f"{task}.weight"], tensors[f"{task}.bias"] = maps.weight[0].cpu(), maps.bias[0].cpu()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / HEADS_FILE)
    (folder / RESULT_FILE).write_text(json.dumps(result.to_json(), indent=2, allow_nan=False), encoding="utf-8")


def load_result(folder: Path) -> AblationResult:
    """Return what `save_result` wrote.

    Raises:
        InputError: if a file is missing or damaged.
    """
    try:
        content: Mapping[str, Any] = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / HEADS_FILE)
        tasks = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
        heads = {task: LinearMaps(tensors[f"{task}.weight"][None], tensors[f"{task}.bias"][None]) for task in tasks}
        return AblationResult(content["variant"], content["metrics"], content["frozen_head"], content["lr"], heads)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputError(
            f"Expected the result of a probe in {folder}, found none that can be read: {error}."
        ) from error
