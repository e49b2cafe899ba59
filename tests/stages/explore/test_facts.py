"""What is said of a latent beside its top images is what its artifacts, and those of other stages, hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infoscope.analyses.alignment import MIN_IMAGES
from infoscope.analyses.levels import AT, N_BINS, N_RANDOM, Spread
from infoscope.analyses.neighbours import ViewMatches
from infoscope.analyses.top_sets import TopSets
from infoscope.explorer.format import put
from infoscope.pipeline.context import Context
from infoscope.scope.sparse_maps import SparseMaps
from infoscope.stages.explore.facts import LatentFacts
from infoscope.stages.explore.matches import make_matchable, write_matches
from infoscope.stages.explore.pictures import find_shown
from infoscope.stages.image_codes import Codes
from infoscope.stages.images import open_split
from infoscope.stages.levels import LevelMaps
from infoscope.stages.rank import Rank
from infoscope.stages.sae import sae_of
from tests.support.explorer_files import read_array, read_value
from tests.support.pipeline_samples import N_TRAIN, Recorder, copy_run, finish_tiny_run, make_tiny_config

N_SAMPLE, N_NEAR = 25, 4


def make_context(output_dir: Path, *overrides: str) -> Context:
    few = f"explore.n_level_images={N_SAMPLE}", f"explore.n_near={N_NEAR}"
    return Context(make_tiny_config(output_dir, "stage=explore", *few, *overrides), Recorder())


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    output_dir = copy_run(finish_tiny_run(tmp_path_factory)[0], tmp_path_factory.mktemp("facts"), but=("report",))
    return make_context(output_dir)


@pytest.fixture(scope="module")
def facts(ctx: Context) -> LatentFacts:
    one = make_matchable(ctx, 0)
    order = np.random.default_rng(0).permutation(len(one.W_dec))
    permuted = replace(one, sae="permuted", W_dec=2 * one.W_dec[torch.from_numpy(order)], is_alive=one.is_alive[order])
    blind = replace(one, sae="blind", reads="other tokens", images="other images")
    return LatentFacts.read(ctx, 0, {"permuted": permuted, "blind": blind})


@pytest.fixture(scope="module")
def told(facts: LatentFacts) -> list[dict[str, Any]]:
    d_sae = len(facts.levels.rows)
    return [*facts.of_latents(range(d_sae // 2)), *facts.of_latents(range(d_sae // 2, d_sae))]


@pytest.fixture(scope="module")
def peaks(ctx: Context) -> np.ndarray:
    """The largest activation of each latent on a patch of each training image, as another stage found it."""
    codes = Codes.at(ctx, 0, "train").load()
    assert codes.image_index.tolist() == list(range(N_TRAIN))
    return codes.matrix("peaks").toarray()


def unpack_maxima(packed: dict[str, Any]) -> list[float]:
    """The largest value of each packed map."""
    of_maps = np.split(read_array(packed["values"]), np.cumsum(read_array(packed["counts"]))[:-1])
    assert len(of_maps) == packed["n"]
    return [packed["scale"] * of.max(initial=0) / 65535 for of in of_maps]


def test_levels_show_what_a_latent_does_there(
    facts: LatentFacts, told: list[dict[str, Any]], peaks: np.ndarray
) -> None:
    sample = np.asarray(facts.levels.codes.image_index)
    assert len(sample) == N_SAMPLE
    for latent, about in enumerate(told):
        of_latent = peaks[sample, latent]
        firing = np.sort(of_latent[of_latent > 0])
        for of in (about["levels"], about["random"]):
            assert set(of["images"]) <= set(sample)
            np.testing.assert_allclose(of["activation"], peaks[of["images"], latent], rtol=1e-5)
            np.testing.assert_allclose(unpack_maxima(of["maps"]), of["activation"], atol=1e-5 * of["maps"]["scale"])
        assert len(set(about["levels"]["images"])) == len(about["levels"]["at"]) == min(len(firing), len(AT))
        assert (np.array(about["levels"]["activation"]) > 0).all()
        assert len(about["random"]["images"]) == N_RANDOM
        for q, activation in zip(about["levels"]["at"], about["levels"]["activation"], strict=True):
            assert activation == pytest.approx(firing[int(q * (len(firing) - 1) + 0.5)], rel=1e-5)
        spread = about["spread"]
        assert (spread["n_firing"], spread["n_images"]) == (len(firing), N_SAMPLE)
        assert sum(spread["counts"]) == len(firing)
        assert spread["edges"][-1] == pytest.approx(firing.max(initial=0), rel=1e-5)


def test_neighbours_and_classes_are_those_of_the_sample(
    ctx: Context, facts: LatentFacts, told: list[dict[str, Any]]
) -> None:
    W_dec, means = sae_of(ctx, 0).load().W_dec.double().numpy(), facts.levels.codes.matrix("means").toarray()
    labels = open_split(ctx, "train").labels("class")[np.asarray(facts.levels.codes.image_index)]
    is_alive = Rank.at(ctx, 0).load().firing_rate > 0
    often = (means > 0).sum(0) >= MIN_IMAGES
    n_checked = 0
    for latent, about in enumerate(told):
        decoder, coactive = about["near"]["decoder"], about["near"]["coactive"]
        assert latent not in {*decoder["latents"], *coactive["latents"]}
        others = is_alive & (np.arange(len(is_alive)) != latent)
        cosines = np.where(others, W_dec @ W_dec[latent], 0) * is_alive[latent]
        expected = np.sort(cosines[cosines > 1e-6])[::-1][:N_NEAR]
        np.testing.assert_allclose(decoder["values"], expected, atol=1e-5)
        np.testing.assert_allclose(cosines[decoder["latents"]], expected, atol=1e-5)
        assert often[latent] or len(coactive["latents"]) == 0
        for other, value in zip(coactive["latents"], coactive["values"], strict=True):
            assert value == pytest.approx(np.corrcoef(means[:, latent], means[:, other])[0, 1], abs=1e-5)
            n_checked += 1
        total = means[:, latent].sum()
        for label, share in zip(about["classes"]["classes"], about["classes"]["values"], strict=True):
            assert share == pytest.approx(means[labels == label, latent].sum() / total, rel=1e-5)
        assert sum(about["classes"]["values"]) <= 1 + 1e-5
        assert (len(about["classes"]["classes"]) > 0) == (total > 0)
    assert n_checked > 0


def test_latents_are_found_elsewhere(
    ctx: Context, facts: LatentFacts, told: list[dict[str, Any]], tmp_path: Path
) -> None:
    one = make_matchable(ctx, 0)
    order = np.random.default_rng(0).permutation(len(one.W_dec))
    assert list(facts.of_view["matched_by"]) == ["permuted"]
    assert facts.of_view["matched_by"]["permuted"].startswith("largest cosine of decoder rows")
    assert list(facts.of_view["unmatched"]) == ["blind"]
    assert facts.of_view["levels_of"] == f"{N_SAMPLE} of {N_TRAIN} training images, drawn at random"
    for latent, about in enumerate(told):
        if not one.is_alive[latent]:
            assert about["elsewhere"] == []
            continue
        (match,) = about["elsewhere"]
        assert match["view"] == "permuted"
        assert order[match["latent"]] == latent
        assert match["value"] == pytest.approx(1, abs=1e-5)
    write_matches(tmp_path, "seed0", facts.matches)
    assert [path.name for path in (tmp_path / "data" / "seed0" / "columns").iterdir()] == ["match_permuted.js"]
    found = read_value(tmp_path, "seed0/columns/match_permuted")
    np.testing.assert_array_equal(read_array(found["latents"]), facts.matches["permuted"].latents)
    np.testing.assert_array_equal(read_array(found["values"]), facts.matches["permuted"].values)


def test_of_a_latent_that_never_fires_there_is_nothing_to_show(facts: LatentFacts, tmp_path: Path) -> None:
    rows, maps = facts.levels.rows.copy(), np.asarray(facts.levels.maps)
    rows[5, : len(AT)], maps[5] = -1, 0
    nothing = TopSets(np.full((8, 3), -1), np.zeros((8, 3)))
    silent = replace(
        facts,
        levels=replace(facts.levels, rows=rows, maps=SparseMaps.of(maps)),
        spread=Spread(np.zeros(8, np.float32), np.zeros((8, N_BINS), np.int64)),
        decoder=nothing,
        coactive=nothing,
        classes=nothing,
        matches={"other": ViewMatches(np.full(8, -1, np.int32), np.full(8, np.nan, np.float32), "decoder rows")},
    )
    put(tmp_path, "latent", silent.of_latents(range(5, 6))[0])
    told, nobody = read_value(tmp_path, "latent"), {"latents": [], "values": []}
    assert told["levels"]["images"] == told["levels"]["at"] == told["levels"]["activation"] == []
    assert told["levels"]["maps"]["n"] == 0
    assert told["random"]["images"] == facts.levels.images[5, len(AT) :].tolist()
    assert told["random"]["activation"] == [0] * N_RANDOM
    edges, counts = [0] * (N_BINS + 1), [0] * N_BINS
    assert told["spread"] == {"edges": edges, "counts": counts, "n_firing": 0, "n_images": N_SAMPLE}
    assert told["near"] == {"decoder": nobody, "coactive": nobody}
    assert told["classes"] == {"classes": [], "values": []}
    assert told["elsewhere"] == []


def test_all_images_of_levels_are_shown(ctx: Context, told: list[dict[str, Any]]) -> None:
    used = {image for about in told for of in ("levels", "random") for image in about[of]["images"]}
    assert used <= set(find_shown(ctx, 0).tolist())


def test_without_labels_and_neighbours_nothing_is_said_of_them(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_split(ctx, "train"), "truths", frozenset(), raising=False)
    monkeypatch.setattr(ctx.config.explore, "n_near", 0)
    (about,) = LatentFacts.read(ctx, 0, {}).of_latents(range(3, 4))
    assert "classes" not in about
    assert about["near"] == {}
    assert about["elsewhere"] == []


def test_the_sample_and_its_seed_determine_levels(ctx: Context) -> None:
    hashes = {LevelMaps.at(ctx, 0).hash}
    for setting in ("explore.n_level_images=null", "explore.seed=1"):
        hashes.add(LevelMaps.at(make_context(Path(ctx.config.output_dir), setting), 0).hash)
    assert len(hashes) == 3
    same = make_context(Path(ctx.config.output_dir), "explore.n_near=2", "explore.n_images=2")
    assert LevelMaps.at(same, 0).hash in hashes
