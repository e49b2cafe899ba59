"""An SAE on disk: `sae.safetensors` (weights, mu, c) and `sae.json` (everything else). No pickle.

Tensors: W_enc [d_in, d_sae], b_enc, W_dec [d_sae, d_in], b_dec, mean [d_in], scale []; data_mean [d_in] where it is not
the mean; what an activation keeps, as `activation.<name>`: threshold [] (batchtopk, matryoshka_prefix), log_threshold
[d_sae] (jumprelu), threshold [] or [d_sae] (threshold), gate_bias, mag_bias, mag_scale [d_sae] (gated). JSON: format,
format_version, kind, activation (its settings), d_in, d_sae, token_norm, origin (see `Origin`), training (config),
sha256 of the weights file. Files of version 1 are read: their origin is layer, backbone, image_px and tokens at the
top, and they know no token_norm.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import reprlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from infoscope.runtime.calls import name_type, speaks_python
from infoscope.runtime.errors import InputError, get_first_line
from infoscope.runtime.large_tensors import cut_rows, fill_tensors, is_finite, write_tensors
from infoscope.runtime.manifests import compute_checksum, read_manifest
from infoscope.runtime.precision import Precision
from infoscope.runtime.untrusted.kinds import make_printable
from infoscope.runtime.untrusted.makers import NotReadError
from infoscope.runtime.untrusted.safetensors_files import read_header
from infoscope.sae.activations import ACTIVATIONS, MatryoshkaPrefix, make_activation
from infoscope.sae.config import TokenChoice, TokenNorm
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.source import read_prefix_sizes

FORMAT = "infoscope-sae"
FORMAT_VERSION = 2
WEIGHTS_NAME, INFO_NAME = "sae.safetensors", "sae.json"
_MAX_INFO = 2**20
"""Bytes of `sae.json`."""
_SETTINGS = {
    "k": [int],
    "signed": [bool],
    "d_sae": [int],
    "inner": [str],
    "inner_settings": [dict],
    "cap": [int, float],
}
"""What activations are saved with."""
_SAYS_OURS = re.compile(rb'"format"\s*:\s*"%b"' % FORMAT.encode())


def save_sae(
    folder: Path | str,
    sae: SparseAutoencoder,
    *,
    layer: int | None = None,
    backbone: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
) -> None:
    """Write both files into `folder`, which is made; what the SAE knows of its origin goes with it.

    Args:
        layer: the block whose output the SAE reads; None: as its origin says.
        backbone: the fingerprint of the backbone that gave the tokens; None: as its origin says.
        training: the training config, for the record. Both as plain JSON values.
    """
    folder, origin = Path(folder).expanduser(), sae.origin
    origin = replace(
        origin,
        layer=origin.layer if layer is None else layer,
        backbone=origin.backbone if backbone is None else backbone,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_NAME, sae.state_dict(), {"format": FORMAT})
    info = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "kind": sae.activation.kind,
        "activation": sae.activation.settings(),
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "token_norm": sae.token_norm.name,
        "origin": origin.to_json(),
        **({"prefix_sizes": [*sae.prefix_sizes]} if sae.prefix_sizes else {}),
        "training": training or {},
        "sha256": compute_checksum(folder / WEIGHTS_NAME),
    }
    (folder / INFO_NAME).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


@speaks_python()
def load_sae(path: Path | str) -> SparseAutoencoder:
    """Return the SAE saved in a folder, given the folder or either of its two files. On the CPU, in eval mode.

    It knows its `origin`: the layer and the backbone that it was trained on.

    Raises:
        InputError: if the files are missing, damaged, of another program or of a newer version.
    """
    info = load_sae_info(path)
    weights = _find_folder(path) / WEIGHTS_NAME
    if not weights.is_file():
        raise InputError(f"Expected {WEIGHTS_NAME} next to {INFO_NAME} in {weights.parent}, found none.")
    if compute_checksum(weights) != info["sha256"]:
        raise InputError(f"{weights} is damaged: its checksum is not the one in {INFO_NAME}; make it again.")
    try:
        sae = _make_empty(info, {name: part["shape"] for name, part in read_header(weights)[1].items()})
        # Into the model's own memory layout: loading then computes exactly what was saved.
        fill_tensors(weights, sae.state_dict())
    except Exception as error:  # whatever strangers write
        reason = make_printable(get_first_line(error)).rstrip(".:")
        raise InputError(f"{weights} does not hold the SAE that {INFO_NAME} describes ({reason}).") from error
    for name, tensor in sae.state_dict().items():
        if not is_finite(tensor):
            raise InputError(f"{weights} holds NaN or Inf in {name}: train the SAE again.")
    if not sae.scale > 0:
        raise InputError(f"Expected a scale above 0 in {weights}, got {sae.scale.item():g}: train the SAE again.")
    sae.origin = _read_origin(info)
    sae.prefix_sizes = _read_prefixes(info)
    sae.trained_in_bf16 = info["training"].get("precision") == Precision.bf16.name
    return sae.eval()


def _make_empty(info: dict[str, Any], shapes: dict[str, list[int]]) -> SparseAutoencoder:
    """Return an SAE of this kind, sizes and memory layout, whose tensors are to be filled.

    Args:
        shapes: of the tensors that the file holds; nothing larger is made.

    Raises:
        NotReadError: W_enc is of other sizes, or the settings of the activation are.
    """
    d_in, d_sae = info["d_in"], info["d_sae"]
    if shapes.get("W_enc") != [d_in, d_sae] or 0 in shapes["W_enc"]:
        raise NotReadError(f"W_enc is {shapes.get('W_enc')}, expected {[d_in, d_sae]}")
    _check_settings(info["activation"], d_sae)
    tensors = torch.empty(d_sae, d_in).T, torch.empty(d_sae), torch.empty(d_sae, d_in), torch.empty(d_in)
    token_norm = TokenNorm[info.get("token_norm", "none")]
    sae = SparseAutoencoder.of(*tensors, make_activation(info["kind"], info["activation"]), token_norm=token_norm)
    sae.data_mean = torch.empty(d_in) if "data_mean" in shapes else None
    return sae


def _check_settings(settings: dict[str, Any], d_sae: int) -> None:
    """Refuse settings of an activation that are not as infoscope writes them; which a kind has, it checks itself.

    Raises:
        NotReadError: one is of another type, or for another number of latents.
    """
    for name, value in settings.items():
        is_wrong = name in _SETTINGS and type(value) not in _SETTINGS[name]
        if is_wrong or (name == "d_sae" and value != d_sae):
            raise NotReadError(f"its activation has {name} = {reprlib.repr(value)}")
    if "inner_settings" in settings:
        _check_settings(settings["inner_settings"], d_sae)


def load_sae_info(path: Path | str) -> dict[str, Any]:
    """Return what `sae.json` says: kind, sizes, layer, backbone fingerprint, training config.

    Raises:
        InputError: if the file is missing, damaged, of another program or of a newer version.
    """
    file = _find_folder(path) / INFO_NAME
    if not file.is_file():
        raise InputError(
            f"Expected a saved SAE ({WEIGHTS_NAME} and {INFO_NAME}) in {file.parent}, {_describe_folder(file.parent)}."
        )
    try:
        with file.open("rb") as stream:
            text = stream.read(_MAX_INFO + 1)
        info = json.loads(text if len(text) <= _MAX_INFO else b"")
    except (ValueError, RecursionError):
        raise InputError(f"{file} is damaged: expected JSON; make it again.") from None
    if not isinstance(info, dict) or info.get("format") != FORMAT:
        raise InputError(f'{file} was not written by infoscope: expected "format": "{FORMAT}".')
    version = info.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise InputError(
            f"{file} has format version {reprlib.repr(version)}, this infoscope reads up to {FORMAT_VERSION}: update"
            " infoscope."
        )
    if info.get("kind") not in [*ACTIVATIONS]:
        kinds = ", ".join(ACTIVATIONS)
        raise InputError(
            f"{file} has the kind {reprlib.repr(info.get('kind'))}, this infoscope knows {kinds}: update infoscope."
        )
    expected: dict[str, Any] = {"activation": dict, "d_in": int, "d_sae": int, "training": dict, "sha256": str}
    expected |= {"origin": dict} if version != 1 else {}
    wrong = [name for name, kind in expected.items() if type(info.get(name)) is not kind]
    if info.get("token_norm", "none") not in (*TokenNorm.__members__,):
        wrong.append("token_norm")
    origin = info if version == 1 else info.get("origin")
    parts = {"layer": int | None, "backbone": dict, "image_px": int | None, "tokens": str | None}
    if isinstance(origin, dict):
        wrong += [name for name, kind in parts.items() if not isinstance(origin.get(name), kind)]
        if origin.get("tokens") not in (None, *TokenChoice.__members__):
            wrong.append("tokens")
    if wrong:
        raise InputError(f"{file} is damaged: {', '.join(wrong)} missing or of the wrong type; make it again.")
    return info


def _read_origin(info: dict[str, Any]) -> Origin:
    """Return what `sae.json` knows; of the tokens, files of an earlier infoscope know what the training config says.

    Raises:
        InputError: if it is no origin.
    """
    values: Any = info.get("origin")
    if info["format_version"] == 1:
        tokens = info.get("tokens") or info["training"].get("tokens")
        values = {name: info.get(name) for name in ("layer", "backbone", "image_px")}
        values["tokens"] = tokens if tokens in [*TokenChoice.__members__] else None
    try:
        return Origin.from_json(values)
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise InputError(f"{INFO_NAME} is damaged: origin is not as infoscope writes it; make it again.") from None


def _read_prefixes(info: dict[str, Any]) -> tuple[int, ...]:
    """Return the prefixes of a Matryoshka SAE, of which the training config of what infoscope trained has shares."""
    said, shares, d_sae = info.get("prefix_sizes"), info["training"].get("prefixes"), info["d_sae"]
    if said is None and info["kind"] == MatryoshkaPrefix.kind and isinstance(shares, list):
        is_known = all(isinstance(share, int | float) and 0 < share <= 1 for share in shares)
        said = [round(share * d_sae) for share in shares] if is_known else None
    return read_prefix_sizes(said, d_sae)


def _find_folder(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"Expected path= to be the folder of a saved SAE, got {name_type(path)}.")
    path = Path(path).expanduser()
    if path.name in (WEIGHTS_NAME, INFO_NAME):
        return path.parent
    if path.is_file():
        raise InputError(f"Expected the folder of a saved SAE, got the file {path}: infoscope reads only its own SAEs.")
    return path


def _describe_folder(folder: Path) -> str:
    """Say what is there in place of an SAE, and where one is."""
    if not folder.is_dir():
        return f"found no {INFO_NAME}: there is no such folder"
    manifest = read_manifest(folder)
    if manifest is not None:
        upstream = (manifest.get("upstream") or {}).values()
        saes = [sae for one in upstream for sae in sorted(folder.parent.parent.glob(f"train_sae/*-{one}"))]
        where = f"its SAE is {saes[0]}" if saes else "give a folder of train_sae"
        return f"found an artifact of the stage {manifest.get('stage')}: {where}"
    inside = _list_saes(folder)
    return f"found no {INFO_NAME}" + (f": give one of the folders in it, such as {inside[0]}" if inside else "")


def _list_saes(folder: Path) -> list[str]:
    """Return the names of the folders of SAEs in a folder."""
    return sorted(path.parent.name for path in folder.glob(f"*/{INFO_NAME}") if holds_ours(path.parent))


def holds_ours(folder: Path) -> bool:
    """Whether infoscope has written the SAE of a folder, as far as its files can still say, damaged or not."""
    for file in (folder / INFO_NAME, folder / WEIGHTS_NAME):
        if file.is_file():
            with file.open("rb") as stream:
                if _SAYS_OURS.search(stream.read(_MAX_INFO)):
                    return True
    return False


def compute_digest(sae: SparseAutoencoder) -> str:
    """Return what determines an SAE's numbers, wherever its file came from: the SHA-256 of tensors and settings."""
    settings = [sae.activation.kind, sae.activation.settings(), sae.token_norm.name]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(sae.state_dict().items()):
        digest.update(f"{name} {list(tensor.shape)}".encode())
        for part in cut_rows(tensor):
            digest.update(part.cpu().contiguous().numpy().data)
    return digest.hexdigest()
