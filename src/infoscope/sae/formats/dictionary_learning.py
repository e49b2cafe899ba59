"""dictionary_learning (saprmarks): a state dict with a config.json beside it that names its class, or its tensors do.

The backup of a training that was not finished is a dict of the same (step, ae, optimizer, config, norm_factor) whose
biases and thresholds are those of tokens over norm_factor; those of a finished one are in raw units already. Without a
configuration, a class whose tensors no other toolkit's SAEs have is taken for it, with a warning; where others have the
same, the format must be given. BatchTopK and Matryoshka SAEs are then read as sae-for-vlm's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from infoscope.runtime.errors import InputError
from infoscope.sae.formats import sae_for_vlm
from infoscope.sae.formats.base import Foreign, Found, Options
from infoscope.sae.formats.dictionaries import Given, list_classes, read_class
from infoscope.sae.formats.unknown import refuse_settings
from infoscope.sae.formats.values import check_sizes, get_as, read_layer, read_number, warn_of_layer

LABEL = "dictionary_learning"
AMBIGUOUS = {
    "AutoEncoderNew": "(ReLU, b_dec not subtracted) as well as of any pair of linear layers: fetch its config.json",
    "JumpReluAutoEncoder": (
        "(b_dec not subtracted) as well as of a jumprelu of saelens (b_dec subtracted if its cfg.json says so): fetch"
        " its config.json or cfg.json"
    ),
}
"""Classes whose tensors others have as well, by name, and who."""


def recognise(found: Found) -> bool:
    if found.header is not None or sae_for_vlm.recognise(found):
        return False
    state, trainer = _get_state(found), _find_trainer(found)
    if "dict_class" in trainer:
        return any(name in state for name in ("W_enc", "encoder.weight"))
    return bool(list_classes(state)) and found.config(*sae_for_vlm.CONFIGS) is None


def read(found: Found, options: Options) -> Foreign:
    state, trainer = _get_state(found), _find_trainer(found)
    said = trainer.get("dict_class")
    name = said or next(iter(list_classes(state)), None)
    if not isinstance(name, str):
        raise InputError(f"Expected the tensors of a dictionary, or its class in config.json, found {found.words}.")
    is_free = options.config.format is None and not _is_backup(found)  # a backup is no other toolkit's
    if not said and name in AMBIGUOUS and is_free:
        raise InputError(
            f"no configuration beside it says what it is, and its tensors are those of a {name} of dictionary_learning"
            f" {AMBIGUOUS[name]}, or give sae.format=dictionary_learning."
        )
    foreign = read_class(name, Given(state, options, trainer.get("k"), _get_norm_factor(found)))
    known: tuple[str, ...] = ("norm_factor", "threshold_beta", "threshold_start_step")  # the last two in training alone
    if foreign.kind not in ("relu", "gated"):
        known = (*known, "k")
    refuse_settings(trainer, *known, subtracts_b_dec=foreign.subtracts_b_dec)
    check_sizes(foreign.W_enc, trainer, "activation_dim", "dict_size")
    if not said:
        subtracted = "subtracted" if foreign.subtracts_b_dec else "not subtracted"
        foreign.warnings.append(
            f"No configuration says what it is: by its tensors taken for a {name} of dictionary_learning, of kind"
            f" {foreign.kind}, with b_dec {subtracted} before encoding."
        )
    foreign.layer = read_layer(trainer.get("layer"), "layer")
    foreign.warnings += warn_of_layer(foreign.layer, trainer, "layer")
    foreign.backbone = get_as(str, trainer, "lm_name") or None
    submodule = get_as(str, trainer, "submodule_name") or ""
    foreign.site = re.sub(r"_layer_\d+$", "", submodule) or None  # resid_post_layer_5, mlp_out_layer_5
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
