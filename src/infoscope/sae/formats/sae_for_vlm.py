"""sae-for-vlm: state dicts as dictionary_learning writes them, in a folder whose name says what it was trained on.

    {data set}_train_activations_{model}_{layer}_{site}_{kind}_{k}_x{expansion}/trainer_0/checkpoints/ae_{step}.pt

A file is of this format if a folder above it has such a name, or one that ends so (matroyshka_batch_top_k_20_x4, spelt
so); or if it is a BatchTopK or Matryoshka SAE without a configuration beside it. A BatchTopK SAE of which neither says
what it is may be a top-k SAE as well, which has the same tensors: `sae.kind` is demanded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infoscope.runtime.errors import InputError
from infoscope.sae.config import TokenChoice
from infoscope.sae.formats.base import Foreign, Found, Options
from infoscope.sae.formats.dictionaries import Given, list_classes, read_class
from infoscope.vision.hooks import POOLED

LABEL = "sae-for-vlm"
CLASSES = {
    "matroyshka_batch_top_k": "MatryoshkaBatchTopKSAE",
    "batch_top_k": "BatchTopKSAE",
    "top_k": "AutoEncoderTopK",
    "jumprelu": "JumpReluAutoEncoder",
    "standard": "AutoEncoder",
}
"""What its folders call a class of dictionary_learning's."""
KINDS = {"batchtopk": "BatchTopKSAE", "topk": "AutoEncoderTopK"}
"""Those of the same tensors."""
SITES = {"post_mlp_residual": "resid_post", "post_mlp": "mlp_out", "post_projection": POOLED}
OWNERS = {"clip-": "openai/", "siglip": "google/", "dinov2": "facebook/"}
NAME = re.compile(
    r"(?:(?P<data>.+)_[a-z]+_activations_(?P<model>.+)_(?P<layer>-?\d{1,4})_(?P<site>\w+?)_|(?P<before>.*?)(?<![^\W_]))"
    rf"(?P<kind>{'|'.join(CLASSES)})_(?P<k>\d+)_x(?P<expansion>\d+)",
    re.IGNORECASE,
)
"""As little as can be stands before the kind, which is thus the longest that the name ends in."""
LONGER = {"top_k": ("batch", "matr"), "batch_top_k": ("matr",)}
"""What, before a kind, says that it may be another one spelt otherwise: batch-top_k, matryoshka_batch_top_k."""
CONFIGS = ("config.json", "cfg.json", "config.yaml", "config.yml")


def recognise(found: Found) -> bool:
    classes = list_classes(found.state) if found.header is None else []
    is_batch = "BatchTopKSAE" in classes or "MatryoshkaBatchTopKSAE" in classes
    return bool(classes) and (bool(_find_facts(found).get("kind")) or (is_batch and found.config(*CONFIGS) is None))


def read(found: Found, options: Options) -> Foreign:
    facts = _find_facts(found)
    classes = list_classes(found.state)
    name = CLASSES.get(facts.get("kind") or "") or _choose_class(classes, options)
    if name not in classes:
        raise InputError(
            f"Its folder calls it {facts.get('kind')}, and it has tensors of {', '.join(classes) or 'none'}."
        )
    foreign = read_class(name, Given(found.state, options))
    if not facts.get("model"):
        return foreign
    site, layer = facts["site"], int(facts["layer"])
    foreign.site = SITES.get(site.lower(), site)
    foreign.layer = None if foreign.site == POOLED else layer
    foreign.tokens = TokenChoice.all if any("random_k" in part for part in found.parts) else TokenChoice.cls
    foreign.backbone = next((owner for start, owner in OWNERS.items() if facts["model"].lower().startswith(start)), "")
    foreign.backbone += facts["model"]
    foreign.facts["dataset"] = facts["data"]
    return foreign


def _choose_class(classes: list[str], options: Options) -> str:
    """Return the class of a file whose folder does not say it.

    Raises:
        InputError: there are two, and the settings do not say which.
    """
    if len(classes) == 1:
        return classes[0]
    kind = options.kind(*KINDS)
    if kind is None:
        raise InputError(
            "Top-k and BatchTopK SAEs have the same tensors, and neither its folder (..._batch_top_k_20_x4) nor a"
            f" config.json beside it says which it is: give sae.kind= ({' or '.join(KINDS)})."
        )
    return KINDS[kind]


def _find_facts(found: Found) -> Mapping[str, Any]:
    """Return what the folders above a file say: the nearest that tells all, or else the nearest that tells some.

    The kind is None where the name is not quite the toolkit's.
    """
    matches = [match for match in map(NAME.fullmatch, found.parts) if match]
    matches.sort(key=lambda match: not match["model"])  # stable: the nearest first
    if not matches:
        return {}
    facts = matches[0].groupdict()
    kind, before = facts["kind"].lower(), (facts["site"] or facts["before"] or "").lower()
    is_other = any(word in before for word in LONGER.get(kind, ()))
    return facts | {"kind": None if is_other else kind}
