"""Logistic regression finds the optimum that another minimiser finds, and the strength that held-out images prefer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch

from infoscope.probes import vectors
from infoscope.probes.config import Solver, Task
from infoscope.probes.heads import Standardisation
from infoscope.probes.lbfgs import LogisticRegression, count_regressions, search_strength
from infoscope.probes.run import run_probes
from infoscope.probes.vectors import TrainingImages
from infoscope.sae.edit import EditMode
from infoscope.scope.ablations import Ablation, Role
from tests.support.probe_samples import CLASS_LATENTS, make_config, make_inputs, mask

N_CLASSES = 3


def make_problem(n: int = 120, d: int = 6, noise: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors of unlike scales around a centre for each class, and their classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(N_CLASSES, size=n)
    x = rng.normal(size=(N_CLASSES, d))[labels] + noise * rng.normal(size=(n, d))
    return torch.from_numpy((x * np.linspace(0.5, 2, d) + 1).astype(np.float32)), torch.from_numpy(labels)


def solve_independently(x: np.ndarray, labels: np.ndarray, strength: float) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the optimum in float64 by scipy: (sum of cross-entropies + strength / 2 |W|^2, W, b)."""
    d = x.shape[1]
    x, target = x.astype(np.float64), np.eye(N_CLASSES)[labels]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: d * N_CLASSES].reshape(d, N_CLASSES), flat[d * N_CLASSES :]
        logits = x @ weight + bias
        log_share = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
        rest = np.exp(log_share) - target
        value = -(log_share * target).sum() + strength / 2 * (weight**2).sum()
        return value, np.concatenate([(x.T @ rest + strength * weight).ravel(), rest.sum(0)])

    start = np.zeros((d + 1) * N_CLASSES)
    options = {"maxiter": 10_000, "ftol": 1e-15, "gtol": 1e-9}
    found = scipy.optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return found.fun, found.x[: d * N_CLASSES].reshape(d, N_CLASSES), found.x[d * N_CLASSES :]


@pytest.mark.long
@pytest.mark.parametrize("strength", [1e-2, 1.0, 1e2])
@pytest.mark.parametrize("block_bytes", [10**9, 300])
def test_the_optimum_is_that_of_another_minimiser(
    monkeypatch: pytest.MonkeyPatch, strength: float, block_bytes: int
) -> None:
    monkeypatch.setattr(vectors, "BLOCK_BYTES", block_bytes)
    x, labels = make_problem()
    rows = torch.arange(0, len(x), 2)
    problem = LogisticRegression(x, rows, labels[rows], N_CLASSES)
    found = problem.solve(strength, 500)
    assert found.converged
    value, weight, bias = solve_independently(x[rows].numpy(), labels[rows].numpy(), strength)
    ours = problem.evaluate(found.weight, found.bias)[0] * len(rows) + strength / 2 * found.weight.square().sum().item()
    assert ours == pytest.approx(value, rel=1e-5)
    np.testing.assert_allclose(found.weight.numpy(), weight, atol=2e-3)
    np.testing.assert_allclose(found.bias - found.bias.mean(), bias - bias.mean(), atol=4e-3)  # a common shift is free
    other = problem.solve(strength * 3, 500)
    again = problem.solve(strength, 500, start=other)
    np.testing.assert_allclose(again.weight.numpy(), weight, atol=2e-3)


def test_standardised_vectors_are_penalised_as_such_and_folded_back() -> None:
    x, labels = make_problem()
    standardisation = Standardisation(x.mean(0), x.std(0))
    problem = LogisticRegression(x, torch.arange(len(x)), labels, N_CLASSES, standardisation)
    found = problem.solve(1.0, 500)
    standard = ((x - x.mean(0)) / x.std(0)).numpy()
    _, weight, bias = solve_independently(standard, labels.numpy(), 1.0)
    np.testing.assert_allclose(found.weight.numpy(), weight, atol=2e-3)
    scores = problem.fold(found)(x[None])[0].double().numpy()
    expected = standard @ weight + bias
    np.testing.assert_allclose(
        scores - scores.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-2
    )


def search(**changes: Any) -> tuple[Any, dict[str, Any], torch.Tensor, torch.Tensor]:
    x, labels = make_problem(n=90, d=40, noise=2.5)
    config = make_config(classification_solver=Solver.lbfgs, classification_batch_norm=False, **changes)
    images = TrainingImages(torch.arange(0, 60), torch.arange(60, 90), labels, N_CLASSES)
    maps, record = search_strength("classification/x", x, images, config)
    return maps, record, x, labels


def test_the_search_narrows_around_a_strength_within_the_grid_and_fits_all_images() -> None:
    maps, record, x, labels = search()
    tried = sorted(map(float, record["held_out"]))
    assert {1e-6, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e6} <= set(tried)
    assert 7 < len(tried) <= count_regressions(make_config()) - 1
    assert not record["at_edge"]
    assert 1e-2 < record["best"] < 1e6
    steps = np.diff(np.log10(tried))
    place = int(np.argmin(np.abs(np.log10(tried) - np.log10(record["best"]))))
    assert steps[place - 1 : place + 1] == pytest.approx([0.125, 0.125], abs=1e-4)
    assert record["held_out"][f"{record['best']:g}"] == max(record["held_out"].values())
    assert record["refit_converged"]
    _, weight, _ = solve_independently(x.numpy(), labels.numpy(), record["best"])
    np.testing.assert_allclose(maps.weight[0].numpy(), weight, atol=2e-3)
    json.dumps(record, allow_nan=False)


def test_too_few_iterations_are_no_secret() -> None:
    _, record, *_ = search(lbfgs_max_iterations=2, classification_l2=[1e-4, 1e-2], classification_l2_halvings=0)
    assert record["unconverged"] == ["0.0001", "0.01"]
    assert not record["refit_converged"]
    assert record["at_edge"]
    _, record, *_ = search(classification_l2=[1.0, 10.0], classification_l2_halvings=1)
    assert (record["unconverged"], record["refit_converged"]) == ([], True)


def test_probes_are_solved_and_removal_takes_what_the_group_carries() -> None:
    original = Ablation("original", EditMode.error_preserving, mask([]), Role.original)
    without = Ablation("without_class", EditMode.error_preserving, mask(CLASS_LATENTS), Role.group, "high")
    config = make_config(
        tasks=[Task.classification],
        classification_solver=Solver.lbfgs,
        classification_l2=[1e-2, 1.0, 1e2],
        classification_l2_halvings=1,
    )
    said: list[tuple[int, int]] = []

    def note(what: str, done: int, of: int) -> None:
        if what == "logistic regressions":
            said.append((done, of))

    results = run_probes([original, without], make_inputs(), config, progress=note)
    whole, cut = results.values()
    for task in ("classification/patch_mean", "classification/cls_final"):
        assert whole.metrics[task]["top1"] > 0.9
        assert whole.frozen_head[task] == whole.metrics[task]
        assert cut.metrics[task]["top1"] < 0.7
        assert cut.frozen_head[task]["top1"] < 0.7
        assert whole.lr[task].keys() == {"best", "at_edge", "held_out", "unconverged", "refit_converged"}
    assert said[0][1] == 2 * 2 * count_regressions(config)
    assert [done for done, _ in said] == list(range(1, len(said) + 1))
