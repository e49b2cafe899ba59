"""The table of latents of a run: every column says what its source says, and comes without reading a token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from infoscope import load_latents
from infoscope.config.tree import compose
from infoscope.data.scenes.factors import KINDS
from infoscope.pipeline.context import Context
from infoscope.pipeline.stage import Handle, SeedStage, Stage
from infoscope.sae.latent_table import LatentTable
from infoscope.sae.origin import Origin
from infoscope.scope.agreement import bootstrap_cds
from infoscope.scope.cds import compute_chance_ratio, count_zero_maps
from infoscope.scope.confounds import MIN_IMAGES
from infoscope.scope.partial_ranks import compute_spearman
from infoscope.stages.confounds.stage import Confounds
from infoscope.stages.cross.stage import Cross
from infoscope.stages.describe.numbers import MEASURES
from infoscope.stages.describe.stage import BIASED, Describe
from infoscope.stages.effects.section import name_column
from infoscope.stages.effects.stage import Effects
from infoscope.stages.energy import Sample
from infoscope.stages.import_sae import Inspected
from infoscope.stages.latents import Latents, join_latents
from infoscope.stages.outliers.stage import Outliers
from infoscope.stages.rank import Rank
from infoscope.stages.report.stage import Report
from infoscope.stages.sae import list_level_ends
from infoscope.stages.score.stage import Score, partition_of
from tests.support.pipeline_samples import (
    READ_ONCE,
    Recorder,
    copy_run,
    find_folder,
    finish_tiny_run,
    make_tiny_config,
    run_tiny,
)

SOURCES = ("rank", "score", "group_activation", "confounds", "describe", "effects")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finish_tiny_run(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def ctx(finished: Path) -> Context:
    return Context(make_tiny_config(finished), Recorder())


@pytest.mark.parametrize("stage", [Latents, Rank])
def test_another_version_of_a_stage_makes_its_artifacts_anew(
    finished: Path, monkeypatch: pytest.MonkeyPatch, stage: type[SeedStage]
) -> None:
    def find_hash() -> str:
        return stage.at(Context(make_tiny_config(finished), Recorder()), 0).hash

    before = find_hash()
    monkeypatch.setattr(stage, "version", stage.version + 1)
    assert find_hash() != before


def test_what_columns_read_besides_their_source_is_in_the_key(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output_dir = copy_run(finished, tmp_path)

    def make() -> Handle[LatentTable]:
        return Latents.at(Context(make_tiny_config(output_dir), Recorder()), 0)

    plain = make()
    monkeypatch.setattr(Rank, "latents_read", lambda self, ctx, seed: [Sample.at(ctx, seed)])
    more = make()
    assert more.spec.key["sources"] == plain.spec.key["sources"] | {"sample_0": Sample.at(more.ctx, 0).hash}
    assert [column.name for column in more.load()] == [column.name for column in plain.load()]


@pytest.mark.parametrize("stage", [Report, Score])
def test_another_version_of_the_report_or_of_a_part_is_written_anew(
    stage: type[Stage], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = Context(make_tiny_config(finished), Recorder())
    before = Report().report_spec(ctx).hash
    monkeypatch.setattr(stage, "report_version", stage.report_version + 1)
    assert Report().report_spec(ctx).hash != before


def test_a_report_leaves_a_table_beside_the_scores(finished: Path, ctx: Context) -> None:
    table = load_latents(finished)
    d_sae = Rank.at(ctx, 0).load().d_sae
    assert len(table) == d_sae
    assert table.seed == 0
    assert {column.source for column in table} == set(SOURCES)
    for column in table:
        assert column.values.shape == (d_sae,), column.name
        assert column.heading, column.name
        assert bool(column.unit) == (column.values.dtype.kind in "fi"), column.name
    assert load_latents(find_folder(finished, "latents")).to_arrow().column_names == [column.name for column in table]


def test_every_value_is_that_of_its_source(finished: Path, ctx: Context) -> None:
    table, k = load_latents(finished), ctx.config.scope.k_cds
    ranking, scores = Rank.at(ctx, 0).load(), Score.at(ctx, 0).load()
    found, acts = Confounds.at(ctx, 0).load(), Outliers.at(ctx, 0).load()
    fires_enough = found.properties.image_rate * found.n_images >= MIN_IMAGES - 0.5
    zeros = count_zero_maps(scores.mass1, scores.mass2, k)
    expected = {
        "firing_rate": ranking.firing_rate,
        "mean_act": ranking.mean_act,
        "mass": ranking.mean_act,  # rows of the decoder have unit norm
        "top_value": ranking.top_values.max(axis=1),
        "cds": scores.cds(k).values,
        "cds_low": bootstrap_cds(scores.emd, k).lower,
        "cds_high": bootstrap_cds(scores.emd, k).upper,
        "chance": scores.chance(k),
        "cds_minus_chance": scores.cds(k).values - scores.chance(k),
        "cds_over_chance": compute_chance_ratio(scores.cds(k).values, scores.chance(k)),
        "cds_all_ranks": scores.cds(scores.k_max).values,
        "n_valid": np.isfinite(scores.emd[:, :k]).sum(axis=1),
        "n_one_sided": zeros.one_sided,
        "n_two_sided": zeros.two_sided,
        "image_rate": found.properties.image_rate,
        "peak": found.properties.peaks.max(axis=1),
        "peak_top": found.properties.peak_top(k),
        "support": found.properties.support,
        "participation": found.properties.participation,
        "image_effect": np.where(fires_enough, found.image_effect, np.nan),
        "label_effect": np.where(fires_enough, found.label_effect, np.nan),
        "known_global": found.known_global,
        "known_local": found.known_local,
        "on_outlier": acts.on_outlier / acts.n_outlier,
        "on_normal": acts.on_normal / acts.n_normal,
    }
    expected |= {f"image_effect_{of}": np.where(fires_enough, v, np.nan) for of, v in found.image_effects.items()}
    said = Describe.at(ctx, 0).load()
    expected |= {
        name: getattr(said, name)
        for name in (*MEASURES, "n_classes_held")  # rows of the decoder have unit norm
    }
    expected |= {f"{name}_excess": said.beyond_chance(name) for name in BIASED}
    expected["top_class"] = np.array([*KINDS, ""])[said.top_class]
    assert said.class_latents is not None
    held = [[kind for kind, of in zip(KINDS, said.class_latents, strict=True) if i in of] for i in range(len(table))]
    expected["classes_held"] = np.array(["; ".join(kinds) for kinds in held])
    expected |= {name_column(task): effect for task, effect in Effects.at(ctx, 0).load().effects.items()}
    for name, values in expected.items():
        np.testing.assert_array_equal(table[name], values, err_msg=name)
    assert {column.name for column in table} == {*expected, "one_sided", "group", "undecided", "outlier_ratio"}
    acting = table["on_normal"] > 0
    np.testing.assert_allclose((table["outlier_ratio"] * table["on_normal"])[acting], table["on_outlier"][acting])
    assert np.isnan(table["outlier_ratio"][~acting]).all()


@pytest.mark.parametrize("override", ["partition.gamma=0.05", "partition.rule=bands", "partition.decided_only=true"])
def test_each_latent_is_in_one_group(finished: Path, tmp_path: Path, override: str) -> None:
    ctx = Context(make_tiny_config(copy_run(finished, tmp_path), override), Recorder())
    table, partition = Latents.at(ctx, 0).load(), partition_of(ctx, 0)
    for name, members in [*partition.groups.items(), ("unscored", partition.unscored)]:
        np.testing.assert_array_equal(table["group"] == name, members)
    if ctx.config.partition.decided_only:
        assert table["undecided"].any()
        np.testing.assert_array_equal(table["group"] == "undecided", table["undecided"])


def test_the_stage_builds_what_the_table_needs_and_says_what_it_holds(finished: Path, tmp_path: Path) -> None:
    output_dir = copy_run(finished, tmp_path, but=(*SOURCES, *READ_ONCE, "latents", "probe", "features", "report"))
    said = run_tiny(output_dir, "stage=latents")
    assert set(said.stages("built")) == {*SOURCES, *READ_ONCE, "latents"} - {
        "effects"
    }  # which would train probes first
    assert "reading tokens for rank, group_activation, confounds, image_codes of seed 0" in said.shown  # once
    assert f"| mean_act | mean activation | SAE units per patch token | rank | {len(load_latents(output_dir))} |" in (
        said.text
    )
    assert str(find_folder(output_dir, "latents")) in said.text.replace("\n", "")


def test_what_goes_with_scope_is_arithmetic_on_the_table(finished: Path, tmp_path: Path) -> None:
    said = run_tiny(copy_run(finished, tmp_path, but=("cross", "report")), "stage=cross")
    assert said.stages("built") == ["cross", "report"]
    assert "| firing frequency | share of patch tokens |" in said.text
    ctx = Context(make_tiny_config(tmp_path), Recorder())
    table, found = load_latents(tmp_path), Cross.at(ctx).load()
    (place,) = (i for i, name in enumerate(found.names) if name == "participation")
    rho, n = compute_spearman(table["participation"], table["cds"])
    assert (found.rho[0, place], found.n[0, place]) == (pytest.approx(rho), n)
    rows = {row["variant"]: row for row in Cross().rows(ctx, 0)}
    assert rows.keys() == {*found.names}
    assert rows["participation"]["spearman"] == found.rho[0, place]
    run_again = run_tiny(tmp_path, "stage=cross", "cross.n_bands=4")
    assert run_again.stages("built") == ["cross", "report"]
    assert "band 3 | highest CDS |" in run_again.text


def test_the_levels_of_a_matryoshka_sae_are_those_of_its_prefixes_or_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def list_ends(*overrides: str) -> list[float]:
        return list_level_ends(Context(compose([f"output_dir={tmp_path}", *overrides]), Recorder()))

    assert list_ends("sae=topk") == []
    assert list_ends("sae=matryoshka_prefix", "sae.prefixes=[0.3,1]") == [0.3, 1]
    inspected = Inspected(Origin(), 4, 24, "", has_free_scale=False, prefix_sizes=(6, 24))
    for found, ends in ((inspected, [0.25, 1]), (replace(inspected, prefix_sizes=()), [])):
        monkeypatch.setattr("infoscope.stages.sae.inspect_sae", lambda _, found=found: found)
        assert list_ends("sae=import", "sae.path=somewhere") == ends


def test_every_latent_has_its_level(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "level" not in join_latents(ctx, 0, [Rank])
    monkeypatch.setattr("infoscope.stages.latents.list_level_ends", lambda _: [0.25, 0.5, 1.0])
    table = join_latents(ctx, 0, [Rank])
    (column,) = (column for column in table if column.name == "level")
    assert column.source == "train_sae"
    n = len(table) // 4
    assert column.values.tolist() == [0] * n + [1] * n + [2] * 2 * n


def test_effects_stand_in_the_table_where_they_are_at_hand(finished: Path, tmp_path: Path) -> None:
    run_tiny(output_dir := copy_run(finished, tmp_path, but=("effects", "latents")), "stage=latents")
    without = find_folder(output_dir, "latents")
    assert {column.source for column in LatentTable.load(without)} == {*SOURCES} - {"effects"}
    assert without.name != find_folder(finished, "latents").name
    said = run_tiny(copy_run(finished, tmp_path / "at hand", but=("latents",)), "stage=latents")
    assert said.stages("built") == ["latents"]
    assert {column.source for column in load_latents(tmp_path / "at hand")} == set(SOURCES)
    assert find_folder(tmp_path / "at hand", "latents").name == find_folder(finished, "latents").name
