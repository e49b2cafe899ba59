"""Any SAE on the disk: ours, or of another toolkit, whose format the content of its files decides."""

from __future__ import annotations

import os
import reprlib
import warnings
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from infoscope.runtime.calls import make_options, name_type, refuse_unknown, say_in_python, speaks_python
from infoscope.runtime.errors import InputError, InputWarning, get_first_line, list_some, suggest
from infoscope.runtime.large_tensors import is_finite, reduce_rows
from infoscope.runtime.manifests import compute_checksum, read_manifest
from infoscope.runtime.untrusted import read_checkpoint
from infoscope.runtime.untrusted.kinds import make_printable
from infoscope.runtime.untrusted.numpy_files import read_npz
from infoscope.sae import checkpoint
from infoscope.sae.formats import load_formats
from infoscope.sae.formats.base import Foreign, Found, Options, check_float
from infoscope.sae.formats.configs import Configs
from infoscope.sae.formats.values import show
from infoscope.sae.hub import NUMPY_HINT, PREFIX, WEIGHTS, list_config_folders, resolve
from infoscope.sae.import_config import IMPORT, ImportedConfig, MatrixNames
from infoscope.sae.model import SparseAutoencoder
from infoscope.sae.origin import Origin
from infoscope.sae.source import Source, check_text, read_prefix_sizes

KNOWN_CLASSES = ("src.sae_training.", "sae_training.", "vit_prisma.", "overcomplete.", "torch.nn.modules.")
"""What pickles of the toolkits name; read as records that call nothing."""
_OF_RUNS = ("path", "statistics", "ignore_origin")
"""Settings that say nothing of a file."""
MAX_FILES = 16
"""Of a folder that are opened to see which is an SAE's, and that are listed."""
MAX_NAME, MAX_FACT = 120, 1000


@speaks_python(sae=ImportedConfig)
def load_sae(path: Path | str, **options: Any) -> SparseAutoencoder:
    """Return an SAE of infoscope's or of another toolkit's, given its file or folder. On the CPU, in eval mode.

    The file says which it is; nothing in it is run. z is what the toolkit's own encode returns, x_hat its
    reconstruction in the units of the tokens. `sae.origin` says what it was trained on, as far as the file knows. What
    may make its numbers wrong, such as a setting that had to be guessed, is an `InputWarning` each, and stays in
    `sae.origin.source.warnings`.

    Args:
        path: a file, its folder, an artifact of train_sae or import_sae, an export of infoscope's, or
            hf:owner/name/folder@revision on the Hugging Face hub.
        options: what the file does not say: fields of `ImportedConfig` such as k=32, kind="topk", format="plain" with
            keys={"W_enc": "encoder.weight.T", ...}, mean_file= and scale=.

    Raises:
        InputError: there is no such file, it is damaged, of no known format, or cannot be mapped exactly; or an option
            is missing, or nothing reads it.
    """
    names = [one.name for one in fields(ImportedConfig) if one.name not in _OF_RUNS]
    refuse_unknown(options, names, "load_sae")
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"Expected path= to be the file or folder of an SAE, got {name_type(path)}.")
    sae = import_alone(make_options(ImportedConfig, {"path": os.fspath(path), **options}))
    for sentence in sae.origin.source.warnings if sae.origin.source else ():
        said = say_in_python(sentence, {f"sae.{name}" for name in names})
        warnings.warn(said, InputWarning, stacklevel=3)
    return sae


def import_alone(config: ImportedConfig) -> SparseAutoencoder:
    """Return the SAE that a configuration names, where there is no run that could overrule its file; see `load_sae`.

    Raises:
        InputError: as `load_sae`.
    """
    sae = import_sae(config)
    if config.tokens not in (None, sae.origin.tokens):
        tokens = sae.origin.tokens
        known = "pooled embeddings" if tokens is None else f"{tokens.name} tokens"
        raise InputError(f"The file says that it reads {known}, got sae.tokens={config.tokens.name}: drop that.")
    return sae


