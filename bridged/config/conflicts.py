"""Conflicts between entries: names, GEDs, addresses, ways to sign in. Pure.

It reads the raw values, so that a conflict is told along with the mistakes of single values.
"""

from __future__ import annotations

import posixpath
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bridged.config.lines import Lines, Where, shown
from bridged.config.presets import COLLECTORS, collector
from bridged.config.values import is_path, plain_path

Entries = list[tuple[int, dict[str, Any]]]


def note(lines: Lines, resolved: Callable[[Sequence[str]], Iterable[str]]) -> None:
    """Add a problem to `lines` for each conflict. `resolved` follows the links of absolute paths, in their order."""
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


def _overlapping_geds(lines: Lines, entries: Entries, resolved: Callable[[Sequence[str]], Iterable[str]]) -> None:
    """Note each GED that lies in another one, also behind a link.

    In the order of their parts a GED comes right before those inside it. So one comparison is enough for each.
    """
    texts = [(i, str(client.get("ged"))) for i, client in entries]
    absolute = [(i, text) for i, text in texts if text.startswith("/") and is_path(text)]
    real = resolved([text for _, text in absolute])
    outer: tuple[str, ...] = ()
    owner = -1
    for parts, i in sorted((Path(ged).parts, i) for (i, _), ged in zip(absolute, real, strict=True)):
        if owner < 0 or parts[: len(outer)] != outer:
            outer, owner = parts, i
            continue
        message = f"This GED overlaps with the one on line {lines.line(('clients', min(i, owner), 'ged'))}."
        lines.add(("clients", max(i, owner), "ged"), message, "Give each client a directory of its own.")


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
