"""The pace outlives the daemon: its halt, its share of the rate, and the mails of the day, which the quota counts."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, get_args

from bridged.config.settings import Smtp
from bridged.journal import Journal, JournalError
from bridged.line.line import DAY, Line, LineMatter, Pace
from bridged.logs import say
from bridged.model import Instant, UserError
from bridged.relay import client_secret, password, service_account_key

ACCOUNTS: Final = "accounts"  # the journal's key for the accounts and the times at which each came into use
_IN_TRANSIT: Final = 900.0  # seconds after a change of account in which an attempt may be the former account's
_MOST: Final = 100  # changes of account that are kept

_SIGNS_IN: Final = "signs_in"  # the key of the halted sign-in in a kept pace, as a salted digest


def keep(journal: Journal, smtp: Smtp, line: Line, now: Instant) -> None:
    """Keep the pace where it changed. Raises JournalError when the journal cannot be written."""
    pace = line.unsaved_pace(now)
    if pace is not None:
        kept = asdict(pace) | ({_SIGNS_IN: _print(smtp, os.urandom(16))} if pace.matter == "misconfigured" else {})
        journal.write(lambda tx: tx.keep(_key(smtp), json.dumps(kept)))


def resume(journal: Journal, smtp: Smtp, line: Line, now: Instant) -> None:
    """Let a new line go on where the last line of the same relay and account stopped.

    A halted line is probed at once when the secret or the settings have changed since, because a person has acted.
    A kept pace that cannot be read counts as none, and a warning says so.
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
    """The owner of the quota: a mailbox on any port; without a sign-in the host and its port."""
    return f"{smtp.username} at {smtp.host}" if smtp.username else f"{smtp.host}:{smtp.port}"


# -- the kept values, which a later version may have written


def _read(kept: str | None) -> tuple[Pace | None, str]:
    """The kept pace and its halted sign-in. One that cannot be read is none, because it must not stop the daemon."""
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
    """The accounts and the times at which each came into use, the last one last."""
    try:
        return [(float(at), str(account)) for at, account in json.loads(kept or "[]")]
    except (ValueError, TypeError, OverflowError):
        return []  # then every attempt counts for every account


def _may_be_of(ours: str, at: float, used: Sequence[tuple[float, str]]) -> bool:
    """True when an attempt may have been this account's. A doubtful one counts; otherwise a quota could be exceeded."""
    if not used or at < used[0][0]:
        return True
    ends = [since + _IN_TRANSIT for since, _ in used[1:]] + [float("inf")]
    return any(account == ours and since <= at <= end for (since, account), end in zip(used, ends, strict=True))


def _note_account(journal: Journal, used: list[tuple[float, str]]) -> None:
    try:
        journal.write(lambda tx: tx.keep(ACCOUNTS, json.dumps(used[-_MOST:])))
    except JournalError as error:  # told and not raised: mails leave all the same, and only the count may be wrong
        _tell(f"the account in use cannot be noted: {type(error).__name__}: {error}")


def _tell(why: str) -> None:
    say("state_failed", half="pace", level="warning", reason=why)


# -- has a person seen to a halt?


def _print(smtp: Smtp, salt: bytes) -> str:
    """A digest of the settings and the secret (scrypt, RFC 7914). The same ones give the same digest with one salt.

    Salted and slow, because otherwise a reader of the journal could try passwords on it.
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
