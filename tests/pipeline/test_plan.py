"""What a command would do is said beforehand, and nothing is done."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from rich.console import Console

from infoscope.pipeline.context import Context
from infoscope.pipeline.plan import HEADINGS, Step, find_seconds, print_plan, read_rates
from infoscope.pipeline.run import check, plan_stage
from infoscope.pipeline.stage import Work
from infoscope.runtime.errors import InputError
from infoscope.runtime.job import Job
from infoscope.runtime.manifests import MANIFEST
from infoscope.runtime.progress import format_bytes, format_seconds
from infoscope.runtime.store import Store
from infoscope.scope.ranking import Ranking
from infoscope.stages.backbone import load_backbone
from infoscope.stages.rank import Rank
from infoscope.stages.tokens import Tokens
from tests.support.pipeline_samples import (
    FEATURES,
    N_TEST,
    N_TRAIN,
    Recorder,
    copy_run,
    draw_without_saving,
    find_folder,
    finish_tiny_run,
    make_tiny_config,
    run_tiny,
)

D_SAE, K_MAX, N_VARIANTS = 32, 3, 20
"""Of the tiny run."""


def plan_of(output_dir: Path, *overrides: str) -> list[Step]:
    ctx = Context(make_tiny_config(output_dir, *overrides), Recorder())
    return plan_stage(ctx, read_rates(ctx.store.root))


def find(steps: Sequence[Step], what: str) -> Step:
    (step,) = [step for step in steps if step.what == what]
    return step


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run; tests leave it as it is."""
    return finish_tiny_run(tmp_path_factory)[0]


def test_everything_is_missing_at_first(tmp_path: Path) -> None:
    steps = plan_of(tmp_path)
    assert [step.what for step in steps] == [
        "scenes, train",
        "scenes, test",
        "tokens, train",
        "train_sae, seed 0",
        "rank, seed 0",
        "score, seed 0",
        "sample, seed 0",
        "confounds, seed 0",
        "tokens, test",
        "features, seed 0",
        "probe, seed 0",
        "outliers",
        "group_activation, seed 0",
        "image codes, train, seed 0",
        "judge, train",
        "describe, seed 0",
        "fidelity, seed 0",
        "effects, seed 0",
        "latents, seed 0",
        "cross",
        "report",
    ]
    assert all(step.n_reused == 0 and step.seconds is None for step in steps)
    of_variants = {"features, seed 0": N_VARIANTS + 1, "probe, seed 0": N_VARIANTS}
    assert [(step.n_built, step.is_bound) for step in steps] == [
        (of_variants.get(step.what, 1), step.what in of_variants) for step in steps
    ]
    forwards = [find(steps, f"tokens, {split}").work.forwards for split in ("train", "test")]
    assert forwards == [N_TRAIN, N_TEST]
    score = find(steps, "score, seed 0").work
    assert (score.forwards, score.distances, score.is_bound) == (2 * N_TRAIN, 2 * D_SAE * K_MAX, True)
    assert score.naive_forwards == 2 * D_SAE * K_MAX
    assert not (tmp_path / "artifacts").exists()


def test_a_stage_plans_no_further_than_itself(tmp_path: Path) -> None:
    needed = ["scenes, train", "scenes, test", "tokens, train", "train_sae, seed 0"]
    assert [step.what for step in plan_of(tmp_path, "stage=train_sae")] == needed
    analysis = [step.what for step in plan_of(tmp_path, "stage=stability")]
    assert analysis == [*needed, "rank, seed 0", "score, seed 0", "tokens, test", "stability", "report"]
    more = find(plan_of(tmp_path, "probe.n_draws=5"), "probe, seed 0")
    fewer = find(plan_of(tmp_path, "probe.n_draws=4"), "probe, seed 0")
    assert more.n_built - fewer.n_built == 2 * 2  # of either group, of equal mass and of equal energy


def test_what_exists_is_said_and_asks_for_nothing(finished: Path) -> None:
    steps = plan_of(finished)
    once = ("score", "group_activation", "confounds", "describe", "fidelity", "effects", "latents", "train_sae", "rank")
    read = ("scenes, train", "scenes, test", "tokens, train", "cross", "report", *(f"{kind}, seed 0" for kind in once))
    assert {step.what: step.n_reused for step in steps} == {"probe, seed 0": N_VARIANTS, **dict.fromkeys(read, 1)}
    assert all((step.n_built, step.work, step.seconds) == (0, Work(), None) for step in steps)
    other = plan_of(finished, "sae.k=3")
    of_sae = ("train_sae", "rank", "sample", "score", "features", "probe", "group_activation", "confounds", "effects")
    of_sae = (*of_sae, "describe", "fidelity", "latents")
    assert {step.what for step in other if step.n_built} == {
        "cross",
        "report",
        "image codes, train, seed 0",
        *(f"{stage}, seed 0" for stage in of_sae),
    }


