"""A relay's pace outlives the daemon: its halt, its share of the rate, and what was sent within the day."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, get_args

from bridged.config.settings import Smtp
from bridged.journal import Journal
from bridged.line.line import DAY, Line, LineMatter, Pace
from bridged.logs import say
from bridged.model import Instant, UserError
from bridged.relay import client_secret, password, service_account_key

ACCOUNTS: Final = "accounts"  # the journal's name for which account was in use since when
_IN_TRANSIT: Final = 900.0  # seconds after a change, in which an attempt may still be the former account's
_MOST: Final = 100  # changes that are remembered

# Of a kept pace: whom it halted, as far as one may tell that it is another.
_SIGNS_IN: Final = "signs_in"


def keep(journal: Journal, smtp: Smtp, line: Line, now: Instant) -> None:
    """Keep the pace where it has changed. Raises sqlite3.Error when the journal cannot be written."""
    pace = line.unsaved_pace(now)
    if pace is not None:
        kept = asdict(pace) | ({_SIGNS_IN: _print(smtp, os.urandom(16))} if pace.matter == "misconfigured" else {})
        journal.write(lambda tx: tx.keep(_key(smtp), json.dumps(kept)))


def resume(journal: Journal, smtp: Smtp, line: Line, now: Instant) -> None:
    """Let a new line go on where the last one of the same relay and account stopped.

    A halt that a person has seen to since, by another secret or other settings, is tried once at once.
    """
    pace, signs_in = _read(journal.read(lambda tx: tx.kept(_key(smtp))))
    account = _account(smtp)
    used = _accounts(journal.read(lambda tx: tx.kept(ACCOUNTS)))
    tried = journal.read(lambda tx: tx.tried_since(now.wall - DAY))
    ours = [(at, outcome) for at, outcome in tried if _may_be_of(account, at, used)]
    line.resume(pace, [at for at, _ in ours], [at for at, outcome in ours if outcome == "accepted"], now)
    if signs_in and signs_in != _print(smtp, bytes.fromhex(signs_in.partition(":")[0])):
        line.probe_now()
    if not used or used[-1][1] != account:
        _note_account(journal, [*used, (now.wall, account)])


def _key(smtp: Smtp) -> str:
    return f"pace of {smtp.username or ''} at {smtp.host}:{smtp.port}"


def _account(smtp: Smtp) -> str:
    """Whose quota it is. A mailbox has the same on every port; without one, each port may be another relay's."""
    return f"{smtp.username} at {smtp.host}" if smtp.username else f"{smtp.host}:{smtp.port}"


# -- what is kept, which somebody else, or a later version, may have written


def _read(kept: str | None) -> tuple[Pace | None, str]:
    """The pace, and whom it was of. What cannot be read is as good as nothing: it must not stop the daemon."""
    if kept is None:
        return None, ""
    try:
        values = json.loads(kept)
        signs_in = str(values.pop(_SIGNS_IN, ""))
        bytes.fromhex(signs_in.partition(":")[0])
        return _checked(values), signs_in
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        _tell(f"the pace that was kept cannot be read, and is begun anew: {type(error).__name__}: {error}")
        return None, ""


def _checked(values: dict[str, Any]) -> Pace:
    if values["matter"] not in get_args(LineMatter):
        raise ValueError(f"no such matter: {values['matter']!r}")
    return Pace(
        matter=values["matter"],
        detail=str(values["detail"]),
        due_at=float(values["due_at"]),
        failures=int(values["failures"]),
        sessions=int(values["sessions"]),
        share=min(1.0, max(0.0, float(values["share"]))),
        measured=max(0, int(values["measured"])),
        breaker=bool(values["breaker"]),
    )


def _accounts(kept: str | None) -> list[tuple[float, str]]:
    """Which account was in use since when, the last one last."""
    try:
        return [(float(at), str(account)) for at, account in json.loads(kept or "[]")]
    except (ValueError, TypeError, OverflowError):
        return []  # then every attempt may be anybody's


def _may_be_of(ours: str, at: float, used: Sequence[tuple[float, str]]) -> bool:
    """Whether an attempt may have been this account's. Where that is not sure it counts: no quota is exceeded so."""
    if not used or at < used[0][0]:
        return True
    ends = [since + _IN_TRANSIT for since, _ in used[1:]] + [float("inf")]
    return any(account == ours and since <= at <= end for (since, account), end in zip(used, ends, strict=True))


def _note_account(journal: Journal, used: list[tuple[float, str]]) -> None:
    try:
        journal.write(lambda tx: tx.keep(ACCOUNTS, json.dumps(used[-_MOST:])))
    except sqlite3.Error as error:  # it sends all the same; what is counted may be the former account's
        _tell(f"the account in use cannot be noted: {type(error).__name__}: {error}")


def _tell(why: str) -> None:
    say("state_failed", half="pace", level="warning", reason=why)


# -- whether a person has seen to a halt


def _print(smtp: Smtp, salt: bytes) -> str:
    """What the settings and the secret come to, so that only the same ones come to the same.

    Salted and slow to make: whoever reads the journal cannot try passwords on it.
    """
    told = json.dumps([smtp.model_dump(mode="json"), _secret(smtp)]).encode()
    digest = hashlib.scrypt(told, salt=salt, n=2**14, r=8, p=1, dklen=16)
    return f"{salt.hex()}:{digest.hex()}"


def _secret(smtp: Smtp) -> str:
    auth = smtp.auth
    try:
        if auth is None:
            return password(smtp) or ""
        return service_account_key(auth) if auth.service_account_file else client_secret(auth)
    except UserError as error:
        return str(error)
