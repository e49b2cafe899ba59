"""What trainer.profile=true shows and logs: one row per stage that was built, and all seconds of the run."""

from __future__ import annotations

import csv
import json
import time
from contextlib import suppress
from pathlib import Path

import pytest

from infoscope.pipeline.profiling import BETWEEN, Profiles
from infoscope.runtime import profile
from infoscope.runtime.profile import Kind, spent_on
from tests.support.pipeline_samples import run_tiny


def test_rows_add_up_what_was_built_and_the_rest_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])
    profiles = Profiles()
    with profiles.record(BETWEEN):
        now[0] += 1
        for seconds in (2, 4):
            with profiles.record("rank", "sample", "rank"), spent_on(Kind.encoder):
                now[0] += seconds
        with profiles.record("score"):
            now[0] += 1
            with spent_on(Kind.emd):
                now[0] += 3
    rows = profiles.make_table().records()
    shown = [(row["stage"], row["n_times"], row["seconds"], row["encoder_share"], row["emd_share"]) for row in rows]
    assert shown == [("rank + sample", 2, 6, 1, 0), ("score", 1, 4, 0, 0.75), (BETWEEN, None, 1, 0, 0)]
    logged = profiles.summarise()
    assert logged["rank-sample/encoder_s"] == 6
    assert (logged["score/seconds"], logged["score/emd_s"], logged["score/other_s"]) == (4, 3, 1)
    assert "score/encoder_s" not in logged


def test_what_failed_took_its_time_and_was_not_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(profile.time, "perf_counter", lambda: now[0])
    profiles = Profiles()
    with profiles.record(BETWEEN):
        for stage, error in (("tokens", None), ("tokens", OSError()), ("score", KeyboardInterrupt())):
            with suppress(OSError, KeyboardInterrupt), profiles.record(stage):
                now[0] += 2
                if error is not None:
                    raise error
    rows = [(row["stage"], row["n_times"], row["seconds"]) for row in profiles.make_table().records()]
    assert rows == [("tokens", 1, 4), ("score", 0, 2), (BETWEEN, None, 0)]


def test_a_run_logs_where_its_time_went(tmp_path: Path) -> None:
    start = time.perf_counter()
    run_tiny(tmp_path, "stage=train_sae", "trainer.profile=true", "logger=csv")
    took_s = time.perf_counter() - start
    (file,) = tmp_path.glob("csv/*/*/metrics.csv")
    with file.open() as opened:
        rows = [row for row in csv.DictReader(opened) if row["name"].startswith("profile/")]
    logged = {row["name"]: float(row["value"]) for row in rows}
    spent = {name: s for name, s in logged.items() if name.endswith("/seconds")}
    assert {f"profile/{stage}/seconds" for stage in ("scenes", "tokens", "train_sae", "all_the_rest")} == spent.keys()
    assert logged["profile/scenes/peak_bytes"] > 1e8
    built_s = sum(json.loads(file.read_text())["wall_s"] for file in tmp_path.glob("artifacts/*/*/manifest.json"))
    assert 0.9 * built_s < sum(spent.values()) <= took_s