def count_artifacts(output_dir: Path) -> Counter[str]:
    """Return how many artifacts of each kind there are; what classification reads counts as features."""
    kinds = Counter(manifest.parts[-3] for manifest in (output_dir / "artifacts").glob(f"*/[!.]*/{MANIFEST}"))
    kinds["features"] += kinds.pop("image_means", 0)
    return kinds


@pytest.mark.parametrize(
    ("deleted", "overrides"),
    [
        (("rank", "train_sae"), ("stage=probe",)),
        (("rank", "train_sae", "report"), ()),
        (("scenes",), ("stage=score", "scope.shift_patches=2")),
        (("scenes", "confounds"), ("stage=confounds",)),
        (("effects", "probe", *FEATURES), ("stage=effects",)),
        (("tokens", *FEATURES, "report"), ()),
        (("probe", *FEATURES), ("stage=probe",)),
        (("rank", "scenes"), ("stage=stability", "stability.n_latents=8")),
        ((), ("stage=select", "select.n_kept=[2]", "select.n_bands=2", "select.n_draws=1")),
    ],
    ids=lambda one: " ".join(one) or "nothing",
)
def test_a_run_builds_what_was_planned(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, deleted: Sequence[str], overrides: Sequence[str]
) -> None:
    draw_without_saving(monkeypatch)
    output_dir = copy_run(finished, tmp_path / "run", but=deleted)
    planned, bounds = Counter[str](), set[str]()
    for step in plan_of(output_dir, *overrides):
        kind = step.what.split(",")[0].replace("select", "probe")
        planned[kind] += step.n_built
        bounds |= {kind} if step.is_bound else set()
    before = count_artifacts(output_dir)
    run_tiny(output_dir, *overrides)
    built = count_artifacts(output_dir) - before
    assert all(built[kind] <= planned.pop(kind) for kind in bounds)
    assert {kind: n for kind, n in built.items() if kind not in bounds} == dict(+planned)


def test_counts_are_exact_once_the_ranking_is_known(finished: Path) -> None:
    score = find(plan_of(finished, "stage=score", "scope.emd=sinkhorn"), "score, seed 0")
    top_images = Ranking.load(find_folder(finished, "rank")).top_images
    assert score.n_built == 1
    assert score.work.forwards == 2 * len(np.unique(top_images[top_images >= 0]))
    assert score.work.distances == score.work.naive_forwards == 2 * int((top_images >= 0).sum())
    assert not score.work.is_bound
    assert score.seconds is None  # no run of these has been timed


def test_seconds_are_those_of_such_work_before(finished: Path) -> None:
    steps = plan_of(finished, "seeds=[0,1]")
    for kind in ("train_sae", "rank", "score", "group_activation", "confounds", "effects"):
        manifest = read_manifest(find_folder(finished, kind))
        planned, done = find(steps, f"{kind}, seed 1"), manifest["work"]
        seconds = done.get("seconds", manifest["wall_s"])
        assert planned.seconds == pytest.approx(planned.work.n * seconds / done["n"]), kind
        assert planned.seconds is not None
        assert planned.seconds > 0, kind
    probes = [read_manifest(folder)["work"] for folder in (finished / "artifacts" / "probe").glob("[!.]*")]
    mean = sum(one["seconds"] for one in probes) / len(probes)
    assert find(steps, "probe, seed 1").seconds == pytest.approx(N_VARIANTS * mean)


def read_manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


class Like(NamedTuple):
    """How one manifest differs from what is planned."""

    kind: str = "rank"
    like: Any = ("a", 1)
    hardware: Any = None
    n: int = 10
    wall_s: float = 5.0


def test_rates_are_of_the_same_kind_size_and_hardware(tmp_path: Path, finished: Path) -> None:
    hardware = read_manifest(find_folder(finished, "rank"))["hardware"]
    manifests = [Like(), Like(n=30, wall_s=7.0), Like(kind="score"), Like(like=["a", 2]), Like(hardware={"cpu": "z80"})]
    for number, one in enumerate(manifests):
        folder = tmp_path / one.kind / f"x-{number}"
        folder.mkdir(parents=True)
        content = {"stage": one.kind, "hardware": one.hardware or hardware, "wall_s": one.wall_s}
        (folder / MANIFEST).write_text(json.dumps({**content, "work": {"n": one.n, "like": one.like}}))
    rates = read_rates(tmp_path)
    assert find_seconds(rates, "rank", Work(20, ["a", 1])) == pytest.approx(20 * 12 / 40)
    assert find_seconds(rates, "score", Work(20, ["a", 1])) == pytest.approx(20 * 5 / 10)
    assert find_seconds(rates, "rank", Work(20, ["b", 1])) is None
    assert find_seconds(rates, "rank", Work(0, ["a", 1])) is None


