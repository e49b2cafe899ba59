"""Where the time of a run goes, stage by stage: what `trainer.profile=true` prints and logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from infoscope.report.tables import Align, Column, Table
from infoscope.runtime.profile import Kind, Profile, recording

BETWEEN = "all the rest"
"""What the row is called of what the run did in no stage: loading, checksums, tables."""
OF_KIND = {
    Kind.reading: "reading",
    Kind.copying: "copying",
    Kind.forward: "forward",
    Kind.encoder: "encoder",
    Kind.training: "training",
    Kind.emd: "EMD",
    Kind.disk: "disk",
    Kind.waiting: "waiting",
    Kind.other: "other",
}
"""The heading of each kind of work."""


class Profiles:
    """What was worked on so far, in the order of the first of each kind of stage."""

    def __init__(self) -> None:
        self.of_stage: dict[str, list[Profile]] = {}
        self.n_finished: Counter[str] = Counter()

    @contextmanager
    def record(self, *stages: str) -> Iterator[None]:
        """Count what is done inside as the work of a stage, or of several that are made together.

        What ends by an error has taken its time, and is not among what was finished.
        """
        name = " + ".join(dict.fromkeys(stages))
        with recording() as spent:
            self.of_stage.setdefault(name, []).append(spent)
            yield
        self.n_finished[name] += 1

    def make_table(self) -> Table:
        """Return a row per kind of stage: seconds, share of each kind of work, peak memory; the rest comes last."""
        taken = [kind for kind in Kind if any(one.seconds[kind] for many in self.of_stage.values() for one in many)]
        on_device = any(one.device_bytes for many in self.of_stage.values() for one in many)
        columns = [
            Column("stage", "Stage", Align.left),
            Column("n_times", "Times", is_count=True),
            Column("seconds", "Time", digits=1, unit="s"),
            *(Column(f"{kind.name}_share", OF_KIND[kind], digits=0, scale=100, unit="%") for kind in taken),
            Column("peak_gb", "Memory", digits=2, unit="GB"),
            *([Column("device_gb", "On the device", digits=2, unit="GB")] if on_device else []),
        ]
        table = Table("profile", "Where the time went", columns)
        for stage, many in sorted(self.of_stage.items(), key=lambda item: item[0] == BETWEEN):
            total_s = sum(one.total_s for one in many)
            shares = [sum(one.seconds[kind] for one in many) / total_s if total_s else 0.0 for kind in taken]
            peaks = [max((one.peak_bytes or 0) for one in many), max((one.device_bytes or 0) for one in many)]
            gigabytes = [peak / 1e9 if peak else None for peak in peaks[: 1 + on_device]]
            table.add_row(stage, None if stage == BETWEEN else self.n_finished[stage], total_s, *shares, *gigabytes)
        table.notes.append(
            "Times counts what was finished; what failed took its time all the same. Encoder is the SAE's, forward"
            " the backbone's; other is what has no column, such as statistics, figures and compiling. Time that"
            " helpers work is not counted, but what this process waits for them is. Starting the program comes before."
            " Memory is the most that this process held at once, its imports included. On CUDA a profiled run waits"
            " for the device at each mark, and is slower than one that is not."
        )
        return table

    def summarise(self) -> dict[str, float]:
        """Return what is logged: by stage its seconds, the seconds of each kind of work that took any, its peaks."""
        found: dict[str, float] = {}
        for stage, many in self.of_stage.items():
            name = stage.replace(" + ", "-").replace(" ", "_")
            found[f"{name}/seconds"] = sum(one.total_s for one in many)
            for kind in Kind:
                if seconds := sum(one.seconds[kind] for one in many):
                    found[f"{name}/{kind.name}_s"] = seconds
            peaks = {"peak_bytes": [one.peak_bytes for one in many], "device_bytes": [one.device_bytes for one in many]}
            found |= {f"{name}/{which}": float(max(n or 0 for n in each)) for which, each in peaks.items() if any(each)}
        return found
