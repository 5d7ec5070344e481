"""Conflicts between entries: names, GEDs, addresses, ways to sign in. Pure.

It reads the raw values, so that a conflict is told along with the mistakes of single values.
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bridged.config.lines import Lines, Where, shown
from bridged.config.presets import COLLECTORS, collector
from bridged.config.values import is_path, plain_path

Entries = list[tuple[int, dict[str, Any]]]
Location = tuple[bytes, bytes]  # a file system, and a path in it


class Reached(NamedTuple):
    """A GED as the file systems have it: its path without links, its location, and those of the mounts below it."""

    path: str
    own: Location | None = None
    below: tuple[Location, ...] = ()


Resolved = Callable[[Sequence[str]], Iterable[Reached]]


def note(lines: Lines, resolved: Resolved) -> None:
    """Add a problem to `lines` for each conflict. `resolved` follows links and mounts of absolute paths, in order."""
    _login(lines, ("smtp",), lines.value.get("smtp"))
    _state_in_ged(lines)
    clients = lines.value.get("clients")
    if clients == []:  # a half-written file must not switch everything off
        lines.add(("clients",), "There is no client.", "Add one, as in the sample configuration.")
    entries = [(i, c) for i, c in enumerate(clients) if isinstance(c, dict)] if isinstance(clients, list) else []
    alerts = lines.value.get("alerts")
    if isinstance(alerts, dict):
        _login(lines, ("alerts", "smtp"), alerts.get("smtp"))
        _alerts_to_a_collector(lines, alerts.get("to"), entries)
    _same_names(lines, entries)
    _overlapping_geds(lines, entries, resolved)
    _shared_addresses(lines, entries)
    _same_folders(lines, entries)


def _state_in_ged(lines: Lines) -> None:
    state = str(lines.value.get("state_dir") or "")
    clients = lines.value.get("clients") if state.startswith("/") and is_path(state) else []
    for client in clients if isinstance(clients, list) else []:
        ged = str(client.get("ged", "")) if isinstance(client, dict) else ""
        if ged.startswith("/") and posixpath.commonpath([ged, state]) == posixpath.normpath(ged):
            lines.add(
                ("state_dir",), "The journal would lie inside a GED.", "Keep it in a directory of the daemon's own."
            )


def _login(lines: Lines, where: Where, smtp: Any) -> None:
    given = {key for key, value in smtp.items() if value} if isinstance(smtp, dict) else set()
    files = sorted(given & {"password_file", "password_env"})
    if len(files) == 2:
        lines.add((*where, "password_env"), "password_file and password_env are both given.", "Keep one of them.")
    if files and "username" not in given:
        lines.add((*where, files[0]), "There is a password but no username.", "Add username, or remove the password.")
    if "username" in given and not files and "auth" not in given:
        lines.add((*where, "username"), "There is a username but no password.", "Add password_file (or password_env).")
    if "auth" in given:
        _oauth(lines, (*where, "auth"), smtp["auth"], given)


def _oauth(lines: Lines, where: Where, auth: Any, beside: set[str]) -> None:
    if beside & {"password_file", "password_env"}:
        lines.add(where, "There is a password beside auth.", "Keep one of the two ways to sign in.")
    if "username" not in beside:
        lines.add(where, "There is no username, whose mailbox is to send.", "Add smtp.username.")
    given = {key for key, value in auth.items() if value} if isinstance(auth, dict) else set()
    application = ("tenant", "client_id", "client_secret_file")
    missing = [key for key in application if key not in given]
    if "service_account_file" in given:
        for key in sorted(given.intersection(application)):
            lines.add((*where, key), "This does not go with service_account_file.", "Keep one of the two.")
    elif missing:
        remedy = "Microsoft 365 needs all three of them, Google Workspace service_account_file instead."
        lines.add(where, f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing.", remedy)


def _same_names(lines: Lines, entries: Entries) -> None:
    seen: dict[str, int] = {}
    for i, client in entries:
        name = unicodedata.normalize("NFC", str(client.get("name") or "").strip().casefold())
        if name and name in seen:
            first = lines.line(("clients", seen[name], "name"))
            lines.add(
                ("clients", i, "name"),
                f"Two clients have this name (the other on line {first}).",
                "Rename one.",
            )
        seen.setdefault(name, i)


def _overlapping_geds(lines: Lines, entries: Entries, resolved: Resolved) -> None:
    """Note each GED that lies in another one, also behind a link or a mount."""
    texts = [(i, str(client.get("ged"))) for i, client in entries]
    absolute = [(i, text) for i, text in texts if text.startswith("/") and is_path(text)]
    found = dict(zip((i for i, _ in absolute), resolved([text for _, text in absolute]), strict=True))
    told = set(_inside_by_path(lines, found))
    names = {i: shown(client.get("name")) for i, client in entries}
    for later, first in _one_by_mount(found):
        if later not in told:
            told.add(later)
            line = lines.line(("clients", first, "ged"))
            message = f"By a mount, the GEDs of {names[later]} and {names[first]} (line {line}) are one directory, or"
            message += " one lies in the other: its documents would go to both."
            lines.add(("clients", later, "ged"), message, "Unmount it, or give each client a directory of its own.")


def _inside_by_path(lines: Lines, found: Mapping[int, Reached]) -> Iterator[int]:
    """Note each GED whose path lies in another one's, and yield the later of the two.

    In the order of their parts a GED comes right before those inside it. So one comparison is enough for each.
    """
    outer: tuple[str, ...] = ()
    owner = -1
    for parts, i in sorted((Path(reached.path).parts, i) for i, reached in found.items()):
        if owner < 0 or parts[: len(outer)] != outer:
            outer, owner = parts, i
            continue
        message = f"This GED overlaps with the one on line {lines.line(('clients', min(i, owner), 'ged'))}."
        lines.add(("clients", max(i, owner), "ged"), message, "Give each client a directory of its own.")
        yield max(i, owner)


def _one_by_mount(found: Mapping[int, Reached]) -> Iterator[tuple[int, int]]:
    """Yield the later and the earlier of two GEDs that share a directory, by their locations.

    A directory that is mounted below two GEDs is told only where it is a GED itself: a sandbox mounts one empty
    directory at many places.
    """
    own: dict[Location, list[int]] = {}
    below: dict[Location, list[int]] = {}
    for i, reached in found.items():
        if reached.own is not None:
            own.setdefault(reached.own, []).append(i)
        for one in reached.below:
            below.setdefault(one, []).append(i)
    for location, owners in own.items():
        for around in _around(location):
            yield from _pairs(owners, own.get(around, ()))
            yield from _pairs(owners, below.get(around, ()))
    for location, owners in below.items():
        for around in _around(location):
            yield from _pairs(owners, own.get(around, ()))


def _around(location: Location) -> Iterator[Location]:
    """A location, and those that it lies in."""
    device, path = location
    yield location
    while path.strip(b"/"):
        path = path.rpartition(b"/")[0]
        yield device, path or b"/"


def _pairs(some: Iterable[int], others: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The pairs of each with two of the others at most, because a thousand clients may name one directory."""
    others = others[:2]
    return ((max(one, other), min(one, other)) for one in some for other in others if one != other)