def test_a_build_that_was_gone_on_with_says_no_seconds(tmp_path: Path, finished: Path) -> None:
    output_dir = copy_run(finished, tmp_path / "run", but=("rank",))
    progress = Rank.at(Context(make_tiny_config(output_dir), Recorder()), 0).spec.hash
    folder = output_dir / "artifacts" / "rank" / f".{progress}.progress" / "rank"
    folder.mkdir(parents=True)
    run_tiny(output_dir, "stage=rank")
    assert "work" not in read_manifest(find_folder(output_dir, "rank"))
    assert find(plan_of(output_dir, "stage=rank", "seeds=[1]"), "rank, seed 1").seconds is None


def test_probes_that_were_gone_on_with_say_no_seconds(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(finished, tmp_path / "run", but=("probe",))
    original = Store.open_progress

    @contextmanager
    def open_progress(store: Store, stage: str, key: Any) -> Iterator[Path]:
        with original(store, stage, key) as folder:
            (folder / "of-an-earlier-process").touch()
            yield folder

    monkeypatch.setattr(Store, "open_progress", open_progress)
    run_tiny(output_dir, "stage=probe")
    probes = [read_manifest(folder) for folder in (output_dir / "artifacts" / "probe").glob("[!.]*")]
    assert len(probes) == N_VARIANTS
    assert not any("work" in manifest for manifest in probes)
    assert find(plan_of(output_dir, "seeds=[1]"), "probe, seed 1").seconds is None


def test_probes_are_counted_by_their_variants(tmp_path: Path, finished: Path) -> None:
    output_dir = copy_run(finished, tmp_path / "run", but=("probe", *FEATURES))
    exact = find(plan_of(output_dir, "stage=probe"), "probe, seed 0")
    assert (exact.n_built, exact.n_reused) == (N_VARIANTS, 0)
    (output_dir / "artifacts" / "probe").mkdir()
    for folder in sorted((finished / "artifacts" / "probe").glob("[!.]*"))[:3]:
        shutil.copytree(folder, output_dir / "artifacts" / "probe" / folder.name)
    rest = find(plan_of(output_dir, "stage=probe"), "probe, seed 0")
    assert (rest.n_built, rest.n_reused) == (N_VARIANTS - 3, 3)


def test_a_clip_that_is_yet_to_be_trained_is_planned(tmp_path: Path, finished: Path) -> None:
    for output_dir in (tmp_path, finished):
        steps = plan_of(output_dir, "model=scenes_clip", "model.pretrained=train_clip")
        assert find(steps, "train_clip").n_built == 1
        assert find(steps, "tokens, train").work.forwards == N_TRAIN
        assert find(steps, "probe, seed 0").n_built == N_VARIANTS


@pytest.mark.parametrize("stage", ["predict", "name", "steer", "attribute"])
def test_a_clip_is_trained_before_its_text_tower_is_asked(tmp_path: Path, stage: str) -> None:
    trained = ("model=scenes_clip", "model.pretrained=train_clip", f"stage={stage}", "name.n_top_images=3")
    whats = [step.what for step in plan_of(tmp_path, *trained)]
    words = "vocabulary" if stage == "name" else "zero_shot_head"
    assert whats.index("train_clip") < whats.index(words)


def test_tokens_that_are_not_stored_are_counted_as_often_as_they_are_encoded(tmp_path: Path) -> None:
    live = ("data.store_tokens=false", "sae.tokens_per_image=32")
    steps = plan_of(tmp_path, *live)
    assert find(steps, "train_sae, seed 0").work.forwards == 16_000 // 32
    passes = ("rank", "group_activation", "confounds")
    assert sum(find(steps, f"{kind}, seed 0").work.forwards for kind in passes) == N_TRAIN  # in one reading
    stored = plan_of(tmp_path)
    assert all(find(stored, f"{kind}, seed 0").work.forwards == 0 for kind in ("train_sae", *passes))
    kept = [find(of, "tokens, train").work.disk_bytes for of in (steps, stored)]
    assert 0 < 10 * kept[0] < kept[1]
    ctx = Context(make_tiny_config(tmp_path, *live, "stage=rank"), Recorder())
    trained = Rank.at(ctx, 0).needs.sae
    trained.get()
    before = load_backbone(ctx).n_images_encoded
    Rank.at(ctx, 0).get()
    assert load_backbone(ctx).n_images_encoded - before == find(steps, "rank, seed 0").work.forwards == N_TRAIN


def test_the_plan_of_a_sweep_over_layers_says_which_forwards_its_jobs_share(tmp_path: Path) -> None:
    ctx = Context(make_tiny_config(tmp_path, "stage=score", "model.layer=0"), Recorder(), Job(layers=(-2, 1)))
    steps = plan_stage(ctx)
    assert find(steps, "tokens, train").work.shared_forwards == N_TRAIN
    assert sum(step.work.shared_forwards for step in steps) == N_TRAIN
    console = Console(file=io.StringIO(), width=200)
    print_plan(steps, console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert (
        f"{N_TRAIN} of them give the tokens of this sweep's other layers too: the first job runs them for all." in said
    )
    same = Context(make_tiny_config(tmp_path, "stage=score", "model.layer=0"), Recorder(), Job(layers=(-2,)))
    assert find(plan_stage(same), "tokens, train").work.shared_forwards == 0  # of two blocks, the same one
    Tokens.at(ctx, "train").get()
    assert Tokens.at(ctx, "train", layer=1).find() is not None
    assert sum(step.work.forwards for step in plan_stage(ctx) if step.what == "tokens, train") == 0


def test_the_printed_plan(tmp_path: Path, finished: Path) -> None:
    said = run_tiny(tmp_path, "plan=true")
    assert (said.events, said.files) == ([], None)
    assert not (tmp_path / "artifacts").exists()
    lines = said.text.splitlines()
    assert lines[0].strip() == "What this command would do"
    assert lines[1].split() == ["step", "build", "forwards", "distances", "disk", "memory", "time"]  # nothing to reuse
    rows = {line.split("  ")[0]: line.split() for line in lines[2:13]}
    assert rows["score, seed 0"][3:8] == ["1", "≤", str(2 * N_TRAIN), "≤", str(2 * D_SAE * K_MAX)]
    assert all(row[-1] == "-" for row in rows.values())
    n = N_TRAIN + N_TEST + 2 * N_TRAIN + N_TRAIN + find(plan_of(tmp_path), "outliers").work.forwards
    for sentence in (
        "Together an unknown time, ",
        "-: nothing like it was built here before",
        f"Backbone: at most {n:,} forward passes are missing. Scores take at most {2 * N_TRAIN:,} of them; the naive"
        f" way, every latent encoding both crops of its own top images, at most {2 * D_SAE * K_MAX:,}.",
    ):
        assert sentence in said.text
    again = run_tiny(finished, "plan=true").text
    assert "Together about 0 s" in again
    assert "Backbone: 0 forward passes are missing.\n" in again
    assert "-:" not in again
    assert "0 kB of memory beside the program's 1.1 GB" in again.replace("\n", " ")
    assert "Together more than " in run_tiny(finished, "plan=true", "sae.k=3", "scope.emd=sinkhorn").text


def test_no_heading_and_no_number_is_cut_at_80_columns() -> None:
    work = Work(1, forwards=12_345, distances=123_456, disk_bytes=10**9, memory_bytes=10**9, is_bound=True)
    console = Console(file=io.StringIO(), width=80)
    print_plan([Step("group_activation, seed 0", 12, 345, True, work, 4321.0)], console)
    assert isinstance(console.file, io.StringIO)
    table = console.file.getvalue().split("Together")[0]
    assert "…" not in table
    assert table.splitlines()[1].split() == list(HEADINGS)
    assert format_seconds(4321.0) in table


def test_what_does_not_fit_is_refused_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx = Context(make_tiny_config(tmp_path), Recorder())
    steps = plan_of(tmp_path)
    needed = sum(step.n_built * step.work.disk_bytes for step in steps)
    needed += max(step.work.scratch_bytes for step in steps)

    class Usage(NamedTuple):
        free: int

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed))
    check(ctx)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(needed - 1))
    with pytest.raises(InputError, match=r"This needs [\d.]+ [kM]B in .*, where [\d.]+ [kM]B are free: use"):
        run_tiny(tmp_path)
    assert not list((tmp_path / "artifacts").glob("*/*"))


def test_a_plan_refuses_what_the_stage_would(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no text tower"):
        run_tiny(tmp_path, "stage=predict", "plan=true")


def test_numbers_for_people() -> None:
    assert [format_seconds(s) for s in (8.2, 150, 9000)] == ["8 s", "2 min", "2.5 h"]
    assert [format_bytes(n) for n in (1200, 3_400_000, 1_200_000_000)] == ["1 kB", "3.4 MB", "1.2 GB"]
