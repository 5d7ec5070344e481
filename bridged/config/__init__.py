"""The configuration: YAML to settings, or every problem at once, each with its line and a remedy.

`settings`, `values` and `collectors` are public modules.
"""

from bridged.config.folders import Component, Place, SwitchedFolders, components
from bridged.config.lines import Problem, read
from bridged.config.loading import DRY_RUN, ConfigError, as_written, find_config, load
from bridged.config.presets import collector
from bridged.config.schema import json_schema

__all__ = [
    "DRY_RUN",
    "Component",
    "ConfigError",
    "Place",
    "Problem",
    "SwitchedFolders",
    "as_written",
    "collector",
    "components",
    "find_config",
    "json_schema",
    "load",
    "read",
]
