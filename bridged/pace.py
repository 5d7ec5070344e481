"""A relay's pace outlives the daemon: its halt, its share of the rate, and what was sent within the day."""

from __future__ import annotations

import json
from dataclasses import asdict

from bridged.journal import Journal
from bridged.line import DAY, Line, Pace
from bridged.model import Instant
from bridged.settings import Smtp


def save(journal: Journal, smtp: Smtp, line: Line, now: Instant) -> None:
    """Keep the pace where it has changed. Raises sqlite3.Error when the journal cannot be written."""
    pace = line.unsaved_pace(now)
    if pace is not None:
        journal.write(lambda tx: tx.keep(_key(smtp), json.dumps(asdict(pace))))


def resume(journal: Journal, smtp: Smtp, line: Line, now: Instant) -> None:
    """Let a new line go on where the last one of the same relay and account stopped."""
    kept = journal.read(lambda tx: tx.kept(_key(smtp)))
    tried = journal.read(lambda tx: tx.tried_since(now.wall - DAY))
    accepted = [at for at, outcome in tried if outcome == "accepted"]
    line.resume(None if kept is None else Pace(**json.loads(kept)), [at for at, _ in tried], accepted, now)


def _key(smtp: Smtp) -> str:
    return f"pace of {smtp.username or ''} at {smtp.host}:{smtp.port}"
