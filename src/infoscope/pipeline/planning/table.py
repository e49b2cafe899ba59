"""The plan as people read it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infoscope.pipeline.planning.known import Plan
from infoscope.runtime.progress import format_bytes, format_seconds


def print_plan(plan: Plan, console: Console) -> None:
    """Print the steps, their sums, and the naive cost beside ours."""
    table = Table(title="What this command would do", title_justify="left", box=None, pad_edge=False)
    for heading, justify in (
        ("step", "left"),
        ("reuse", "right"),
        ("build", "right"),
        ("forwards", "right"),
        ("distances", "right"),
        ("disk", "right"),
        ("memory", "right"),
        ("time", "right"),
    ):
        table.add_column(heading, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for step in plan.steps:
        bound = "≤ " if step.is_bound else ""
        counts = [f"{bound}{n:,}" if n else "" for n in (step.forwards, step.distances)]
        sizes = [format_bytes(n) if n else "" for n in (step.disk_bytes, step.memory_bytes)]
        builds = str(step.n_built) if step.n_built else ""
        seconds = format_seconds(step.seconds) if step.n_built else ""
        table.add_row(step.what, str(step.n_reused or ""), builds, *counts, *sizes, seconds)
    console.print(table)
    forwards = sum(step.forwards for step in plan.steps)
    disk = sum(step.disk_bytes for step in plan.steps)
    memory = max((step.memory_bytes for step in plan.steps), default=0)
    console.print(
        Text(
            f"Together about {format_seconds(plan.seconds)}, {format_bytes(disk)} of disk, at most"
            f" {format_bytes(memory)} of memory beside the libraries; estimated on this machine."
        )
    )
    resumed = sum(step.resumed for step in plan.steps)
    if resumed:
        console.print(Text(f"Remaining blocks: {resumed:,} passes of images with edited tokens are missing."))
    console.print(
        Text(
            f"Backbone: {forwards:,} forward passes are missing. The naive way, every latent encoding both"
            f" crops of its own top images, takes {plan.naive_forwards:,}"
            f" ({format_seconds(plan.naive_s)})."
        )
    )
