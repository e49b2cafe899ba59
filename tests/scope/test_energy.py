"""Energy of groups of latents on a sample of tokens, and what is matched by it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from infoscope.runtime.errors import InputError
from infoscope.sae.activation import list_dense
from infoscope.sae.config import TokenNorm
from infoscope.sae.edit import GroupEditor
from infoscope.sae.passes import LatentBatch, measure_one
from infoscope.scope import energy as energy_module
from infoscope.scope.ablations import Role, make_ablations
from infoscope.scope.config import Control, PartitionConfig, Rule
from infoscope.scope.energy import Cumulate, Energy, SampleMeter, TokenSample, measure_sample
from infoscope.scope.partition import energy_threshold, make_partition
from tests.support import imported_samples
from tests.support.memory_tokens import MemoryTokens

N_TOKENS, D_SAE, D_IN = 60, 30, 7


@pytest.fixture
def acts() -> np.ndarray:
    rng = np.random.default_rng(0)
    acts = rng.exponential(size=(N_TOKENS, D_SAE)) * (rng.random((N_TOKENS, D_SAE)) < 0.2)
    acts[5] = 0  # a token on which nothing fires
    acts[:, 3] = 0  # a silent latent
    return acts.astype(np.float32)


@pytest.fixture
def W_dec() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(D_SAE, D_IN))


def make_sample(acts: np.ndarray) -> TokenSample:
    tokens, latents = np.nonzero(acts)
    return TokenSample(len(acts), tokens.astype(np.int32), latents.astype(np.int32), acts[tokens, latents])


@pytest.fixture
def energy(acts: np.ndarray, W_dec: np.ndarray) -> Cumulate:
    return Energy(make_sample(acts), W_dec).cumulate


def compute_directly(acts: np.ndarray, W_dec: np.ndarray, latents: np.ndarray) -> float:
    return float((acts[:, latents].astype(np.float64) @ W_dec[latents]).__pow__(2).sum(1).mean())


@pytest.mark.parametrize(("max_values", "max_pairs"), [(1, 2**28), (7 * D_SAE, 0), (2**22, 2**28)])
def test_energy_is_that_of_latents_removed_together(
    acts: np.ndarray, W_dec: np.ndarray, max_values: int, max_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy_module, "MAX_VALUES", max_values)
    monkeypatch.setattr(energy_module, "MAX_PAIRS", max_pairs)
    energy = Energy(make_sample(acts), W_dec).cumulate
    order = np.random.default_rng(2).permutation(D_SAE)[:20]
    expected = [compute_directly(acts, W_dec, order[: n + 1]) for n in range(len(order))]
    np.testing.assert_allclose(energy(order), expected, rtol=1e-10)


def test_nothing_that_fires_has_no_energy(energy: Cumulate) -> None:
    assert energy(np.array([3])).tolist() == [0]
    assert energy(np.array([], dtype=int)).tolist() == []


def make_batch(acts: np.ndarray, rows: list[int], n_patches: int) -> LatentBatch:
    dense = torch.from_numpy(acts.reshape(-1, n_patches, D_SAE)[rows])
    return LatentBatch(list_dense(dense.flatten(0, 1)), torch.tensor(rows), np.array(rows), n_patches, D_SAE)


def test_the_sample_holds_the_chosen_tokens_whatever_the_parts(acts: np.ndarray, tmp_path: Path) -> None:
    chosen, n_patches = np.array([0, 5, 17, 18, 44, 59]), 6

    def measure(*parts: list[list[int]]) -> TokenSample:
        whole = SampleMeter(chosen)
        for batches in parts:
            meter = SampleMeter(chosen)
            for rows in batches:
                meter.update(make_batch(acts, rows, n_patches))
            whole.add(meter.to_part())
        return whole.compute()

    expected = make_sample(acts[chosen])
    expected.save(tmp_path)
    for found in (measure([list(range(10))]), measure([[7, 9], [8]], [list(range(7))]), TokenSample.load(tmp_path)):
        assert found.n_tokens == len(chosen)
        for name in ("tokens", "latents", "values"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_the_sample_is_fixed_and_all_tokens_where_there_are_few() -> None:
    def choose(n_tokens: int) -> np.ndarray:
        return measure_sample(None, 10, 6, n_tokens).make_meter("cpu", None).chosen  # type: ignore[arg-type]

    assert choose(100).tolist() == list(range(60))
    assert choose(20).tolist() == choose(20).tolist()
    assert len(set(choose(20).tolist())) == 20


@pytest.mark.parametrize("token_norm", imported_samples.NORMS)
@pytest.mark.parametrize("name", ["relu", "signed"])
def test_it_is_that_of_the_edit_whatever_the_sae(name: str, token_norm: TokenNorm) -> None:
    sae, x = imported_samples.make_sae(name, token_norm), imported_samples.make_tokens(7, 9)
    sample = measure_one(MemoryTokens(x), measure_sample(sae, 7, 9, 1000)).compute()
    energy = Energy(sample, sae.W_dec.numpy()).cumulate
    order = np.random.default_rng(2).permutation(sae.d_sae)[:20]
    for n, found in enumerate(energy(order), start=1):
        removed = torch.zeros(sae.d_sae, dtype=torch.bool)
        removed[order[:n]] = True
        taken = GroupEditor(sae, x.flatten(0, 1)).contribution(removed) * sae.scale
        assert found == pytest.approx(float(taken.square().sum(1).mean()), rel=1e-5)


def test_random_groups_have_the_groups_energy(acts: np.ndarray, W_dec: np.ndarray, energy: Cumulate) -> None:
    mass, drawable = acts.mean(0), acts.max(0) > 0
    members = np.arange(D_SAE) < 12
    groups = {"high": members, "low": ~members}
    variants = make_ablations(groups, drawable, mass, controls=[Control.energy, Control.mass], energy=energy)
    controls = [variant for variant in variants if variant.role is Role.control]
    assert [variant.control for variant in controls] == 2 * (5 * [Control.mass] + 5 * [Control.energy])
    largest = max(compute_directly(acts, W_dec, np.array([latent])) for latent in range(D_SAE))
    for variant in controls:
        if variant.control is Control.energy:
            of_group = compute_directly(acts, W_dec, np.flatnonzero(groups[str(variant.group)]))
            assert compute_directly(acts, W_dec, np.flatnonzero(variant.ablated)) == pytest.approx(
                of_group, abs=largest
            )


def test_other_controls_are_drawn_as_without_it(acts: np.ndarray, energy: Cumulate) -> None:
    def draw(*controls: Control) -> dict[str, bytes]:
        groups = {"high": np.arange(D_SAE) < 12}
        variants = make_ablations(groups, acts.max(0) > 0, acts.mean(0), controls=controls, energy=energy)
        return {variant.name: variant.ablated.tobytes() for variant in variants}

    assert draw(Control.mass, Control.energy).items() >= draw(Control.mass).items()
    assert draw(Control.size, Control.mass).items() >= draw(Control.mass).items()


def test_gamma_divides_the_energy(acts: np.ndarray, W_dec: np.ndarray, energy: Cumulate) -> None:
    cds = np.linspace(0, 1, D_SAE)
    cds[[4, 20]] = np.nan
    found = make_partition(cds, acts.mean(0), PartitionConfig(rule=Rule.energy), energy)

    def distance(gamma: float | None) -> float:
        low, high = (np.flatnonzero(members) for members in (cds <= float(gamma or 0), cds > float(gamma or 0)))
        return abs(compute_directly(acts, W_dec, low) - compute_directly(acts, W_dec, high))

    assert found.gamma in cds
    assert distance(found.gamma) == pytest.approx(min(distance(gamma) for gamma in cds[~np.isnan(cds)]))
    assert found.low.sum() + found.high.sum() == D_SAE - 2


def test_equal_scores_stay_together(energy: Cumulate) -> None:
    scores = np.repeat([0.1, 0.2, 0.3], 10)
    gamma = energy_threshold(scores, np.arange(D_SAE), energy)
    assert gamma in (0.1, 0.2)
    assert energy_threshold(np.full(D_SAE, 0.5), np.arange(D_SAE), energy) == 0.5


def test_without_tokens_the_rule_is_refused(acts: np.ndarray) -> None:
    with pytest.raises(InputError, match="The rule energy reads activations on tokens, which are not here"):
        make_partition(np.linspace(0, 1, D_SAE), acts.mean(0), PartitionConfig(rule=Rule.energy))


def test_without_scores_there_is_no_gamma(acts: np.ndarray, energy: Cumulate) -> None:
    found = make_partition(np.full(D_SAE, np.nan), acts.mean(0), PartitionConfig(rule=Rule.energy), energy)
    assert found.gamma is None
    assert not found.high.any()
    assert not found.low.any()
