"""stage=check_data: every image of the data read, and all that is known of it; what is wrong is refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict

from infoscope.config.tree import Config
from infoscope.data.check import SplitCheck, check_images
from infoscope.data.config import DataConfig, DataKind
from infoscope.data.images import ImageSet
from infoscope.pipeline.context import Context
from infoscope.pipeline.run import open_context
from infoscope.report.tables import Align, Cell, Column, Table
from infoscope.runtime import processes
from infoscope.runtime.errors import InputError
from infoscope.runtime.files import write_json
from infoscope.runtime.job import Job
from infoscope.runtime.lightning import quiet_lightning
from infoscope.runtime.manifests import compute_hash
from infoscope.runtime.parts import Checkpoint
from infoscope.runtime.progress import Display
from infoscope.stages.images import open_sets
from infoscope.stages.probe.run import list_probe_groups

MAX_VALUES = 6
"""Values of a fact that are shown, the most frequent ones; the rest are counted together."""
MAX_LETTERS = 72


def check_data(config: Config, job: Job | None = None, display: Display | None = None) -> None:
    """Read every image of the experiment's data and of its probes' data, say what they hold, refuse what is wrong.

    All that is wrong is written to `<output_dir>/check_data/<use>-<data>-<split>.json`, with what was found. An
    interrupted check goes on where it was. Of several processes the main one reads.

    Raises:
        InputError: if anything is wrong.
    """
    n_processes = config.trainer.n_processes
    with quiet_lightning(), processes.sharing(n_processes, check_data, config, job):
        ctx = open_context(config, display, job)
        if processes.is_main():
            with processes.alone(), ctx.tracking:
                _check(ctx)


def _check(ctx: Context) -> None:
    own = ctx.config.data
    used = [(own, "data"), *((data, p.tasks[0].name) for data, p in list_probe_groups(ctx) if data != own)]
    for data, _ in used:
        if data.kind is not DataKind.scenes:
            open_sets(ctx, data)  # before any scene is rendered, and before anything is read
    folder = ctx.output_dir / "check_data"
    folder.mkdir(parents=True, exist_ok=True)
    wrong = [fault for data, use in used for images in open_sets(ctx, data) for fault in _read(ctx, images, data, use)]
    if wrong:
        raise InputError(f"Found {len(wrong)} wrong, all listed in {folder}; the first in {wrong[0]}")


def _read(ctx: Context, images: ImageSet, data: DataConfig, use: str) -> list[str]:
    """Read a split, write and print what it holds, and return what is wrong."""
    name = f"{use}-{data.kind.name}-{images.split}"
    file = ctx.output_dir / "check_data" / f"{name}.json"
    unfinished = Checkpoint(file.with_suffix(".pt"), compute_hash(images.fingerprint))
    with ctx.display.bar(f"reading {name}", len(images), "images") as advance:
        found = check_images(images, data.n_workers or None, advance, unfinished)
    write_json(file, asdict(found))
    unfinished.delete()
    _make_table(name, found).print(ctx.display.console)
    wrong = [f"{name}: {error}" for error in found.errors.values()]
    setting = "data" if use == "data" else f"probe_data.{use}"
    if found.n_published not in (None, found.n_images) and not data.subset:
        wrong.append(
            f"{name}: expected the {found.n_published:,} images that were published, found"
            f" {found.n_images:,}; complete the data, or set {setting}.subset=true if so many are meant."
        )
    return wrong


def _make_table(name: str, found: SplitCheck) -> Table:
    """Return what one split holds: layout, counts, facts by frequency, and the first things that are wrong."""
    table = Table(name, name, [Column("what", "what", Align.left), Column("found", "found", Align.left)])
    published = f" of {found.n_published:,} published" if found.n_published is not None else ""
    table.add_row("images", Cell(f"{found.n_images:,}{published}"))
    for what, value in found.found.items():
        if what != "images":
            table.add_row(what, Cell(_cut(value)))
    if found.left_out:
        table.add_row("left out", Cell(found.left_out.share))
        for kind, names in found.left_out.list_kinds():
            table.add_row("", Cell(_cut(f"{kind}: {names}")))
    for what, counts in found.facts.items():
        shown = Counter(counts).most_common(MAX_VALUES)
        rest = sum(counts.values()) - sum(n for _, n in shown)
        text = ", ".join(f"{value}: {n:,}" for value, n in shown)
        table.add_row(what, Cell(text + (f", {len(counts) - len(shown)} others: {rest:,}" if rest else "")))
    if found.depth:
        low, middle, high, share = (found.depth[name] for name in ("min_m", "median_m", "max_m", "measured_share"))
        table.add_row(
            "depth", Cell(f"{low:.2f} to {high:.2f} m, median {middle:.2f} m, {share:.0%} of pixels measured")
        )
    table.add_row("wrong", Cell(f"{len(found.errors):,}"))
    for error in list(found.errors.values())[:3]:
        table.notes.append(error)
    return table


def _cut(text: str) -> str:
    return text if len(text) <= MAX_LETTERS else text[: MAX_LETTERS - 3] + "..."
