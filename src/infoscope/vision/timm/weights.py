"""Where timm's configurations and weights come from: tags, local files as timm or as the authors wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import get_arch_pretrained_cfgs, is_model_in_modules
from torch import nn

from infoscope.runtime.errors import InputError
from infoscope.runtime.hub import get_cache_folder
from infoscope.vision.config import ModelConfig
from infoscope.vision.preprocessing import Preprocessing, check_preprocessing
from infoscope.vision.weights.facts import (
    HUB_WEIGHTS,
    Account,
    Fact,
    Facts,
    choose,
    read_asked,
    read_beside,
    read_processor,
)
from infoscope.vision.weights.fit import check_fit, check_size, refuse_names
from infoscope.vision.weights.hub import download, find_cached
from infoscope.vision.weights.local import choose_weights_set, find_local_file, get_weights_id
from infoscope.vision.weights.sets import read_weights
from infoscope.vision.weights.timm_layout import MODULES, to_timm
from infoscope.vision.weights.towers import get_shapes
from infoscope.vision.weights.transformers_names import translate

EXAMPLES = "vit_base_patch14_dinov2, vit_base_patch14_reg4_dinov2, deit3_base_patch16_224, vit_base_patch16_224.mae"


@dataclass(frozen=True)
class TimmSource:
    """A model configuration resolved to what timm needs.

    full_name: architecture and tag, whose pooling holds.
    facts: mean and std, and who says so.
    repo, hub_files: where the hub has the weights, if a tag is asked for, and under which names.
    """

    full_name: str
    image_px: int
    facts: Facts
    weights: Path | None
    weights_id: str
    repo: str | None
    hub_files: tuple[str, ...]

    @property
    def arch(self) -> str:
        """The architecture, without a tag."""
        return self.full_name.partition(".")[0]


def find_timm_source(config: ModelConfig) -> TimmSource:
    """Resolve a configuration to an architecture, preprocessing and weights; nothing is loaded yet.

    Raises:
        InputError: an unknown architecture or tag, a file that is missing, or one whose preprocessing is not known.
    """
    assert config.pretrained is not None
    arch, tag = check_arch(config), str(config.arch).partition(".")[2]
    cfgs = {name.partition(".")[2]: cfg for name, cfg in get_arch_pretrained_cfgs(arch).items()}
    local_file = find_local_file(config.pretrained)
    chosen = choose_weights_set(config, local_file)
    is_tag = local_file is None and config.pretrained != "random"
    if is_tag and tag and tag != config.pretrained:
        raise InputError(
            f"model.arch={config.arch} and model.pretrained={config.pretrained} name two tags: give one of them."
        )
    own = None if local_file is None else _read_account(local_file, arch)
    by = f"the tag {config.pretrained}" if is_tag else f"model.arch={config.arch}"
    if is_tag:
        tag = config.pretrained
    elif own is not None and own.tag in cfgs:
        tag = str(own.tag)
    elif not tag:
        tag, by = _find_default_tag(config, cfgs, local_file is not None, own), f"timm's default for {arch}"
    if tag not in cfgs or (is_tag and cfgs[tag].hf_hub_id is None):
        known = ", ".join(name for name, cfg in cfgs.items() if cfg.hf_hub_id) or "it has none"
        raise InputError(f"Expected model.pretrained to be a file, random, or a tag of {arch} ({known}); got {tag!r}.")
    cfg = cfgs[tag]
    data = resolve_data_config(pretrained_cfg=cfg.to_dict())
    default = Account(by, None, Preprocessing(tuple(data["mean"]), tuple(data["std"])))
    accounts = [default] if own is None else [own, default]
    return TimmSource(
        full_name=f"{arch}.{tag}" if tag else arch,
        image_px=config.image_px or data["input_size"][-1],
        facts=replace(_settle(config, accounts, arch, cfg), weights_set=chosen),
        weights=local_file,
        weights_id=get_weights_id(config, local_file, arch),
        repo=cfg.hf_hub_id if is_tag else None,
        hub_files=(cfg.hf_hub_filename,) if cfg.hf_hub_filename else HUB_WEIGHTS,
    )


def check_arch(config: ModelConfig) -> str:
    """Return the architecture that a configuration names, without a tag.

    Raises:
        InputError: timm has none of that name.
    """
    arch = str(config.arch).partition(".")[0]
    if not is_model_in_modules(arch, MODULES):
        raise InputError(
            f"Expected model.arch to be a plain vision transformer of timm's, such as {EXAMPLES}; got {config.arch!r}."
        )
    return arch


@cache
def count_tower_blocks(arch: str) -> int | None:
    """Return how many blocks one of timm's towers has, without making its weights; None: no plain transformer.

    Args:
        arch: without or with a tag.
    """
    if not is_model_in_modules(arch.partition(".")[0], MODULES):
        return None
    with torch.device("meta"):
        blocks = getattr(timm.create_model(arch, pretrained=False, num_classes=0), "blocks", None)
    return len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None


def _settle(config: ModelConfig, accounts: Sequence[Account], arch: str, cfg: Any) -> Facts:
    """Return mean and std, and for CLIPs the activation of the architecture, even where the weights want another."""
    preprocessing = choose(read_asked(config).preprocessing, "model.mean and model.std", accounts, "preprocessing")
    assert preprocessing is not None
    if config.pretrained == "random" or not _is_natively_quick(cfg):
        return Facts(None, preprocessing)
    is_quick = "quickgelu" in arch
    against = "" if is_quick else f" against QuickGELU, with which {cfg.tag} was trained"
    return Facts(Fact(is_quick, f"the architecture {arch}", against), preprocessing)


def _is_natively_quick(cfg: Any) -> bool:
    """Whether weights were trained with QuickGELU, as timm notes; it has architectures with GELU for them too."""
    return any("natively QuickGELU" in note for note in cfg.notes or ())


def _find_default_tag(config: ModelConfig, cfgs: dict[str, Any], is_file: bool, own: Account | None) -> str:
    """The tag whose preprocessing holds where none is named: timm's default one.

    Args:
        own: what the file says, of mean and std.

    Raises:
        InputError: if the weights come from a file and the architecture's tags disagree: a wrong mean says nothing.
    """
    arch = str(config.arch)
    pixels = {(tuple(cfg.mean), tuple(cfg.std)) for cfg in cfgs.values()}
    activations = {_is_natively_quick(cfg) for cfg in cfgs.values()}
    if is_file and config.mean is None and ((own is None and len(pixels) > 1) or len(activations) > 1):
        what = "mean and std" if len(activations) == 1 else "activation, mean and std"
        raise InputError(
            f"The {what} of {arch} depend on whose weights the file holds: give model.arch={arch}.<tag> (one of"
            f" {', '.join(cfgs)}), or model.mean and model.std."
        )
    default = timm.get_pretrained_cfg(arch)
    return (default.tag or "") if default is not None else ""


def _read_account(file: Path, arch: str) -> Account | None:
    """Return what the config.json of timm, or else the preprocessor_config.json of transformers, says of weights.

    Raises:
        InputError: if it is damaged or its mean and std make no sense.
    """
    if (processor := read_processor(file)) is not None:
        return Account("the preprocessor_config.json next to the file", None, processor)
    content = read_beside(file, "config.json")
    cfg = content.get("pretrained_cfg")
    if content.get("architecture") != arch or not isinstance(cfg, dict):
        return None
    known = check_preprocessing(cfg.get("mean"), cfg.get("std"), f"{file.with_name('config.json')}: ")
    return Account("the config.json next to the file", None, known, str(cfg.get("tag")))


def make_trunk(source: TimmSource, seed: int) -> nn.Module:
    """Return the tower with random weights and without a classifier; torch's own random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return timm.create_model(source.full_name, pretrained=False, num_classes=0, img_size=source.image_px)


