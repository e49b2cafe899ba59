"""explore.of: the settings of scores that exist, as their folder keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from infoscope.config.errors import COMPOSITION_ERRORS
from infoscope.config.tree import Config, make_config
from infoscope.runtime.errors import InputError
from infoscope.runtime.manifests import CONFIG, read_manifest
from infoscope.runtime.uses import USES_FILE, read_uses
from infoscope.sae.config import KINDS
from infoscope.sae.import_config import IMPORT, ImportedConfig

_SCORE = "score"
_OWN = ("stage", "seeds", "explore", "partition", "trainer", "logger", "plan", "output_dir")
"""What a command may set beside explore.of; all else is what the scores were made with."""


def reopen(config: Config, given: Sequence[str] = ()) -> Config:
    """Return the configuration of the scores that `explore.of` names, with what this command sets; else `config`.

    `explore.of` is then the folder of the scores themselves, and where these lie is the output folder.

    Args:
        given: the settings of the command line.

    Raises:
        InputError: there are no such scores, their settings cannot be read, something else is set, or
            `explore.root` where they are of no folder.
    """
    if config.explore.of is None:
        return config
    if config.stage.name != "explore":
        raise InputError("explore.of is read by stage=explore alone: drop it, or choose that.")
    keys = [override.lstrip("+~").partition("=")[0] for override in given]
    for key in keys:
        if key.partition(".")[0] not in _OWN:
            raise InputError(
                f"explore.of takes all settings from the scores that it names: drop {key}; where their images lie now"
                " is explore.root."
            )
    scores = find_scores(Path(config.explore.of))
    past, asked = _read_config(scores), {"seeds", "partition"} & {key.partition(".")[0] for key in keys}
    precision = (config if "trainer.precision" in keys else past).trainer.precision
    if config.explore.root is not None and past.data.root is None:
        raise InputError(f"explore.root means nothing to scores of data.kind={past.data.kind.name}: drop it.")
    return replace(
        past,
        explore=replace(config.explore, of=str(scores)),
        data=past.data if past.data.root is None else replace(past.data, root=config.explore.root or past.data.root),
        trainer=replace(config.trainer, precision=precision),
        output_dir=str(scores.parents[2]),
        **{name: getattr(config, name) for name in ("stage", "logger", "plan", *asked)},
    )


def find_scores(folder: Path) -> Path:
    """Return the folder of scores that a path stands for: itself, or the first that a run has used.

    Args:
        folder: of scores, or of a run, which holds artifacts.json.

    Raises:
        InputError: it is neither.
    """
    folder = folder.expanduser().absolute()
    about = read_manifest(folder)
    if about is not None and about["stage"] == _SCORE:
        return folder
    used = [made for made, what in read_uses(folder / USES_FILE).items() if what.startswith(f"{_SCORE}/")]
    for place in folder.parents:
        for made in used:
            for found in sorted((place / "artifacts" / _SCORE).glob(f"*-{made}")):
                if read_manifest(found) is not None:
                    return found
    raise InputError(
        f"Expected in explore.of= the folder of scores (OUTPUT_DIR/artifacts/score/NAME) or of a run that made or read"
        f" some, got {folder}, which is neither: stage=score makes them."
    )


def _read_config(scores: Path) -> Config:
    file = scores / CONFIG
    try:
        tree: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
        schema = OmegaConf.structured(Config)
        schema.sae = OmegaConf.structured({**KINDS, IMPORT: ImportedConfig}[tree["sae"]["kind"]])
        merged = OmegaConf.merge(schema, tree)
        assert isinstance(merged, DictConfig)
        return make_config(merged)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, *COMPOSITION_ERRORS) as error:
        raise InputError(
            f"The settings in {file} cannot be read ({type(error).__name__}: {error}): another version of infoscope has"
            " written them, or the file is damaged; give the settings themselves, without explore.of."
        ) from error
