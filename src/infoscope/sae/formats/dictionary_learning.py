"""dictionary_learning (saprmarks): a state dict with a config.json beside it that names its class, or its tensors do.

The backup of a training that was not finished is a dict of the same (step, ae, optimizer, config, norm_factor) whose
biases and thresholds are those of tokens over norm_factor; those of a finished one are in raw units already. Files
whose tensors do not say which class they are, and have no configuration, are read as sae-for-vlm's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.formats import sae_for_vlm
from infoscope.sae.formats.base import Foreign, Found, Options
from infoscope.sae.formats.dictionaries import File, list_classes, read_class
from infoscope.sae.formats.values import check_sizes, get_as, read_number, refuse_settings

LABEL = "dictionary_learning"


def recognise(found: Found) -> bool:
    if found.header is not None or sae_for_vlm.recognise(found):
        return False
    state, trainer = _get_state(found), _find_trainer(found)
    if "dict_class" in trainer:
        return any(name in state for name in ("W_enc", "encoder.weight"))
    return bool(list_classes(state)) and found.config(*sae_for_vlm.CONFIGS) is None


def read(found: Found, options: Options) -> Foreign:
    state, trainer = _get_state(found), _find_trainer(found)
    name = trainer.get("dict_class") or next(iter(list_classes(state)), None)
    if not isinstance(name, str):
        raise InputError(f"Expected the tensors of a dictionary, or its class in config.json, found {found.words}.")
    refuse_settings(trainer, "norm_factor", "threshold_beta", "threshold_start_step")  # the last two in training alone
    foreign = read_class(name, File(state, options, trainer.get("k"), _get_norm_factor(found)))
    check_sizes(foreign.W_enc, trainer, "activation_dim", "dict_size")
    foreign.layer, foreign.backbone = get_as(int, trainer, "layer"), get_as(str, trainer, "lm_name") or None
    foreign.site = "resid_post" if (get_as(str, trainer, "submodule_name") or "").startswith("resid_post") else None
    return foreign


def _is_backup(found: Found) -> bool:
    return isinstance(found.content, Mapping) and {"ae", "norm_factor"} <= found.content.keys()


def _get_state(found: Found) -> dict[str, Tensor]:
    return found.get_state("ae") if _is_backup(found) else found.state


def _get_norm_factor(found: Found) -> float:
    factor = found.content["norm_factor"] if _is_backup(found) else None
    return 1.0 if factor is None else read_number(factor, "norm_factor", above=0)


def _find_trainer(found: Found) -> Mapping[str, Any]:
    """Return the settings of the training: in a backup, or beside the file; empty if there are none."""
    inside = found.content.get("config") if _is_backup(found) else None
    trainer = inside or (found.config("config.json") or {}).get("trainer")
    return trainer if isinstance(trainer, Mapping) else {}
