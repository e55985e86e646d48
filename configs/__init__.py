"""Configurations: settings dataclasses, YAML presets, `key=value` overrides, and every problem reported at once.

What loads them is imported on first use: OmegaConf would be half of the time that `headwater --help` takes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from headwater.configs.errors import (
    ConfigError,
    CorruptError,
    MismatchError,
    MissingError,
    Problem,
    UserError,
)
from headwater.configs.settings import MISSING, describe, section, setting

if TYPE_CHECKING:
    from headwater.configs.loader import load_config, save_config, to_yaml
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

_LAZY = {
    "find_config": "sources",
    "load_config": "loader",
    "preset_names": "sources",
    "save_config": "loader",
    "to_yaml": "loader",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"headwater.configs.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
