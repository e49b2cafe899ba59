"""plan=true: what a command would reuse and build, counted by the stages, and how long that took before.

Seconds come from the manifests of artifacts that this machine, or one like it, has built; "-" where nothing like it
was. Nothing is built or measured for a plan.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infoscope.pipeline.passes import PassStage
from infoscope.pipeline.stage import Handle, Node, NotBuiltYet, Work
from infoscope.runtime.environment import describe_environment
from infoscope.runtime.manifests import MANIFEST, compute_hash
from infoscope.runtime.progress import format_bytes, format_seconds
from infoscope.runtime.read_only import MissingArtifact

Rates = Mapping[tuple[str, str], tuple[int, float]]
"""How many things were done in how many seconds, by kind and by the hash of what else that depends on."""


@dataclass(frozen=True)
class Step:
    """One thing that a command needs.

    what: stage and item.
    n_built, n_reused: artifacts to build, and that exist.
    is_bound: whether so many are built at most.
    work: what building one of them costs.
    seconds: for all that is to be built; None: nothing like it was built before.
    """

    what: str
    n_built: int
    n_reused: int
    is_bound: bool
    work: Work
    seconds: float | None


def make_plan(goals: Sequence[Node], rates: Rates | None = None) -> list[Step]:
    """Return what has to exist for some goals, in order; nothing is written into the store.

    Args:
        goals: of a context that builds nothing.
        rates: from which the seconds come, see `read_rates`.

    Raises:
        InputError: what the stages would refuse before they begin.
    """
    steps: dict[Any, Step] = {}
    read: set[Any] = set()
    """The tokens that passes read: of several, all measure in one reading."""

    def visit(node: Node) -> None:
        place = _find_place(node)
        if place in steps:
            return
        n_built, n_reused, is_bound = node.stage.count(node.ctx, *node.item)
        for _, needed in node.needs if n_built else ():  # what exists asks for nothing
            visit(needed)
        work = node.work() if n_built else Work()
        if n_built and isinstance(node.stage, PassStage):
            work = replace(work, forwards=0) if node.needs.tokens.place in read else work
            read.add(node.needs.tokens.place)
        seconds = find_seconds(rates or {}, node.stage.kind, work)
        total = None if seconds is None else n_built * seconds
        steps[place] = Step(node.stage.describe(node.ctx, *node.item), n_built, n_reused, is_bound, work, total)

    for goal in goals:
        visit(goal)
    return list(steps.values())


def _find_place(node: Node) -> Any:
    """Return the identity of a thing, which is one artifact though several configurations of a run ask for it."""
    if isinstance(node, Handle):
        with suppress(NotBuiltYet, MissingArtifact):
            return node.hash
    return node.ctx, node.place


def read_rates(root: Path) -> Rates:
    """Return how long the things below an artifacts folder took, on hardware like this machine's."""
    rates: dict[tuple[str, str], tuple[int, float]] = {}
    hardware = describe_environment()["hardware"]
    for file in root.glob(f"*/*/{MANIFEST}"):
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # somebody else's, or just deleted
            continue
        work = manifest.get("work")
        if work and manifest.get("hardware") == hardware:
            key = (manifest["stage"], compute_hash(work["like"]))
            n, seconds = rates.get(key, (0, 0.0))
            rates[key] = (n + work["n"], seconds + work.get("seconds", manifest["wall_s"]))
    return rates


def find_seconds(rates: Rates, kind: str, work: Work) -> float | None:
    """Return the seconds that some work takes, None if none like it was done before."""
    n, seconds = rates.get((kind, compute_hash(work.like)), (0, 0.0))
    return work.n * seconds / n if n and work.n else None


PROGRAM_BYTES = 11 * 10**8
"""What a process holds before it does anything, most of it torch: 1.0 to 1.2 GB resident, measured on Linux."""
HEADINGS = ("step", "reuse", "build", "forwards", "distances", "disk", "memory", "time")


def print_plan(steps: Sequence[Step], console: Console) -> None:
    """Print the steps, without columns that are empty, and their sums."""
    console.print(Text("What this command would do", style="italic"))  # as a title it would break in a narrow table
    table = Table(box=None, pad_edge=False)
    rows = [_describe(step) for step in steps]
    columns = {heading: column for heading, *column in zip(HEADINGS, *rows, strict=True) if any(column)}
    for heading in columns:
        table.add_column(heading, justify="left" if heading == "step" else "right", no_wrap=heading != "step")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    console.print(table)
    built = [step for step in steps if step.n_built]
    known, unknown = (sum(step.seconds or 0 for step in built), [step for step in built if step.seconds is None])
    disk = sum(step.n_built * step.work.disk_bytes for step in built)
    memory = max((step.work.memory_bytes for step in built), default=0)
    time = "an unknown time" if unknown else f"about {format_seconds(known)}"
    if known and unknown:
        time = f"more than {format_seconds(known)}"
    held = f"{format_bytes(memory)} of memory beside the program's {format_bytes(PROGRAM_BYTES)}"
    console.print(Text(f"Together {time}, {format_bytes(disk)} of disk, at most {held}."))
    if unknown:
        console.print(Text("-: nothing like it was built here before, so nothing is known of its time."))
    forwards, shared, naive = (_sum_up(built, name) for name in ("forwards", "shared_forwards", "naive_forwards"))
    said = f"Backbone: {forwards} forward passes are missing."
    if shared != "0":
        said += f" {shared} of them give the tokens of this sweep's other layers too: the first job runs them for all."
    if naive != "0":
        scoring = _sum_up([step for step in built if step.work.naive_forwards], "forwards")
        said += (
            f" Scores take {scoring} of them; the naive way, every latent encoding both crops of its own top images,"
            f" {naive}."
        )
    console.print(Text(said))
    for said in dict.fromkeys(step.work.says for step in built if step.work.says):
        console.print(Text(said))


def _sum_up(steps: Sequence[Step], name: str) -> str:
    """Return the sum of a count of the work of some steps, in words."""
    counted = [step for step in steps if getattr(step.work, name)]
    most = "at most " if any(step.work.is_bound for step in counted) else ""
    return f"{most}{sum(step.n_built * getattr(step.work, name) for step in counted):,}"


def _describe(step: Step) -> list[str]:
    """The texts under `HEADINGS`."""
    reused = str(step.n_reused or "")
    if not step.n_built:
        return [step.what, reused, *[""] * 6]
    built = f"{'≤ ' if step.is_bound else ''}{step.n_built}"
    work, bound = step.work, "≤ " if step.work.is_bound else ""
    counts = [f"{bound}{step.n_built * n:,}" if n else "" for n in (work.forwards, work.distances)]
    sizes = [format_bytes(n) if n else "" for n in (step.n_built * work.disk_bytes, work.memory_bytes)]
    return [step.what, reused, built, *counts, *sizes, "-" if step.seconds is None else format_seconds(step.seconds)]
