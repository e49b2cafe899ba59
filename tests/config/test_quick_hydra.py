"""What the tests let Hydra keep between compositions changes none of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra._internal import config_loader_impl, defaults_list

from infoscope.config.tree import compose
from infoscope.runtime.errors import InputError
from tests.support import quick_hydra


@pytest.mark.long
def test_a_copy_is_what_hydra_would_have_read(tmp_path: Path) -> None:
    asked = [[], ["debug=tiny"], ["debug=tiny", "seeds=[4]", "scope.k_cds=2"], ["sae=relu", "model=planted_registers"]]
    read = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config_loader_impl, "create_defaults_list", defaults_list.create_defaults_list)
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
    with pytest.raises(InputError, match="Unknown sae 'nothing'"):
        compose(["sae=nothing"])
    (own.parent.parent / "sae").mkdir()
    (own.parent.parent / "sae" / "nothing.yaml").write_text("defaults: [relu, _self_]\n")
    assert compose(["sae=nothing"], [str(tmp_path)]).sae == compose(["sae=relu"]).sae
