"""What latents are worth to each task, as `select.weights` predicts it, and what such weights are refused for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from infoscope.pipeline.context import Context, once
from infoscope.probes.config import Task
from infoscope.probes.selection import name_worth_rule
from infoscope.probes.worth import COLUMNS, Known, Weights, predict_worth
from infoscope.runtime.errors import InputError
from infoscope.stages.describe.stage import Describe
from infoscope.stages.images import hash_each_image
from infoscope.stages.latents import join_latents
from infoscope.stages.probe.run import list_probe_groups
from infoscope.stages.rank import Rank
from infoscope.stages.score.stage import Score


class SharedImages(InputError):
    """Weights were fitted on some of the images on which their choice would be probed.

    n_shared, n: test images that are the same, and all.
    """

    def __init__(self, n_shared: int, n: int) -> None:
        self.n_shared, self.n = n_shared, n
        super().__init__(
            f"select.weights was fitted on what features are worth on {n_shared:,} of these {n:,} test images, so that"
            " what it chooses would look too good: probe others, such as another data.seed of scenes or another"
            " data.root."
        )


@once
def weights_of(ctx: Context) -> Weights | None:
    """Return the weights that were asked for; None: none were.

    Raises:
        InputError: as `Weights.load`.
    """
    path = ctx.config.select.weights
    return None if path is None else Weights.load(Path(path))


def check_weights(ctx: Context) -> None:
    """Refuse weights of other tasks, and those fitted on some of the images on which the choice is probed.

    Raises:
        SharedImages: the latter.
        InputError: the former, or as `Weights.load`.
    """
    if (weights := weights_of(ctx)) is None:
        return
    probe, tasks = ctx.config.probe, set(weights.tasks)
    if not tasks & probe.heads:
        raise InputError(
            f"Expected select.weights of a task that is probed ({', '.join(sorted(probe.heads))}), got those of"
            f" {', '.join(sorted(tasks)) or 'no task'}."
        )
    is_classified = any(task.startswith(Task.classification.name) for task in tasks & probe.heads)
    if is_classified and weights.target != probe.target:
        raise InputError(
            f"Expected select.weights of probe.target={probe.target}, got those of {weights.target}: fit them again, or"
            " probe that."
        )
    images = {*list_test_images(ctx)}
    if shared := len(images & {*weights.images}):
        raise SharedImages(shared, len(images))


def list_test_images(ctx: Context) -> list[str]:
    """Return a hash for each test image of the probes, see `hash_each_image`."""
    groups = list_probe_groups(ctx)
    return sorted({one for group in groups for one in hash_each_image(ctx, "test", group.data)})


@once
def known_of(ctx: Context, seed: int) -> Known:
    """Return what weights may read of the latents; those that are scored and alive are members."""
    table = join_latents(ctx, seed, (Rank, Score, Describe))
    columns = {name: np.asarray(table[name], dtype=np.float64) for name in COLUMNS if name in table}
    return Known(columns, np.isfinite(columns["cds"]) & (table["mass"] > 0))


def predicted_worth_of(ctx: Context, seed: int) -> dict[str, Float[np.ndarray, " d_sae"]]:
    """Return {rule: predicted worth}, a rule for each of the weights' rules and each of the tasks that are probed.

    Rules that read a column which the data do not give are left out, see `say_worth`; none without weights.
    """
    if (weights := weights_of(ctx)) is None:
        return {}
    known = known_of(ctx, seed)
    return {
        name_worth_rule(rule, task): predict_worth(known, of)
        for rule, tasks in weights.rules.items()
        for task, of in tasks.items()
        if task in ctx.config.probe.heads and of.keys() <= known.columns.keys()
    }


def say_worth(ctx: Context) -> list[str]:
    """Say what the weights were fitted on, and which rules and features lack something."""
    if (weights := weights_of(ctx)) is None:
        return []
    known = [known_of(ctx, seed) for seed in ctx.config.seeds]
    read = {name for tasks in weights.rules.values() for of in tasks.values() for name in of}
    has = {name for name in read if name in known[0].columns}
    said = [
        "Most worth predicted: by weights of the ranks of what is named, and of their squares, which were fitted to the"
        f" effects of single features on {weights.fitted_on}; each task has a choice of its own.",
        *say_unknown(known, has),
    ]
    if lacking := sorted(read - has):
        without = [rule for rule, tasks in weights.rules.items() if any(not of.keys() <= has for of in tasks.values())]
        said.append(
            f"These data do not give {', '.join(lacking)}, which wants labels: {', '.join(without)} are left out."
        )
    return said


def say_unknown(known: Sequence[Known], names: Collection[str]) -> list[str]:
    """Say how many features lack some of the columns, and what they are taken for; nothing where none does."""
    n_members = sum(int(one.members.sum()) for one in known)
    n_lacking = sum(
        int((~np.isfinite([one.columns[name][one.members] for name in sorted(names)])).any(axis=0).sum())
        for one in known
    )
    if not n_lacking:
        return []
    return [
        f"{n_lacking:,} of {n_members:,} features fire in too few images to have all of these numbers, and count as"
        " average in those that they lack."
    ]
