"""Shell completion: the names of choices, where Hydra offers how Python shows them (`stage=Stage.report`)."""

from __future__ import annotations

from typing import Any

from hydra.plugins.completion_plugin import CompletionPlugin
from omegaconf import ListConfig, OmegaConf

from infoscope.config import errors
from infoscope.config.tree import Config
from infoscope.runtime.bounds import show

_offer_as_hydra_does = CompletionPlugin._get_matches


def offer_names() -> None:
    """Let Hydra's completion, in every shell, offer the choices of a setting by their names.

    Hydra has no hook for what it offers: its one method that looks at values is replaced in this process.
    """
    CompletionPlugin._get_matches = staticmethod(_offer)


def _offer(config: Any, word: str) -> list[str]:
    key, equals, begun = word.partition("=")
    kind = errors.find_type(key, Config) if equals else None
    if kind is None:
        return _offer_as_hydra_does(config, word)
    values = errors.list_choices(kind)
    if not values:
        now = OmegaConf.select(config, key)
        values = [] if now is None else [show(now) if isinstance(now, ListConfig) else str(now)]
    return [f"{key}={value}" for value in values if value.startswith(begun)]
