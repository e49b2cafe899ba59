"""What a configuration of open_clip's stands for, before anything is loaded: tags, files, folders, scenes_clip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip

from infoscope.runtime.errors import InputError
from infoscope.vision.config import ModelConfig, ModelKind
from infoscope.vision.open_clip.accounts import (
    DEFAULT,
    LOCAL_CONFIG,
    describe_local,
    describe_tag,
    find_agreement,
    list_tags,
    read_account,
    read_local_config,
)
from infoscope.vision.open_clip.weights import LOCAL_WEIGHTS, SHIPPED_FOLDER
from infoscope.vision.weights.facts import Account, Facts, choose, contradicts, read_asked
from infoscope.vision.weights.local import choose_weights_set, compute_file_checksum, find_local_file, get_weights_id


@dataclass(frozen=True)
class Source:
    """A model configuration resolved to what open_clip needs: its model config, the preprocessing, the weights.

    facts: what they are made with, and who says so.
    origin: the tag whose weights they are, where that is said.
    tokenizer: what its tokenizer is called: `local-dir:<folder>`, or an architecture.
    """

    model_cfg: dict[str, Any]
    facts: Facts
    origin: str | None
    weights: Path | None
    weights_id: str
    tokenizer: str


def find_source(config: ModelConfig, trained_folder: Path | None) -> Source:
    """Resolve a configuration to a model config, preprocessing and weights; nothing is loaded yet.

    Raises:
        InputError: an unknown architecture or tag, a file or folder that is missing or holds something else, a file
            of which nobody says with which activation, mean or std it was trained.
    """
    folder, file = _find_place(config, trained_folder)
    chosen = choose_weights_set(config, file)  # before the file's origin is asked for: it may hold no weights
    if folder is not None:
        path = folder / LOCAL_CONFIG
        model_cfg, preprocess = read_local_config(path)
        _check_is_arch(model_cfg, path, config.arch)
        accounts = [describe_local(model_cfg, preprocess, path), Account("open_clip's default", None, DEFAULT)]
    else:
        model_cfg = _get_model_config(config)
        accounts = _find_accounts(config, file, model_cfg)
    facts = replace(_settle(config, model_cfg if folder is None else {}, accounts, file), weights_set=chosen)
    assert facts.quick_gelu is not None
    if facts.quick_gelu.value or _is_said(config, folder, file):
        model_cfg["quick_gelu"] = facts.quick_gelu.value
    if config.image_px is not None:
        model_cfg["vision_cfg"] = {**model_cfg["vision_cfg"], "image_size": config.image_px}
    return Source(
        model_cfg,
        facts,
        next((account.tag for account in accounts if account.tag), None),
        file,
        get_weights_id(config, file, config.arch),
        f"local-dir:{folder}" if folder is not None else str(config.arch),
    )


def find_model_config(config: ModelConfig) -> dict[str, Any]:
    """Return open_clip's model config of a configuration; weights are neither read nor looked for.

    Raises:
        InputError: an unknown architecture, or a folder that describes none.
    """
    pretrained = config.pretrained or ""
    if pretrained.startswith("local-dir:"):
        return read_local_config(Path(pretrained.removeprefix("local-dir:")).expanduser() / LOCAL_CONFIG)[0]
    is_ours = config.arch is None or pretrained == "shipped"
    return read_local_config(SHIPPED_FOLDER / LOCAL_CONFIG)[0] if is_ours else _get_model_config(config)


def is_of_origin(config: ModelConfig, tag: str) -> bool:
    """Whether weights are said to be those of one of open_clip's tags, and are used as it says.

    Raises:
        InputError: as `find_source`.
    """
    brings_config = config.arch is None or config.pretrained in ("shipped", "train_clip")
    if config.kind is not ModelKind.open_clip or brings_config or config.pretrained == "random":
        return False
    source = find_source(config, None)
    return source.origin == tag and not source.facts.is_contradicted


def _find_place(config: ModelConfig, trained_folder: Path | None) -> tuple[Path | None, Path | None]:
    """Return the folder that brings its own configuration, or None, and the file of weights, or None."""
    pretrained = config.pretrained or ""
    for name, value in (("arch", config.arch or ""), ("pretrained", pretrained)):
        if value.startswith("hf-hub:") or (name == "arch" and ":" in value):
            raise InputError(
                f"model.{name}={value} is not read: give an architecture and a tag of open_clip's, or download the"
                " repository and give model.pretrained=local-dir:<folder>."
            )
    if pretrained == "random":
        return (SHIPPED_FOLDER, None) if config.arch is None else (None, None)
    if pretrained == "shipped":
        return SHIPPED_FOLDER, _find_local_weights(SHIPPED_FOLDER)
    if pretrained == "train_clip":
        if trained_folder is None:
            raise InputError("model.pretrained=train_clip needs the artifact of stage train_clip: give its folder.")
        return trained_folder, _find_local_weights(trained_folder)
    if pretrained.startswith("local-dir:"):
        folder = Path(pretrained.removeprefix("local-dir:")).expanduser()
        if (folder / "config.json").is_file() and not (folder / LOCAL_CONFIG).is_file():
            raise InputError(
                f"{folder} holds no {LOCAL_CONFIG}, but a config.json, as transformers and timm write it: give its file"
                f" of weights, such as model.pretrained={folder}/model.safetensors, with model.arch."
            )
        read_local_config(folder / LOCAL_CONFIG)  # a missing configuration is said before missing weights
        return folder, _find_local_weights(folder)
    file = find_local_file(pretrained)
    is_ours = file is not None and config.arch is None and config.name == "scenes_clip"
    return (SHIPPED_FOLDER if is_ours else None), file


def _find_local_weights(folder: Path) -> Path:
    for name in LOCAL_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"Expected {' or '.join(LOCAL_WEIGHTS)} in {folder}, found neither.")


def _get_model_config(config: ModelConfig) -> dict[str, Any]:
    if config.arch is None:
        raise InputError(f"model.arch is missing: model.pretrained={config.pretrained} needs it (ViT-B-16, ...).")
    model_cfg = open_clip.get_model_config(config.arch)
    if model_cfg is None:
        near = [name for name in open_clip.list_models() if name.startswith("ViT-")][:12]
        raise InputError(
            f"Expected model.arch to be one of open_clip's, such as {', '.join(near)}; got {config.arch!r}."
        )
    return dict(model_cfg)


def _check_is_arch(model_cfg: dict[str, Any], path: Path, arch: str | None) -> None:
    """Refuse a folder whose model is another than the architecture that is asked for; nothing is compared without one.

    Raises:
        InputError: such a folder.
    """
    known = (open_clip.get_model_config(arch) if arch is not None else None) or {}
    for part in ("", "vision_cfg"):
        found, expected = (one.get(part) or {} if part else one for one in (model_cfg, known))
        for name in ("embed_dim", "layers", "width", "patch_size"):
            if name in found and name in expected and found[name] != expected[name]:
                raise InputError(
                    f"Expected {path} to describe {arch}, as model.arch says ({name} {expected[name]}), got {name}"
                    f" {found[name]}: of a model of your own in a folder give model=clip_folder, or model.arch=null and"
                    " a model.name."
                )


def _find_accounts(config: ModelConfig, file: Path | None, model_cfg: dict[str, Any]) -> list[Account]:
    """Return who says something of a tag, of random weights or of a file, in the order in which they are believed."""
    arch, pretrained = str(config.arch), str(config.pretrained)
    if file is None and pretrained != "random":
        if pretrained not in open_clip.list_pretrained_tags_by_model(arch):
            raise InputError(
                f"Expected model.pretrained to be a file, local-dir:<folder>, random, or a tag of {arch}"
                f" ({list_tags(arch)}); got {pretrained!r}."
            )
        return [describe_tag(arch, pretrained, f"the tag {pretrained}")]
    own = None if file is None else read_account(file, compute_file_checksum(file), arch)
    accounts = [] if own is None else [own]
    if config.origin is not None:
        words = "" if file is None else ", for the file does not say"
        origin = describe_tag(arch, config.origin, f"model.origin={config.origin}{words}")
        others = [_read_asked(config, model_cfg), *accounts]
        is_other = any(contradicts(other, origin) for other in others) or _find_other_name(config, file)
        accounts += [] if is_other else [origin]
    accounts.append(find_agreement(arch, model_cfg))
    if file is None:  # random weights, of which nothing can be wrong
        accounts.append(Account("open_clip's default", bool(model_cfg.get("quick_gelu")), DEFAULT))
    return accounts


def _find_other_name(config: ModelConfig, file: Path | None) -> str | None:
    """Return whose weights a file's name speaks of, where that is not OpenAI and the preset takes it for OpenAI's."""
    if file is None or config.origin != "openai":
        return None
    is_named = not file.name.startswith(("open_clip_", "model.", "pytorch_model."))
    name = (file.name if is_named else "/".join(file.parts[-4:-1])).lower()  # models--laion--.../snapshots/<hash>
    owners = {re.split("[^a-z]", tag)[0] for tag in open_clip.list_pretrained_tags_by_model(str(config.arch))}
    return next((owner for owner in sorted(owners) if owner in name and "openai" not in name), None)


def _read_asked(config: ModelConfig, model_cfg: dict[str, Any]) -> Account:
    """Return what the user says, by the name of the architecture too (ViT-B-16-quickgelu)."""
    asked = read_asked(config)
    says_quick_gelu = config.quick_gelu is None and config.arch is not None and model_cfg.get("quick_gelu")
    return replace(asked, quick_gelu=True) if says_quick_gelu else asked


def _settle(config: ModelConfig, model_cfg: dict[str, Any], accounts: Sequence[Account], file: Path | None) -> Facts:
    asked = _read_asked(config, model_cfg)
    asked_by = f"the architecture {config.arch}" if config.quick_gelu is None else "model.quick_gelu"
    quick_gelu = choose(asked.quick_gelu, asked_by, accounts, "quick_gelu")
    preprocessing = choose(asked.preprocessing, "model.mean and model.std", accounts, "preprocessing")
    if quick_gelu is not None and preprocessing is not None:
        return Facts(quick_gelu, preprocessing)
    unknown = [("activation", "model.quick_gelu=true or false")] if quick_gelu is None else []
    unknown += [("mean and std", "model.mean and model.std")] if preprocessing is None else []
    what, settings = (", ".join(words) for words in zip(*unknown, strict=True))
    put_aside = ""
    if config.origin is not None:
        name = _find_other_name(config, file)
        why = f"its name speaks of {name}" if name else "what is given or found contradicts it"
        put_aside = f" (not taken for {config.origin}'s, as model.origin says: {why})"
    raise InputError(
        f"{file} does not say whose weights it holds{put_aside}, and those of {config.arch} differ in {what}: give"
        f" model.origin, the tag that they come from ({list_tags(str(config.arch))}), or {settings}."
    )


def _is_said(config: ModelConfig, folder: Path | None, file: Path | None) -> bool:
    """Whether GELU is written into the model config too: where it is asked for, or the answer to a file's question."""
    if config.quick_gelu is not None:
        return True
    is_lone_file = file is not None and folder is None
    return is_lone_file and find_agreement(str(config.arch), {}).quick_gelu is None
