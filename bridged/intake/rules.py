"""The rules by which a GED was last read. A file that they left out is existing when they are lifted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bridged import __version__
from bridged.config import SwitchedFolders
from bridged.config.settings import Client, Settings, SwitchedFolder
from bridged.names import verdict


@dataclass(frozen=True, slots=True)
class Former:
    """The rules that were in force before the present ones."""

    switched: SwitchedFolders
    ignores: Callable[[bytes], str | None]


def written(client: Client, settings: Settings) -> str:
    """The rules in force, as text for the journal. They decide which files are known once a directory has been read."""
    rules: dict[str, Any] = {
        "version": __version__,
        "folders": [[folder.path, folder.exclude] for folder in client.switched_folders],
        "ignore": settings.ignore,
        "suffix": settings.marker.suffix,
        "hidden": settings.marker.hidden,
    }
    return json.dumps(rules)


def former(rules: str, client: Client) -> Former:
    """The rules of a text that `written` made for this client. Raises ValueError for any other text."""
    before = json.loads(rules)
    folders = tuple(SwitchedFolder(path=path, exclude=exclude) for path, exclude in before["folders"])
    ignores = partial(verdict, extra=before["ignore"], marker=before["suffix"], hidden=before["hidden"])
    there = client.model_copy(update={"switched_folders": folders})
    return Former(SwitchedFolders((there,), before["ignore"]), ignores)
