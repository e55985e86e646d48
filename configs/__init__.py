"""Configurations: settings dataclasses, YAML presets, `key=value` overrides, and every problem reported at once."""

from headwater.configs.errors import (
    ConfigError,
    CorruptError,
    MismatchError,
    MissingError,
    Problem,
    UserError,
)
from headwater.configs.loader import load_config, save_config, to_yaml
from headwater.configs.settings import MISSING, describe, section, setting
from headwater.configs.sources import find_config, preset_names

__all__ = [
    "MISSING",
    "ConfigError",
    "CorruptError",
    "MismatchError",
    "MissingError",
    "Problem",
    "UserError",
    "describe",
    "find_config",
    "load_config",
    "preset_names",
    "save_config",
    "section",
    "setting",
    "to_yaml",
]
