"""What latents are worth, predicted: planted tables of which it is known what CDS adds to the other columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infoscope.probes.worth import (
    ALONE,
    BASE,
    RULES,
    VERSION,
    WITH,
    WITHOUT,
    Known,
    Weights,
    fit_weights,
    make_terms,
    predict_worth,
)
from infoscope.runtime.errors import InputError

D_SAE = 300
WEIGHTS = Weights({WITHOUT: {"depth": {"ms": (0.5, -0.25)}}, ALONE: {"depth": {"cds": (1.0, 0.0)}}}, "class", ["ab"])


def make_known(seed: int) -> Known:
    noise = np.random.default_rng(seed)
    columns = {name: noise.lognormal(size=D_SAE) for name in (*BASE, "cds")}
    return Known(columns, np.arange(D_SAE) >= 20)


def correlate(a: np.ndarray, b: np.ndarray, members: np.ndarray) -> float:
    return float(np.corrcoef(a[members], b[members])[0, 1])


def test_terms_are_ranks_and_squares_of_unit_variance() -> None:
    known = make_known(0)
    linear, square = make_terms(known, "ms")
    order = np.argsort(known.columns["ms"][known.members])
    assert (np.diff(linear[order]) > 0).all()
    assert np.abs(square).argmax() in (order[0], order[-1])
    for term in (linear, square):
        assert term.mean() == pytest.approx(0, abs=1e-9)
        assert term.var() == pytest.approx(1, abs=0.02)
    assert np.mean(linear * square) == pytest.approx(0, abs=1e-9)


def test_ranks_forget_the_scale_and_the_latents_that_are_no_members() -> None:
    known = make_known(0)
    columns = dict(known.columns, ms=np.log(known.columns["ms"]) * 7)
    columns["ms"][~known.members] = 1e9
    np.testing.assert_allclose(make_terms(Known(columns, known.members), "ms"), make_terms(known, "ms"))


def test_a_latent_without_a_value_is_average() -> None:
    known = make_known(0)
    known.columns["ms"][[50, 60]] = np.nan
    terms = make_terms(known, "ms")
    assert (terms[:, [30, 40]] == 0).all()
    assert terms.mean(1) == pytest.approx(0, abs=1e-9)
    nothing = Known({"ms": np.full(D_SAE, np.nan)}, known.members)
    assert (make_terms(nothing, "ms") == 0).all()


def test_weights_carry_over_to_other_latents() -> None:
    """Worth falls with MS and is largest for middling CDS."""

    def make_effect(known: Known) -> np.ndarray:
        linear, square = (make_terms(known, name) for name in ("ms", "cds"))
        effect = np.full(D_SAE, np.nan)
        effect[known.members] = np.exp(-linear[0] - square[1])
        return effect

    fitted_on, other = [make_known(seed) for seed in (0, 1)], make_known(2)
    weights = fit_weights(fitted_on, [make_effect(known) for known in fitted_on], RULES[WITH])
    assert weights.keys() == {*RULES[WITH]}
    assert weights["ms"][0] < -0.5
    assert weights["cds"][1] < -0.5
    assert max(abs(of) for name in BASE if name != "ms" for of in weights[name]) < 0.15
    worth = predict_worth(other, weights)
    assert np.isnan(worth[~other.members]).all()
    assert correlate(worth, np.log(make_effect(other)), other.members) > 0.95


def test_too_few_latents() -> None:
    known = Known(make_known(0).columns, np.arange(D_SAE) < 12)
    with pytest.raises(InputError, match="more than 12 scored latents"):
        fit_weights([known], [np.zeros(D_SAE)], RULES[WITH])


def test_weights_are_the_same_when_read_again(tmp_path: Path) -> None:
    WEIGHTS.save(tmp_path / "weights.json")
    assert Weights.load(tmp_path / "weights.json") == WEIGHTS
    assert [path.name for path in tmp_path.iterdir()] == ["weights.json"]


def change(rules: Any = None, **others: Any) -> dict:
    content = {"format": "infoscope worth of latents", "version": VERSION, **vars(WEIGHTS), **others}
    return content if rules is None else {**content, "rules": rules}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "to be JSON"),
        ([], "to be written by experiments/select_features.py"),
        (change(format="other"), "to be written by experiments/select_features.py"),
        (change(version=VERSION + 1), f"of version {VERSION}, got {VERSION + 1}"),
        (change({"new": {}}), "rules .* among base, base_cds, .* got 'new'"),
        (change({WITHOUT: {"depth": {"cds": [1, 2]}}}), "rule base .* got cds as well"),
        (change({WITHOUT: {"depth": {"ms": [1]}}}), "two finite numbers"),
        (change({WITHOUT: {"depth": {"ms": [1, float("inf")]}}}), "two finite numbers"),
        (change({WITHOUT: {"depth": 3}}), "two finite numbers"),
        ({key: value for key, value in change().items() if key != "images"}, "two finite numbers"),
    ],
)
def test_files_that_are_no_weights(content: Any, words: str, tmp_path: Path) -> None:
    file = tmp_path / "weights.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=words) as refused:
        Weights.load(file)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="to be a file, but: No such file"):
        Weights.load(tmp_path / "none.json")
