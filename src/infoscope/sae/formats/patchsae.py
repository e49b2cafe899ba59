"""PatchSAE, and Hugo Fry's and ConceptScope's SAEs, which share its code: a dict of a config object and a state dict.

ReLU after subtracting b_dec, on raw tokens (`sae_training/sparse_autoencoder.py`). The config's `gated_sae` is never
implemented there and is ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infoscope.runtime.untrusted import Record
from infoscope.sae.activations import ReLU
from infoscope.sae.config import TokenChoice
from infoscope.sae.formats.base import USUAL_KEYS, Foreign, Found, Options, need
from infoscope.sae.formats.unknown import refuse_settings
from infoscope.sae.formats.values import check_sizes, get_as, name_dtype, read_flag, read_layer, warn_of_layer

LABEL = "PatchSAE, Hugo Fry, ConceptScope"
SITES = {"resid": "resid_post"}


def recognise(found: Found) -> bool:
    return _find_config(found) is not None and found.get_state("state_dict").keys() == set(USUAL_KEYS)


def read(found: Found, options: Options) -> Foreign:
    W_enc, b_enc, W_dec, b_dec = need(found.get_state("state_dict"), *USUAL_KEYS)
    config = _find_config(found) or {}
    plain = ("relu", "standard")
    telling = {name: value for name, value in config.items() if get_as(str, config, name) not in plain}
    of_topk = ["topk_k"] * (config.get("topk_sae") is False)  # of a fork, and not used by its plain SAEs
    refuse_settings(telling, *of_topk, subtracts_b_dec=True)
    check_sizes(W_enc, config, "d_in", "d_sae")
    layer, site = read_layer(config.get("block_layer"), "block_layer"), get_as(str, config, "module_name")
    return Foreign(
        kind="relu",
        activation=ReLU(),
        W_enc=W_enc,
        W_dec=W_dec,
        b_enc=b_enc,
        b_dec=b_dec,
        backbone=get_as(str, config, "model_name"),
        image_px=get_as(int, config, "image_width"),
        layer=layer,
        site=SITES.get(site or "", site),
        tokens=TokenChoice.cls if read_flag(config, "class_token") else TokenChoice.all,
        facts={
            "dataset": get_as(str, config, "dataset_path"),
            "dtype": name_dtype(W_enc),
        },
        warnings=warn_of_layer(layer, config, "block_layer"),
    )


def _find_config(found: Found) -> Mapping[str, Any] | None:
    """Return the attributes of the config object of SAE training; those of another toolkit's have no `block_layer`."""
    content = found.content if isinstance(found.content, Mapping) else {}
    given = content.get("cfg", content.get("config"))
    config = given.attributes if isinstance(given, Record) else given
    return config if isinstance(config, Mapping) and "block_layer" in config else None