def fetch_timm_tag(source: TimmSource) -> Path:
    """Return the weights of one of timm's tags.

    Raises:
        InputError: at once where they are not cached and there is no network; if the download fails.
    """
    assert source.repo is not None
    cached = find_cached(source.repo, source.hub_files)
    if cached is not None:
        return cached
    return download(source.full_name, partial(_download, source.repo, source.hub_files), get_cache_folder())


def _download(repo: str, names: Sequence[str]) -> str:
    """Download the first of these files that a repository has."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    for name in names[:-1]:
        with suppress(EntryNotFoundError):
            return hf_hub_download(repo, name)
    return hf_hub_download(repo, names[-1])


def load_timm_weights(trunk: nn.Module, path: Path, arch: str, config: ModelConfig) -> tuple[str, ...]:
    """Load a file into a tower: timm's own, as DINOv2, DeiT-III and MAE were published, transformers', open_clip's.

    Positions of another grid are interpolated as timm does; patches of another size are refused.

    Args:
        arch: with its tag.

    Returns:
        What was decided or left out, each in a few words.

    Raises:
        InputError: if the file is damaged, holds NaN or Inf, is of another architecture, or holds several sets of
            weights of which none is chosen.
    """
    weights = read_weights(path, arch, config.weights_key)
    original = translate(weights.state)
    notes = check_size(trunk, original, path, arch, config.image_px)
    try:
        state = to_timm(original, trunk)
    except Exception as error:  # positions that are no square grid, names of another model
        raise refuse_names(original, original, get_shapes(trunk.state_dict()), path, arch) from error
    check_fit(trunk, state, path, arch, original)
    trunk.load_state_dict(state)
    return (*weights.notes, *notes)