def import_sae(config: ImportedConfig) -> SparseAutoencoder:
    """Return the SAE that a configuration names, see `load_sae`; mean and scale are not estimated here.

    Raises:
        InputError: as `load_sae`.
    """
    try:
        path, address, revision = resolve(config.path)
        ours = is_ours(path)
    except (OSError, RuntimeError) as error:  # a name too long, ~ of nobody, a folder that may not be read
        raise InputError(f"Cannot read {reprlib.repr(config.path)}: {get_first_line(error)}.") from error
    if ours:
        given = [name for name in config.given() if name not in (*_OF_RUNS, "tokens")]
        given = [name for name in given if name != "kind" or config.kind != IMPORT]
        if given:
            raise InputError(f"sae.{given[0]} is for files of other toolkits, and {path} is infoscope's own: drop it.")
        return checkpoint.load_sae(path)
    found, name = find_sae(path, config.format)
    file, options, pickled = found.file, Options(config), _list_pickled(found)
    try:
        foreign = load_formats()[name].read(found, options)
        options.check()
        foreign.facts = {name: _shorten(value) for name, value in foreign.facts.items() if value is not None}
        check_text(vars(foreign))
        del found  # with what the reader has copied
        sae = assemble(foreign)
        sae.prefix_sizes = read_prefix_sizes(foreign.facts.get("prefix_sizes"), sae.d_sae)
        tokens = foreign.tokens or config.tokens  # another choice than the file's is for a run to make, see ImportSAE
        origin = Origin(foreign.layer, foreign.fingerprint, foreign.image_px, tokens, foreign.site)
    except InputError as error:
        raise InputError(f"Cannot read {file} as an SAE of {name}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = f"it holds something else than that format has ({get_first_line(error)})"  # whatever strangers write
        raise InputError(f"Cannot read {file} as an SAE of {name}: {reason}.") from error
    source = Source(
        format=name,
        kind=foreign.kind,
        file=make_printable(file.name),
        sha256=compute_checksum(file),
        backbone=foreign.backbone,
        address=address,
        revision=revision,
        facts=_join_facts(foreign) | ({"pickled": pickled} if pickled else {}),
        warnings=tuple(foreign.warnings),
        exported_from=foreign.exported_from,
    )
    sae.origin = replace(origin, source=source)
    return sae


def _join_facts(foreign: Foreign) -> dict[str, Any]:
    flags = {"needs_statistics": foreign.needs_statistics, "scale_is_free": foreign.has_free_scale}
    return foreign.facts | {name: True for name, flag in flags.items() if flag}


def _shorten(value: Any) -> Any:
    """Return a fact as people can read it: a data set may be called anything, and computes nothing."""
    return make_printable(value)[:MAX_FACT] if isinstance(value, str) else value


def _list_pickled(found: Found) -> list[str]:
    """Return which classes and functions a file names, as far as people can read them."""
    return [name for name in found.pickled if name.isprintable() and len(name) <= MAX_NAME][:MAX_FILES]


def is_ours(path: Path) -> bool:
    """Whether a path is one of infoscope's own: a saved SAE, an artifact, or a folder of such."""
    if path.is_dir():
        folders = [path, *(file.parent for file in path.glob(f"*/{checkpoint.INFO_NAME}"))]
        return any(map(checkpoint.holds_ours, folders)) or read_manifest(path) is not None
    return path.name in (checkpoint.WEIGHTS_NAME, checkpoint.INFO_NAME) and checkpoint.holds_ours(path.parent)


def find_sae(path: Path, format: str | None = None) -> tuple[Found, str]:
    """Return the checkpoint at a path, read, and the name of its format.

    Args:
        path: a file, or a folder with one file that is an SAE's, in it or deeper.
        format: None: by what it holds.

    Raises:
        InputError: there is none, or there are several.
    """
    formats = load_formats()
    if format is not None and format not in formats:
        near = suggest(format, list(formats))
        raise InputError(f"Expected sae.format to be one of {', '.join(formats)}, got {format!r}{near}.")
    file = path if path.is_file() else _choose_file(path)
    found = read_found(file)
    return found, format or _recognise(found)


def read_found(file: Path, configs: Configs | None = None) -> Found:
    """Return what a file and the configurations beside it hold; of one in a folder "checkpoints" those above it too.

    Args:
        configs: of its folder, which have been read for another file already.

    Raises:
        InputError: it is damaged, or holds what is not read.
    """
    is_numpy = file.suffix == ".npz"
    content, header, pickled = (read_npz(file), None, ()) if is_numpy else read_checkpoint(file, KNOWN_CLASSES)
    return Found(file, content, header, _find_configs(file.parent) if configs is None else configs, pickled)


def _find_configs(folder: Path) -> Configs:
    return Configs(*list_config_folders(folder))


def _choose_file(folder: Path) -> Path:
    """Return the one file of a folder that is an SAE's.

    Raises:
        InputError: there is none, or there are several.
    """
    if not folder.is_dir():
        beside = [path.name for path in folder.parent.iterdir()] if folder.parent.is_dir() else []
        on_hub = "" if folder.is_absolute() or len(folder.parts) < 2 else f"; on the hub it would be {PREFIX}{folder}"
        raise InputError(
            f"Expected the file or folder of an SAE, and there is no {folder}{suggest(folder.name, beside)}{on_hub}."
        )
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHTS and path.is_file()]
    if not files:
        names = [path.name for path in folder.iterdir()]
        hint = f"; {NUMPY_HINT}" if any(folder.rglob("*.npz")) else ""
        raise InputError(
            f"Expected the file of an SAE ({', '.join(WEIGHTS)}) in {folder}, found {list_some(names) or 'nothing'}"
            f"{hint}."
        )
    here = [file for file in files if file.parent == folder]
    if len(files) > 1 and 0 < len(here) <= MAX_FILES:  # beside an SAE, or above several, may lie counts and optimizers
        deeper = [file for file in files if file.parent != folder]
        configs = _find_configs(folder)
        files = [file for file in here if _is_recognised(file, configs)] or deeper or here
    if len(files) > 1:
        names = [str(file.relative_to(folder)) for file in files]
        shown = ", ".join(names[:MAX_FILES]) + (f" and {len(names) - MAX_FILES} more" if len(names) > MAX_FILES else "")
        raise InputError(f"Expected one SAE, and {folder} holds {len(names)} files: {shown}; give the path of one.")
    return files[0]