def _shared_addresses(lines: Lines, entries: Entries) -> None:
    """Note each address of two clients.

    The case of the local part tells two addresses apart only where both collectors say so. The domain's never does.
    """
    owners: dict[tuple[str, str], list[int]] = {}
    shared = {i for i, client in entries if client.get("shared_collection_email") is True}
    for i, client in entries:
        for where, address in _addresses(i, client):
            matters, folded = _case_matters(client, where, lines), address.casefold()
            local, _, domain = address.rpartition("@")
            same = ("as it is", f"{local}@{domain.casefold()}")
            others = [same, ("caseless", folded)] if matters else [("of any kind", folded)]
            found = (first for key in others for first in owners.get(key, ()) if first != i)
            first = next((one for one in found if not {one, i} <= shared), None)
            if first is not None:
                line = lines.line(("clients", first, "collection_email"))
                message = f"The client on line {line} has this collection email too: documents would mix."
                lines.add(where, message, "Correct it, or set shared_collection_email: true on both clients.")
            for key in (same, ("of any kind", folded), *([] if matters else [("caseless", folded)])):
                _note_owner(owners.setdefault(key, []), i, shared)


def _alerts_to_a_collector(lines: Lines, to: Any, entries: Entries) -> None:
    """Note each address of the alerts that is a collection email, because a collector books an alert as an invoice."""
    owners = {address.casefold(): where for i, client in entries for where, address in _addresses(i, client)}
    people = {("alerts", "to", n): one for n, one in enumerate(to)} if isinstance(to, list) else {("alerts", "to"): to}
    for where, address in people.items():
        owner = owners.get(address.casefold()) if isinstance(address, str) else None
        if owner is not None:
            message = f"On line {lines.line(owner)} this is a collection email, where an alert is taken for an invoice."
            lines.add(where, message, "Name the mailbox of a person.")


def _note_owner(owners: list[int], i: int, shared: set[int]) -> None:
    """Keep two owners of an address, and one that does not share it. A further client is compared with these alone."""
    if i not in owners and (len(owners) < 2 or (i not in shared and shared.issuperset(owners))):
        owners.append(i)


def _case_matters(client: dict[str, Any], where: Where, lines: Lines) -> bool:
    """True when the collector gives out addresses that differ by their case alone."""
    folder = lines.value["clients"][where[1]]["switched_folders"][where[3]] if len(where) > 3 else client
    name = folder.get("collector") or client.get("collector")
    limit = collector(name).case_sensitive if name in COLLECTORS else None
    return limit is not None and limit.value and limit.holds


def _addresses(i: int, client: dict[str, Any]) -> Iterator[tuple[Where, str]]:
    if isinstance(client.get("collection_email"), str):
        yield ("clients", i, "collection_email"), client["collection_email"]
    folders = client.get("switched_folders")
    for n, folder in enumerate(folders if isinstance(folders, list) else []):
        if isinstance(folder, dict) and isinstance(folder.get("collection_email"), str):
            yield ("clients", i, "switched_folders", n, "collection_email"), folder["collection_email"]


def _same_folders(lines: Lines, entries: Entries) -> None:
    for i, client in entries:
        seen: set[str] = set()
        folders = client.get("switched_folders")
        for n, folder in enumerate(folders if isinstance(folders, list) else []):
            given = folder.get("path") if isinstance(folder, dict) else folder
            path = (
                unicodedata.normalize("NFC", plain_path(given)) if isinstance(given, str) and given[:1] != "/" else None
            )
            if path in seen:
                where = ("clients", i, "switched_folders", n)
                lines.add(where, f"The folder {shown(path)} is listed twice.", "Remove one of the two.")
            if path is not None:
                seen.add(path)
