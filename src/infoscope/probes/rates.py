"""Choosing each head's learning rate (or L2 strength) on images held out of training, and what comes out for a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from infoscope.probes.heads import LinearMaps
from infoscope.runtime.errors import InputError

Heads = dict[str, LinearMaps]
"""{task: trained heads}, of one variant or of several."""
Trained = dict[str, tuple[LinearMaps, list[dict[str, Any]]]]
"""{task: (the chosen head of each variant, how its rate or strength was chosen)}."""


@dataclass
class TaskOutcome:
    """One task, all variants of a chunk.

    Args:
        heads: the chosen ones.
        lr: for each variant {"best", "at_edge", "held_out": {learning rate, or L2 strength: metric}}, and what the
            solver adds.
        metrics: of these heads, on the test split.
        frozen_head: the same of the original variant's head, applied to every variant's tokens.
    """

    heads: LinearMaps
    lr: list[dict[str, Any]]
    metrics: dict[str, Float[Tensor, " n_variants"]]
    frozen_head: dict[str, Float[Tensor, " n_variants"]]


def choose_rates(
    task: str, lrs: Sequence[float], held_out: Float[Tensor, "n_variants n_rates"], higher_is_better: bool
) -> tuple[Int[Tensor, " n_variants"], list[dict[str, Any]]]:
    """Return which rate is best for each variant, and a record of the choice.

    Among equals the one nearest to the middle of the grid wins, so that a tie is not reported as an edge.

    Args:
        held_out: the metric on images held out; NaN for a head that diverged.

    Raises:
        InputError: if every rate of a variant is NaN.
    """
    if held_out.isnan().all(1).any():
        name = task.split("/")[0]
        raise InputError(
            f"Every learning rate of {task} gave NaN on the images held out: lower probe.{name}_lrs, or raise"
            " probe.held_out_share until some of these images have ground truth."
        )
    score = (held_out if higher_is_better else -held_out).nan_to_num(nan=-torch.inf).cpu()
    middle = (len(lrs) - 1) / 2
    best, records = [], []
    for row, values in zip(score.tolist(), held_out.tolist(), strict=True):
        top = max(row)
        place = min((i for i, value in enumerate(row) if value == top), key=lambda i: abs(i - middle))
        best.append(place)
        measured = {f"{lr:g}": None if value != value else value for lr, value in zip(lrs, values, strict=True)}
        at_edge = len(lrs) > 1 and place in (0, len(lrs) - 1)  # a rate that was given was not chosen
        records.append({"best": lrs[place], "at_edge": at_edge, "held_out": measured})
    return torch.tensor(best, device=held_out.device), records
