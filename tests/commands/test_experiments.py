"""What the files of experiments/ share: sweeps, failures, tables; and the scripts that are no sweep."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from matplotlib.figure import Figure

from infoscope.commands.experiments import runs as runs_module
from infoscope.commands.experiments import sweep
from infoscope.commands.experiments.runs import Shown
from infoscope.commands.experiments.sweep import Experiment, add_defaults, choose_settings, main, share_ranks
from infoscope.config.sweeps import expand_sweep
from infoscope.pipeline.context import Context
from infoscope.report.joining import Part, join_tables
from infoscope.report.tables import Column, Table
from infoscope.runtime.errors import InputError
from infoscope.stages.images import open_split
from infoscope.stages.probe.paper import PAPER_ACTIVATION
from infoscope.stages.probe.results import Result
from infoscope.stages.score.result import ScopeResult
from tests.support.experiment_samples import SWEEPS, load_experiment, read_rows
from tests.support.pipeline_samples import make_overrides, save_noise
from tests.support.report_samples import make_scope_result, make_unscored_result


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [[]]),
        (["a=1,2", "b=x"], [["a=1", "b=x"], ["a=2", "b=x"]]),
        (["seeds=[0,1],[2]"], [["seeds=[0,1]"], ["seeds=[2]"]]),
        (['t=["a {}, b","c"]'], [['t=["a {}, b","c"]']]),
        (["root='a,b',c"], [["root='a,b'"], ["root=c"]]),
        (["sae=glob(matr*x)", "a=range(1,3)"], [["sae=matryoshka_prefix", f"a={a}"] for a in (1, 2)]),
    ],
)
def test_commas_outside_brackets_and_quotes_are_a_sweep(overrides: list[str], expected: list[list[str]]) -> None:
    assert expand_sweep(overrides) == expected


def test_a_default_gives_way_to_its_key_or_its_group() -> None:
    defaults = ["partition.gamma=0.1,0.2"]
    assert add_defaults(defaults, ["seeds=[0]"]) == [*defaults, "seeds=[0]"]
    assert add_defaults(defaults, ["partition.gamma=0.3"]) == ["partition.gamma=0.3"]
    assert add_defaults(defaults, ["partition=otsu"]) == ["partition=otsu"]
    assert add_defaults(defaults, ["partition.mass_share=0.3,0.6"]) == ["partition.mass_share=0.3,0.6"]
    assert add_defaults(["model=a,b"], ["model.pretrained=random"]) == ["model=a,b", "model.pretrained=random"]


def test_settings_are_chosen_by_the_key_with_which_they_begin() -> None:
    settings = ["sae=topk sae.k=4", "sae=topk sae.k=8", "sae=relu sae.l1=0.1"]
    assert choose_settings(settings, ["seeds=[0]"]) == (settings, ["seeds=[0]"])
    assert choose_settings(settings, ["sae=relu", "sae.lr=1"]) == (settings[2:], ["sae.lr=1"])
    assert choose_settings(settings, ["sae=relu,topk"]) == (settings, [])
    assert choose_settings([], ["sae=relu"]) == ([], ["sae=relu"])
    with pytest.raises(InputError, match="Expected sae= to choose among topk, relu here, got gated"):
        choose_settings(settings, ["sae=topk,gated"])


def test_a_sweep_over_k_scores_as_many_ranks_as_the_largest_needs() -> None:
    swept = expand_sweep(["scope.k_cds=4,32"])
    assert share_ranks(swept) == [["scope.k_cds=4", "scope.k_max=32"], ["scope.k_cds=32", "scope.k_max=32"]]
    assert share_ranks(expand_sweep(["scope.k_cds=1,2"]))[0][-1] == "scope.k_max=16"
    for as_it_is in (["scope.k_cds=4"], ["scope.k_cds=4,32", "scope.k_max=64"], ["scope.k_cds=4,x"]):
        assert share_ranks(expand_sweep(as_it_is)) == expand_sweep(as_it_is)


def test_tables_are_joined_with_facts_for_programs_and_titles_for_people() -> None:
    def make_table(key: str, value: float, note: str) -> Table:
        table = Table("t", "Title", [Column("name", "name"), Column(key, key)], notes=["both", note])
        table.add_section()
        table.add_row("row", value)
        table.add_section("mode")
        table.add_row("other", value + 1)
        return table

    joined = join_tables(
        [Part("A", {"k": 1}, make_table("x", 1.0, "only A")), Part("B", {"k": 2}, make_table("y", 3.0, "only B"))]
    )
    assert [section.title for section in joined.sections] == ["A", "A: mode", "B", "B: mode"]
    assert joined.records()[3] == {"section": "B: mode", "k": 2, "name": "other", "x": None, "y": 4.0}
    assert joined.notes == ["both", "A: only A", "B: only B"]
    assert [column.key for column in joined.shown] == ["name", "x", "y"]
    assert joined.to_markdown().splitlines()[2] == "| name | x | y |"
    assert all("k" not in row[:3] for row in joined.to_latex().splitlines() if row.startswith("A &"))


def count_images(ctx: Context) -> int:
    """A measurement that builds nothing but scenes."""
    if ctx.config.data.seed == 2:
        raise InputError("two is refused.")
    return len(open_split(ctx, "train"))


def show_counts(runs: Any) -> Shown:
    columns = [Column("n", "images", digits=0)]
    table = runs_module.make_run_table("counts", "Counts", runs, columns, lambda n: [n])
    return Shown([table], {"empty": lambda: Figure()})


@pytest.fixture
def counting() -> Experiment[int]:
    return Experiment("counting", "Counts images.\n\n    a command", count_images, show_counts, is_scored=False)


@pytest.fixture
def run_counting(counting: Experiment[int], tmp_path: Path) -> Callable[..., int]:
    return lambda *overrides: main(counting, make_overrides(tmp_path, *overrides))


def test_a_combination_that_fails_does_not_lose_the_others(
    run_counting: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_counting("data.seed=1,2,-1,3") == 2
    printed = capsys.readouterr()
    assert printed.err.splitlines()[0] == "counting: data.seed=2: two is refused."
    assert printed.err.splitlines()[1].startswith("counting: data.seed=-1: Expected data.seed to be at least 0")
    assert len(printed.err.splitlines()) == 2
    rows = read_rows(tmp_path / "experiments" / "counting" / "counts.csv")
    assert [row["setting"] for row in rows] == ["data.seed=1", "data.seed=3"]
    assert [row["n"] for row in rows] == ["40", "40"]
    assert all("scenes:" in row["artifacts"] and "data.n_train=40" in row["overrides"] for row in rows)
    assert "| images |" in printed.out
    assert (tmp_path / "experiments" / "counting" / "empty.pdf").exists()


def test_what_other_stages_refuse_is_said_before_anything_is_built(
    counting: Experiment[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = replace(counting, also=["name"])
    assert main(more, make_overrides(tmp_path, f"name.vocabulary={tmp_path / 'none.txt'}")) == 2
    assert "none.txt, got: no such file" in capsys.readouterr().err
    assert not (tmp_path / "artifacts").exists()


def test_what_was_finished_before_ctrl_c_is_written(
    run_counting: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compose = sweep.compose

    def interrupted(overrides: list[str]) -> Any:
        if "data.seed=3" in overrides:
            raise KeyboardInterrupt
        return compose(overrides)

    monkeypatch.setattr(sweep, "compose", interrupted)
    assert run_counting("data.seed=1,3") == 130
    assert "counting: interrupted; what was finished is kept" in capsys.readouterr().err
    assert len(read_rows(tmp_path / "experiments" / "counting" / "counts.csv")) == 1


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("sae.kk=3", "counting: Unknown key 'sae.kk'"),
        ("stage=report", "counting: Expected stage=score for this experiment, got report"),
        ("nonsense", "counting: "),
        ("trainer.n_processes=2", "counting: An experiment is one process"),
        ("model=clip_b17", "counting: "),
    ],
)
def test_a_mistake_is_one_sentence_and_writes_nothing(
    run_counting: Callable[..., int], wrong: str, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_counting(wrong) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(sentence)
    assert not (tmp_path / "experiments").exists()


def test_a_folder_that_cannot_be_written_is_one_sentence(
    run_counting: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments").write_text("a file where a folder should be")
    assert run_counting() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("counting: Cannot write to ")


def test_a_plan_measures_nothing(run_counting: Callable[..., int], tmp_path: Path) -> None:
    assert run_counting("plan=true") == 0
    assert not (tmp_path / "experiments").exists()
    assert not list((tmp_path / "artifacts").glob("scenes/train-*"))


def test_a_plan_counts_what_other_stages_make(
    counting: Experiment[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(replace(counting, also=["confounds"]), make_overrides(tmp_path, "plan=true")) == 0
    assert "confounds, seed 0" in capsys.readouterr().out


@pytest.mark.parametrize("name", SWEEPS)
def test_help_is_the_files_docstring_and_every_command_of_it_can_be_composed(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    experiment = load_experiment(name).EXPERIMENT
    assert experiment.name == name
    assert main(experiment, ["--help"]) == 0
    text = capsys.readouterr().out
    assert text.strip() == experiment.description.strip()
    commands = [line for line in text.replace("\\\n", " ").splitlines() if line.startswith("    python ")]
    assert len(commands) >= 2
    for command in commands:
        _, file, *arguments = shlex.split(command.partition("  #")[0])
        assert file == f"experiments/{name}.py"
        defaults = [f"stage={experiment.stages[0]}", *experiment.defaults]
        settings, given = choose_settings(experiment.settings, arguments)
        for combination in expand_sweep(add_defaults(defaults, given)):
            for setting in settings[::4] or [""]:  # of a dozen some
                assert sweep.compose([*setting.split(), *combination]).seeds in ([0], [0, 1], [0, 1, 2])


@pytest.mark.parametrize("name", ["feature_removal", "gamma_sweep", "model_size", "other_vits"])
def test_data_without_labels_are_refused_before_any_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(12):
        save_noise(tmp_path / "photographs" / f"{i}.png", i)
    photographs = ["data=image_folder", f"data.root={tmp_path / 'photographs'}"]
    overrides = [one for one in make_overrides(tmp_path / "out") if not one.startswith("data.n_t")]
    assert main(load_experiment(name).EXPERIMENT, [*overrides, *photographs, "partition.gamma=0.1"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert sentence.startswith(f"{name}: Expected data that know")
    assert not (tmp_path / "out" / "artifacts" / "tokens").exists()


def make_results() -> list[Result]:
    """What probes read, without any probe."""
    groups = [("original", None), ("group", "high"), ("group", "low")]
    metrics = {"classification/patch_mean": {"top1": 0.7}, "segmentation": {"miou": 0.3}, "depth": {"rmse_m": 0.9}}
    shares = {"n_latents": 1, "mass_share": 0.1, "energy_share": 0.1, "empty": False}
    variants = [{"role": role, "group": group, "mode": "error_preserving", **shares} for role, group in groups]
    return [
        {"sae_seed": 0, "variant": variant, "metrics": metrics, "frozen_head": {}, "lr": {}} for variant in variants
    ]


@pytest.mark.parametrize("reference", ["clip_b16", None])
def test_the_papers_values_stand_beside_ours_where_model_and_data_are_its_own(
    reference: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def find(config: Any) -> str | None:
        asked.append(config.model.name)
        return reference

    monkeypatch.setattr(runs_module, "find_paper_reference", find)
    show = load_experiment("feature_removal").show
    config = sweep.compose(make_overrides(tmp_path))
    run = runs_module.Run(config, "the run", {"model": "m"}, make_results())
    page = show([run]).tables[0].to_markdown()
    assert asked == ["planted_registers"]
    assert ("*the run: the paper, CLIP-B/16*" in page) == (reference is not None)
    assert ("| 74.8 ‡ |" in page or "74.8" in page) == (reference is not None)


def test_the_papers_ratios_are_those_of_its_activations() -> None:
    high, low = (PAPER_ACTIVATION["clip_b16"][name] for name in ("high", "low"))
    assert high.on_outlier / high.on_normal == pytest.approx(50.3, abs=0.05)
    assert low.on_outlier / low.on_normal == pytest.approx(0.33, abs=0.005)


@pytest.mark.parametrize("name", ["cds_histograms", "k_cds_sweep"])
def test_scores_that_do_not_exist_are_one_sentence(name: str, tmp_path: Path) -> None:
    unscored, scored = make_unscored_result(), make_scope_result(n_latents=10)
    config = sweep.compose(make_overrides(tmp_path))
    facts = {"model": "m", "layer": 1, "k_cds": 2}

    def show(*scopes: ScopeResult) -> Table:
        found = [([scope], []) if name == "k_cds_sweep" else [scope] for scope in scopes]
        runs = [runs_module.Run(config, f"run {place}", facts, one) for place, one in enumerate(found)]
        return load_experiment(name).show(runs).tables[0]

    page = show(unscored).to_markdown().splitlines()
    assert len(page) == 3
    assert page[2].startswith(f"No feature is scored: none of {len(unscored.cds):,} fires")
    assert len(show(unscored, scored).text_rows(show(unscored, scored).sections[0])) == 2


@pytest.fixture
def sae_settings() -> ModuleType:
    return load_experiment("sae_settings")


def test_the_best_setting_that_reconstructs_is_reported_on_other_scenes(
    sae_settings: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    numbers = {"sae=topk": (0.3, 0.1), "sae=topk sae.k=8": (0.5, 0.2), "sae=topk sae.k=4": (0.9, 0.4)}

    def measure(overrides: list[str]) -> tuple[dict[str, float], Path]:
        seed, setting = overrides[-2], " ".join(overrides[:-2])
        asked.append(f"{setting} {seed}")
        assert overrides[-1] == "data.n_train=100"
        score, fvu = numbers[setting]
        return {**dict.fromkeys(sae_settings.COLUMNS, 0.0), "score": score, "fvu": fvu}, tmp_path

    monkeypatch.setattr(sae_settings, "SETTINGS", tuple(numbers))
    monkeypatch.setattr(sae_settings, "measure", measure)
    assert sae_settings.main(["data.n_train=100"]) == 0
    chosen = "sae=topk sae.k=8"  # k 4 leaves too much unexplained
    assert asked == [f"{name} data.seed=1" for name in numbers] + [f"{chosen} data.seed=0", "sae=topk data.seed=0"]
    assert f"Chosen: {chosen}." in capsys.readouterr().out
    made = {path.name for path in (tmp_path / "experiments" / "sae_settings").iterdir()}
    assert {"sae_settings.md", "sae_settings.csv", "sae_settings_reported.tex"} <= made


def test_a_setting_is_measured(sae_settings: ModuleType, tmp_path: Path) -> None:
    found, output_dir = sae_settings.measure(make_overrides(tmp_path))
    assert output_dir == tmp_path
    assert found.keys() == sae_settings.COLUMNS.keys()
    assert 0 <= found["mean_cds"] <= 1
    assert found["fvu"] > 0


def test_a_mistake_is_one_sentence(sae_settings: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert sae_settings.main(["sae.kk=3"]) == 2
    assert "sae_settings: Unknown key 'sae.kk'" in capsys.readouterr().err


def test_features_are_shown_on_other_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(4):
        save_noise(tmp_path / "pictures" / f"{i}.png", i)
    show_features = load_experiment("show_features")
    overrides = make_overrides(tmp_path / "out")
    assert show_features.main([*overrides, f"pictures={tmp_path / 'pictures'}"]) == 0
    n_shown, _, _, n_pictures = capsys.readouterr().out.splitlines()[-1].split()[:4]
    assert int(n_shown) > 0
    assert n_pictures == "4"
    folder = tmp_path / "out" / "experiments" / "show_features"
    assert (folder / "features.png").read_bytes().startswith(b"\x89PNG")
    for wrong in ([], [f"pictures={tmp_path}"]):
        assert show_features.main([*overrides, *wrong]) == 2
        (sentence,) = capsys.readouterr().err.splitlines()
        assert sentence.startswith("show_features: Expected ")


def test_a_patch_is_attributed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_noise(tmp_path / "noise.png", 0)
    patch_attribution = load_experiment("patch_attribution")
    overrides = make_overrides(tmp_path / "out")
    assert patch_attribution.main([*overrides, f"picture={tmp_path / 'noise.png'}", "patch=2,1", "n_latents=2"]) == 0
    assert "fire on patch (2, 1)" in capsys.readouterr().out
    assert patch_attribution.main([*overrides, "patch=2,1", "n_latents=2", "stage=score"]) == 0  # the test picture
    names = "noise_patch_2_1_seed0_*.png", "test_picture_patch_2_1_seed0_*.png"
    folder = tmp_path / "out" / "experiments" / "patch_attribution"
    files = [next(folder.glob(name)) for name in names]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert len(list(folder.iterdir())) == 4
    assert str(files[1]) in capsys.readouterr().out.splitlines()


def test_what_is_wrong_with_a_patch_is_said_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG")
    patch_attribution = load_experiment("patch_attribution")
    wrong = {
        "patch=2": "Expected patch=ROW,COLUMN, counted from 0",
        "patch=99,0": "Expected patch=ROW,COLUMN in 0..",
        "n_latents=x": "Expected n_latents to be a whole number of at least 1, got x.",
        "n_latents=0": "Expected n_latents to be a whole number of at least 1, got 0.",
        "picture=nowhere.png": "Cannot read the picture nowhere.png",
        f"picture={tmp_path / 'damaged.png'}": f"Cannot read the picture {tmp_path / 'damaged.png'}",
        "stage=segment": "Expected stage=score for this experiment, got segment: drop stage=.",
    }
    for argument, sentence in wrong.items():
        assert patch_attribution.main([*make_overrides(tmp_path / "out"), argument]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert said.startswith(f"patch_attribution: {sentence}")
    assert not list((tmp_path / "out").glob("artifacts/*/[!.]*"))


def test_the_figure_of_a_patch_is_named_by_picture_patch_and_sae() -> None:
    name = load_experiment("patch_attribution").name_figure
    named = [name("a/dog.jpg", (2, 1), 0, "aa"), name("b/dog.jpg", (2, 1), 0, "aa"), name("a/dog.jpg", (2, 1), 1, "aa")]
    named += [name("a/dog.jpg", (1, 2), 0, "aa"), name("a/dog.jpg", (2, 1), 0, "bb")]
    assert len(set(named)) == len(named)
