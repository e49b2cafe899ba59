"""A model of facts about marks, and images that have none."""

from __future__ import annotations

from pathlib import Path

import pytest

from infoscope.config.tree import compose
from infoscope.pipeline.context import Context
from infoscope.stages.tokens import Tokens
from tests.support.pipeline_samples import Recorder


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        (("model=planted_facts",), "data=scenes"),
        (("model=planted_facts", "data.planted=text"), "data=scenes"),
        (("model=planted_facts", "data=image_folder", "data.root={}"), "data=image_folder"),
        (("model=planted_facts", "data.planted=marks"), ""),
        (("model=planted_registers",), ""),
    ],
)
def test_images_without_marks_are_said_once(
    overrides: tuple[str, ...], warned: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infoscope.stages.tokens.check_split", lambda *_: None)
    monkeypatch.setattr(Tokens, "key", lambda *_: {})
    settings = [one.format(tmp_path) for one in overrides]
    ctx = Context(compose([*settings, f"output_dir={tmp_path}", "logger=none"]), Recorder())
    for _ in range(2):
        Tokens().check(ctx, "train", ctx.config.data, -2)
    assert isinstance(ctx.display, Recorder)
    said = f"Warning: model=planted_facts reads its facts from marks, which {warned} lacks"
    assert ctx.display.text.count("Warning") == ctx.display.text.count(said) == bool(warned)
