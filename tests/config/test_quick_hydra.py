"""What the tests let Hydra keep between compositions changes none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from infoscope.config.tree import compose
from tests.support import quick_hydra


@pytest.mark.long
def test_a_copy_is_what_hydra_would_have_read(tmp_path: Path) -> None:
    asked = [[], ["debug=tiny"], ["debug=tiny", "seeds=[4]", "scope.k_cds=2"], ["sae=relu", "model=planted_registers"]]
    read = []
    for overrides in asked:
        quick_hydra._KNOWN.clear()
        read.append(compose(overrides))
    for _ in range(2):
        assert [compose(overrides) for overrides in asked] == read
    own = tmp_path / "local" / "default.yaml"
    own.parent.mkdir()
    for folder in ("/one", "/two"):
        own.write_text(f"# @package _global_\noutput_dir: {folder}\n")
        assert compose([], [str(tmp_path)]).output_dir == folder
    assert compose([]) == read[0]
