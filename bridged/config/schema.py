"""The JSON Schema of the configuration, for editors."""

from __future__ import annotations

from typing import Any, Final

from bridged.config.settings import Settings
from bridged.config.values import UNITS


def json_schema() -> dict[str, Any]:
    """The JSON Schema of the configuration as a person writes it: durations are text, a folder may be a bare path."""
    schema = Settings.model_json_schema()
    definitions = schema["$defs"]
    definitions["Rate"] = {
        "type": "string",
        "pattern": r"^\d+\s*/\s*(s|sec|m|min|h|hour|d|day)$",
        "title": "Rate",
    }
    for model, keys in _DURATIONS.items():
        for key in keys:
            field = definitions[model]["properties"][key]
            default = {"default": _written(field["default"])} if "default" in field else {}
            title = field.get("title", key)
            definitions[model]["properties"][key] = {
                "type": "string",
                "pattern": _PATTERN,
                "title": title,
            } | default
    smtp = definitions["Smtp"]
    smtp["required"] = ["sender"]  # not the host, because a provider presets it
    for key in ("rate", "daily_quota"):
        smtp["properties"][key]["anyOf"].append({"const": "none"})
    smtp["properties"]["size_limit"] = {"type": "string", "pattern": _SIZE, "title": "Size Limit"}
    to = definitions["Alerts"]["properties"]["to"]
    definitions["Alerts"]["properties"]["to"] = {"anyOf": [{"type": "string"}, to]}
    items = definitions["Client"]["properties"]["switched_folders"]["items"]
    definitions["Client"]["properties"]["switched_folders"]["items"] = {"anyOf": [{"type": "string"}, items]}
    schema["properties"]["state_dir"].setdefault("default", "/var/lib/bridged")
    schema["properties"]["retry"].pop("default", None)
    schema["properties"]["watch"].pop("default", None)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "bridged"} | schema


_PATTERN: Final = r"^\d+(\.\d+)?(ms|s|m|h|d)$"
_SIZE: Final = r"^(none|\d+(\.\d+)?\s?([kKmMgG]i?)?[bB])$"
_DURATIONS: Final = {
    "Smtp": ("timeout",),
    "Brake": ("within",),
    "Retry": ("first", "max", "give_up_after"),
    "Watch": ("quiet", "quiet_limit", "sweep", "poll"),
}


def _written(seconds: float) -> str:
    unit = next(u for u in ("d", "h", "m", "s", "ms") if seconds >= UNITS[u])
    return f"{seconds / UNITS[unit]:g}{unit}"
