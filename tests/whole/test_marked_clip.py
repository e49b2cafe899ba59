"""experiments/marked_clip.py: two steps, and what it writes is a model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infoscope.vision.config import ModelConfig
from infoscope.vision.load import load_backbone
from tests.support.experiment_samples import load_experiment


def test_it_tunes_scenes_clip_and_writes_what_model_pretrained_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "marked"
    arguments = [str(folder), "--n-images=40", "--n-steps=2", "--batch-size=4"]
    assert load_experiment("marked_clip").main(arguments) == 0
    assert capsys.readouterr().out.strip().endswith(f"model.pretrained=local-dir:{folder}")
    tuned, shipped = (load_backbone(ModelConfig(pretrained=one)) for one in (f"local-dir:{folder}", "shipped"))
    pictures = torch.randint(256, (2, 3, 96, 96), generator=torch.Generator().manual_seed(0)).byte()
    tokens, before = (one.tokens(pictures, -2).patches for one in (tuned, shipped))
    assert 0 < (tokens - before).abs().max() < 1
