"""Documents put into a journal in any state, with any columns, past every verb."""

from __future__ import annotations

from typing import Any

from bridged.journal import Transaction
from bridged.model import Stamp, State

STAMP = Stamp(7, 100, 5, 6)


def put(tx: Transaction, state: State, name: bytes = b"a.pdf", client: str = "A", **columns: Any) -> int:
    """Enter a row in `state`; returns its number."""
    identity = f"{client}-{name!r}"
    row = {
        "state": state.value,
        "id": identity,
        "client": client,
        "ged": b"/ged",
        "path": b"/ged/in/" + name,
        "collection_email": "a@collecte.example",
        "message_id": f"<{identity}@cabinet.example>",
        "date": "",
        "deposited_at": 1.0,
    }
    row |= _plain({"stamp": STAMP} | columns)
    sql = f"INSERT INTO documents ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})"
    number = tx._sql.execute(sql, tuple(row.values())).lastrowid
    assert number is not None
    return number


def change(tx: Transaction, seq: int, **columns: Any) -> None:
    """Change columns of a row, `state` among them if given."""
    row = _plain(columns)
    sets = ", ".join(f"{name} = ?" for name in row)
    assert tx._sql.execute(f"UPDATE documents SET {sets} WHERE seq = ?", (*row.values(), seq)).rowcount == 1


def _plain(columns: dict[str, Any]) -> dict[str, Any]:
    stamp = columns.pop("stamp", None)
    stamped = {} if stamp is None else dict(zip(("inode", "size", "mtime_ns", "ctime_ns"), stamp, strict=True))
    return columns | stamped
