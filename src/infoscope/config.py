"""The whole configuration: the packages' dataclasses joined into one tree, and what is wrong with it in one line."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)

from infoscope.data.config import DataConfig
from infoscope.errors import InputError
from infoscope.probes.config import ProbeConfig, Readout
from infoscope.sae.config import SAEConfig
from infoscope.scope.config import PartitionConfig, ScopeConfig
from infoscope.tracking import LoggerConfig
from infoscope.vision.config import ContrastiveConfig, ModelConfig

_HERE = Path(__file__).resolve().parent
CONF_FOLDER = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parents[1] / "conf"
"""conf/ beside this file in an installed wheel, at the top of the repository in a checkout."""


class Stage(Enum):
    """How far to go; each stage builds what it lacks."""

    train_clip = "train_clip"
    train_sae = "train_sae"
    rank = "rank"
    score = "score"
    probe = "probe"
    report = "report"


class Device(Enum):
    """Where the heavy work runs; part of no hash."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass
class TrainerConfig:
    """How the work is run on this machine; part of no hash."""

    device: Device = Device.auto
    n_threads: int | None = None
    """CPU threads of torch; null: all cores."""
    progress: bool = True
    """Progress bars in the terminal."""

    def __post_init__(self) -> None:
        if self.n_threads is not None and self.n_threads < 1:
            raise InputError(f"Expected trainer.n_threads to be at least 1 or null, got {self.n_threads}.")


@dataclass
class Config:
    """One experiment."""

    stage: Stage = Stage.report
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    """Seeds of the SAEs; tables give mean and spread over them."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    sae: SAEConfig = field(default_factory=SAEConfig)
    scope: ScopeConfig = field(default_factory=ScopeConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    clip: ContrastiveConfig = field(default_factory=ContrastiveConfig)
    """How stage=train_clip trains the scenes' own CLIP."""
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    output_dir: str = "outputs"

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InputError(f"Expected seeds to be a list of different numbers, such as [0,1,2]; got {self.seeds}.")
        if Readout.cls_final in self.probe.readouts and self.model.layer == -1:
            raise InputError(
                "probe.readouts holds cls_final, but after the last block (model.layer=-1) an edit of patches cannot"
                " reach CLS any more: use an earlier layer, or probe.readouts=[patch_mean]."
            )


def register_schemas() -> None:
    """Make the dataclasses known to Hydra: conf/config.yaml begins with this schema, so typos fail at composition."""
    ConfigStore.instance().store(name="infoscope_schema", node=Config)


def make_config(tree: DictConfig) -> Config:
    """Return the typed configuration of a composed tree.

    Raises:
        InputError: missing or contradictory values.
    """
    missing = sorted(OmegaConf.missing_keys(tree))
    if missing:
        raise InputError(f"Expected a value for {', '.join(missing)}, got none: give it as {missing[0]}=...")
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    return config


def compose(overrides: list[str] | None = None) -> Config:
    """Return the configuration of a command line, without running anything.

    Args:
        overrides: as on the command line: `["data=scenes", "scope.k_cds=4"]`.

    Raises:
        InputError: unknown keys or choices, wrong types, contradictory values.
    """
    register_schemas()
    try:
        with initialize_config_dir(str(CONF_FOLDER), version_base="1.3"):
            return make_config(hydra_compose("config", overrides=overrides or []))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain_config_error(error)) from error


def to_tree(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain containers (enums by name)."""

    def plain(value: Any) -> Any:
        if isinstance(value, Enum):
            return value.name
        if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(config)


def explain_config_error(error: BaseException) -> str:
    """Return one line for a failed composition: the key, what was expected, the choices."""
    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    for link in chain:
        if isinstance(link, MissingConfigException):
            return _explain_missing_config(link)
    for link in chain:
        if isinstance(link, ConfigAttributeError | ConfigKeyError):
            return _explain_unknown_key(link)
        if isinstance(link, ValidationError):
            key = link.full_key or "a value"
            return f"Wrong value for {key}: {_first_line(link)}."
        if isinstance(link, MissingMandatoryValue):
            return f"Expected a value for {link.full_key}, got none: give it as {link.full_key}=..."
        if isinstance(link, InputError):
            return str(link)
    return f"Cannot read the command line or a configuration file: {_first_line(error)}."


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _explain_missing_config(error: MissingConfigException) -> str:
    name = (error.missing_cfg_file or "?").removesuffix(".yaml")
    group, _, choice = name.rpartition("/")
    options = sorted(error.options or [])
    if not group:
        return f"Unknown configuration {name!r}: {_first_line(error)}."
    near = difflib.get_close_matches(choice, options, n=1)
    hint = f" (did you mean {group}={near[0]}?)" if near else ""
    return f"Unknown {group} {choice!r}: expected one of {', '.join(options) or 'none, there are no choices'}{hint}."


def _explain_unknown_key(error: OmegaConfBaseException) -> str:
    full_key = str(error.full_key or error.key)
    parent, _, key = full_key.rpartition(".")
    node: Any = Config
    for part in parent.split(".") if parent else []:
        hints = {f.name: f for f in dataclasses.fields(node)} if dataclasses.is_dataclass(node) else {}
        factory = hints[part].default_factory if part in hints else None
        node = factory if isinstance(factory, type) else None
    known = sorted(f.name for f in dataclasses.fields(node)) if dataclasses.is_dataclass(node) else []
    near = difflib.get_close_matches(key, known, n=1)
    hint = f" (did you mean {f'{parent}.' if parent else ''}{near[0]}?)" if near else ""
    where = f" in {parent}" if parent else ""
    return (
        f"Unknown key {full_key!r}: expected one of {', '.join(known)}{where}{hint}."
        if known
        else (f"Unknown key {full_key!r}: {_first_line(error)}.")
    )
