"""The experiments that are scripts of their own run through on the tiny configuration."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from pipeline_samples import make_overrides


@pytest.fixture
def sae_settings() -> ModuleType:
    path = Path(__file__).parents[1] / "experiments" / "sae_settings.py"
    spec = importlib.util.spec_from_file_location("sae_settings", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
