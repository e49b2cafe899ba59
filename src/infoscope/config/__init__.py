"""The configuration: one tree of typed settings, read by Hydra, and what is wrong with it in one sentence."""

from infoscope.config.tree import (
    CONF_FOLDER,
    CollectConfig,
    Config,
    Device,
    HousekeepingConfig,
    StageName,
    TokenBuffer,
    TrainerConfig,
    compose,
    explain_config_error,
    make_config,
    open_hydra,
    prepare_arguments,
    register_schemas,
    to_tree,
)

__all__ = [
    "CONF_FOLDER",
    "CollectConfig",
    "Config",
    "Device",
    "HousekeepingConfig",
    "StageName",
    "TokenBuffer",
    "TrainerConfig",
    "compose",
    "explain_config_error",
    "make_config",
    "open_hydra",
    "prepare_arguments",
    "register_schemas",
    "to_tree",
]