def _is_recognised(file: Path, configs: Configs) -> bool:
    try:
        found = read_found(file, configs)
    except InputError:
        return True  # a download that was not finished may be the one that is meant
    return bool(_list_formats(found))


def _list_formats(found: Found) -> list[str]:
    names = [name for name, module in load_formats().items() if module.recognise(found)]
    return ["exported"] if "exported" in names else names  # other toolkits call their tensors so too


def _recognise(found: Found) -> str:
    """Return the format of a checkpoint.

    Raises:
        InputError: it is of none that is known, or could be of several.
    """
    names = _list_formats(found)
    if not names:
        lonely = "" if len(found.configs) else "no configuration such as cfg.json lies beside it, which most need; "
        raise InputError(
            f"{found.file} is of no known format of SAEs: it holds {found.words}; {lonely}known are"
            f" {', '.join(load_formats())}; or give sae.format=plain and sae.keys={{W_enc: ..., W_dec: ...}},"
            f" with what it has of {', '.join(list(vars(MatrixNames()))[2:])}."
        )
    if len(names) > 1:
        raise InputError(f"{found.file} could be of {' or '.join(names)}: give sae.format=.")
    return names[0]


def assemble(foreign: Foreign) -> SparseAutoencoder:
    """Return the SAE that a reader has found; matrices of float32 are taken as they are, without a copy.

    Raises:
        InputError: shapes do not agree, numbers are of another type, or a value is NaN or Inf.
    """
    for name, kind in (("backbone", str), ("layer", int), ("site", str)):
        if type(value := getattr(foreign, name)) not in (kind, NoneType):
            raise InputError(f"expected the {name} that it says to be a {kind.__name__}, got {show(value)}.")
    for name in ("W_enc", "W_dec", "b_enc", "b_dec", "mean"):
        if (tensor := getattr(foreign, name)) is not None:
            check_float(tensor, name)
    W_enc = foreign.W_enc = foreign.W_enc.float()  # at once in its place: of other types this is a copy
    W_dec = foreign.W_dec = foreign.W_dec.float()
    if W_enc.ndim != 2 or 0 in W_enc.shape or W_dec.shape != W_enc.shape[::-1]:
        raise InputError(
            f"expected W_enc [d_in, d_sae] and W_dec [d_sae, d_in], got {list(W_enc.shape)} and {list(W_dec.shape)}."
        )
    d_in, d_sae = W_enc.shape
    vectors = {
        name: torch.zeros(n) if value is None else value.float()
        for name, value, n in (
            ("b_enc", foreign.b_enc, d_sae),
            ("b_dec", foreign.b_dec, d_in),
            ("mean", foreign.mean, d_in),
        )
    }
    for name, n in (("b_enc", d_sae), ("b_dec", d_in), ("mean", d_in)):
        if tuple(vectors[name].shape) != (n,):
            raise InputError(
                f"expected {name} [{n}], as W_enc {[d_in, d_sae]} has it, got {list(vectors[name].shape)}."
            )
    state = {"W_enc": W_enc, "W_dec": W_dec, **vectors, **foreign.activation.state_dict()}
    for name, tensor in state.items():
        if not is_finite(tensor):
            raise InputError(f"it holds NaN or Inf in {name}: fetch it again, or train it again.")
    if not torch.finfo(torch.float32).tiny <= foreign.scale <= torch.finfo(torch.float32).max:
        raise InputError(f"it multiplies tokens by {foreign.scale:g}, which is no number above 0 of float32.")
    b_enc, b_dec = vectors["b_enc"], vectors["b_dec"]
    if not foreign.subtracts_b_dec and b_dec.any():
        b_enc = b_enc + reduce_rows(W_enc.T, lambda part: part @ b_dec.double()).float()
        foreign.facts["folded"] = "b_dec W_enc into b_enc: b_dec is not subtracted before encoding"
    foreign.activation.check(d_sae)
    return SparseAutoencoder.of(
        W_enc, b_enc, W_dec, b_dec, foreign.activation, vectors["mean"], foreign.scale, foreign.token_norm
    )
