"""The documents: the queries, and one verb for each arrow of docs/states.md.

A verb says once which columns its arrow changes. It compares and sets: it raises StateConflict unless the document is
in the state that the arrow begins in.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from bridged.journal.errors import StateConflict
from bridged.journal.values import Attempt, NewDocument, Proof, Query
from bridged.model import ALL_RULES, TRANSITIONS, Document, Stamp, State
from bridged.reasons import ADOPTED, MISSED, SENT_ON_PURPOSE

_COLUMNS: Final = (
    "seq, id, client, ged, path, state, reason, inode, size, mtime_ns, ctime_ns, sha256, collection_email, message_id,"
    " date, attempts, uncertain, dotted, deposited_at, queued_at, sent_at, validated_at, due_at, relay_reply, marker,"
    " rule, passed"
)
Columns = Mapping[str, object]
_DUE: Final = "(due_at <= ? OR due_at > ?)"
_COUNTED: Final = ", attempts = attempts + 1"


def _document(row: tuple[Any, ...]) -> Document:
    """By position: the columns stand in the order of the fields."""
    stamp, dotted = Stamp(*row[7:11]), bool(row[17])
    values: tuple[Any, ...] = (*row[:5], State(row[5]), row[6], stamp, *row[11:17], dotted, *row[18:])
    return Document(*values)


class Documents:
    """The part of a transaction that asks for documents."""

    _sql: sqlite3.Connection

    def document(self, seq: int) -> Document | None:
        """The document of that number."""
        return next(self._select("seq = ?", (seq,)), None)

    def documents(self, query: Query = Query()) -> list[Document]:  # noqa: B008 - a frozen value
        """The documents that meet the query, in the order of their deposit."""
        wanted = {
            "id": query.id,
            "client": query.client,
            "ged": query.ged,
            "path": query.path,
            "collection_email": query.collection_email,
            "reason": query.reason,
        }
        given = {name: value for name, value in wanted.items() if value is not None}
        conditions = [f"{name} = ?" for name in given]
        if query.states:
            conditions.append(f"state IN ({_marks(query.states)})")
        where = " AND ".join(conditions) or "1"
        return list(self._select(where, (*given.values(), *query.states), query.limit))

    def _select(
        self, where: str, arguments: tuple[object, ...] = (), limit: int = -1, order: str = "seq"
    ) -> Iterator[Document]:
        sql = f"SELECT {_COLUMNS} FROM documents WHERE {where} ORDER BY {order} LIMIT ?"  # noqa: S608 - constants only
        return map(_document, self._sql.execute(sql, (*arguments, limit)))

    def due_after(
        self,
        client: str,
        now: float,
        horizon: float,
        away: Collection[bytes] = (),
        but: Collection[int] = (),
        *,
        limit: int,
    ) -> list[Document]:
        """The first due document of each client, in the order of the alphabet, beginning after `client`.

        `limit` at most; none only where no document is due. A due time beyond `horizon` counts as due, because no
        schedule has set it: the clock jumped back. Documents of the GEDs `away`, and those in `but`, are passed over.
        """
        due = f"state = 'queued' AND {_DUE} AND {_not_in(away)} AND {_not_in(but, 'seq')}"
        for turn in (" AND client > ?", " AND client <= ?"):
            firsts: list[Document] = []
            for document in self._select(due + turn, (now, horizon, *away, *but, client), limit, "client, seq"):
                if firsts and firsts[-1].client == document.client:
                    break  # the clients behind so many documents are asked for next time
                firsts.append(document)
            if firsts:
                return firsts
        return []

    def due_of(
        self,
        client: str,
        now: float,
        horizon: float,
        away: Collection[bytes] = (),
        but: Collection[int] = (),
        *,
        limit: int,
    ) -> list[Document]:
        """The due documents of one client, by the same rules, in the order of their deposit."""
        due = f"state = 'queued' AND client = ? AND {_DUE} AND {_not_in(away)} AND {_not_in(but, 'seq')}"
        return list(self._select(due, (client, now, horizon, *away, *but), limit))

    def any_due(self, now: float, horizon: float, away: Collection[bytes] = ()) -> bool:
        """Whether a document of any client is due, by the same rules."""
        sql = f"SELECT 1 FROM documents WHERE state = 'queued' AND {_DUE} AND {_not_in(away)} LIMIT 1"  # noqa: S608
        return self._sql.execute(sql, (now, horizon, *away)).fetchone() is not None

    def next_due(self, away: Collection[bytes] = ()) -> float | None:
        """The earliest due time of a queued document, in seconds since the epoch; GEDs `away` are left out."""
        sql = f"SELECT MIN(due_at) FROM documents WHERE state = 'queued' AND {_not_in(away)}"  # noqa: S608 - marks only
        row = self._sql.execute(sql, tuple(away)).fetchone()
        return None if row[0] is None else float(row[0])

    def markers_due(self, now: float, horizon: float, limit: int) -> list[Document]:
        """Sent documents that lack their marker, and validated ones whose marker is to follow a rename.

        A due time beyond `horizon` counts as due, because the clock jumped back.
        """
        sql = f"SELECT {_COLUMNS} FROM documents WHERE marker_due IS NOT NULL AND (marker_due <= ? OR marker_due > ?)"  # noqa: S608
        return list(map(_document, self._sql.execute(sql + " ORDER BY marker_due LIMIT ?", (now, horizon, limit))))

    def counts(self) -> list[tuple[bytes, str, int]]:
        """Path, state and 1 of each document. The caller sums them by its folders."""
        return self._sql.execute("SELECT path, state, 1 FROM documents").fetchall()

    def message_id_known(self, message_id: str, but: int = 0) -> bool:
        """Whether a document has that Message-ID, the document `but` left out."""
        known = "SELECT 1 FROM documents WHERE message_id = ? AND seq <> ?"
        return self._sql.execute(known, (message_id, but)).fetchone() is not None

    def proven(self, proof: Proof, own: str, but: int = 0) -> Proof | None:
        """The proof as a row may bear it whose own Message-ID is `own`. None where the marker is forged.

        `proof` is of a marker that has the digest of the bytes beside it. Another document, `but` left out, may have
        its Message-ID. With the same digest the file is a copy that came with its marker, and keeps its own
        Message-ID. With another digest the marker tells of bytes that never left.
        """
        holder = "SELECT sha256 FROM documents WHERE message_id = ? AND seq <> ?"
        row = self._sql.execute(holder, (proof.message_id, but)).fetchone()
        if row is None:
            return proof
        return replace(proof, message_id=own) if row[0] == proof.sha256 else None

    def attempts(self, seq: int) -> list[tuple[float, str, str]]:
        """Every attempt at a document, the first one first: instant, outcome, the relay's words."""
        sql = "SELECT at, outcome, reply FROM attempts WHERE document = ? ORDER BY at"
        return self._sql.execute(sql, (seq,)).fetchall()

    def tried_since(self, at: float) -> list[tuple[float, str]]:
        """Instant and outcome of each attempt since then, the first one first."""
        return self._sql.execute("SELECT at, outcome FROM attempts WHERE at > ? ORDER BY at", (at,)).fetchall()

    def deposited_before(self, document: Document, within: float) -> int:
        """How many documents its client deposited in the `within` seconds before this one; missed ones left out."""
        sql = "SELECT COUNT(*) FROM documents WHERE client = ? AND deposited_at > ? AND seq < ? AND state <> 'missed'"
        row = self._sql.execute(sql, (document.client, document.deposited_at - within, document.seq)).fetchone()
        return int(row[0])

    def accepted_since(self, collection_email: str, at: float) -> list[float]:
        """When the relay accepted each document for an address since then, the latest first."""
        sql = "SELECT sent_at FROM documents WHERE collection_email = ? AND sent_at > ? ORDER BY sent_at DESC"
        return [row[0] for row in self._sql.execute(sql, (collection_email, at))]

    def under_way(self, collection_email: str) -> int:
        """How many documents for an address are being sent.

        The plus keeps SQLite from the index by address: it holds every document ever sent there.
        """
        sql = "SELECT COUNT(*) FROM documents WHERE state = 'sending' AND +collection_email = ?"
        return int(self._sql.execute(sql, (collection_email,)).fetchone()[0])

    def same_bytes(self, document: Document, sha256: str) -> list[Document]:
        """Other documents with these bytes that left for the same address, may have left, or are being sent.

        The index by content holds no empty digest, so the condition must say that there is none.
        """
        on_the_way = "state IN ('sending', 'sent', 'validated') OR uncertain > 0"
        where = f"sha256 = ? AND sha256 <> '' AND collection_email = ? AND seq <> ? AND ({on_the_way})"
        return list(self._select(where, (sha256, document.collection_email, document.seq)))

    def held(self) -> list[tuple[str, str, int]]:
        """Client, reason and number of held documents."""
        sql = "SELECT client, reason, COUNT(*) FROM documents WHERE state = 'held' GROUP BY client, reason"
        return self._sql.execute(f"{sql} ORDER BY client, reason").fetchall()

    def late(self, before: float) -> list[tuple[str, int, float]]:
        """Documents on their way since `before` or longer, and not sent: client, number, since when."""
        since = "CASE state WHEN 'waiting' THEN deposited_at ELSE COALESCE(queued_at, deposited_at) END"
        late = f"state IN ('waiting', 'queued', 'sending') AND {since} <= ?"
        sql = f"SELECT client, COUNT(*), MIN({since}) FROM documents WHERE {late} GROUP BY client ORDER BY client"  # noqa: S608 - constants only
        return self._sql.execute(sql, (before,)).fetchall()

    def missed_since(self, since: float) -> list[tuple[str, int]]:
        """Client and number of documents that were found missed since then."""
        missed = "state = 'missed' AND deposited_at > ?"
        sql = f"SELECT client, COUNT(*) FROM documents WHERE {missed} GROUP BY client ORDER BY client"  # noqa: S608 - constants only
        return self._sql.execute(sql, (since,)).fetchall()

    def active_days(self, since: float) -> list[tuple[str, str]]:
        """Each client with each day (local time, ISO 8601) on which it has deposited a document."""
        day = "date(deposited_at, 'unixepoch', 'localtime')"
        return self._sql.execute(
            f"SELECT DISTINCT client, {day} FROM documents WHERE deposited_at > ? ORDER BY 1, 2",  # noqa: S608 - constants only
            (since,),
        ).fetchall()

    def paths(self, seqs: Collection[int]) -> dict[int, bytes]:
        """The present paths of documents, by number."""
        sql = f"SELECT seq, path FROM documents WHERE seq IN ({_marks(seqs)})"  # noqa: S608 - marks only
        return dict(self._sql.execute(sql, tuple(seqs)))


class Verbs(Documents):
    """The part of a transaction that moves documents, by one verb for each arrow."""

    # -- into the journal

    def deposit(self, new: NewDocument) -> int:
        """No row to WAITING: a deposit was seen. Returns its number, as each verb of a new document does."""
        return self._enter(State.WAITING, new, {})

    def miss(self, new: NewDocument) -> int:
        """No row to MISSED: it was deposited while the daemon was stopped."""
        return self._enter(State.MISSED, new, {"reason": MISSED})

    def send(self, new: NewDocument, at: float) -> int:
        """No row to QUEUED: a person sends an existing document on purpose."""
        columns = {"queued_at": at, "reason": SENT_ON_PURPOSE, "passed": ALL_RULES}
        return self._enter(State.QUEUED, new, columns)

    def adopt(self, new: NewDocument, proof: Proof, at: float) -> int:
        """No row to VALIDATED: its valid marker stands beside it, the journal was lost."""
        return self._enter(State.VALIDATED, new, _adopted(proof, at))

    # -- on its way

    def queue(self, seq: int, stamp: Stamp, at: float, warning: str = "") -> None:
        """WAITING to QUEUED: it is quiet. `stamp` identifies the bytes to be sent."""
        columns = {"queued_at": at, "due_at": 0.0, "reason": warning}
        self._move(seq, State.WAITING, State.QUEUED, {**columns, **_stamped(stamp)})

    def adopt_deposit(self, seq: int, proof: Proof, at: float) -> None:
        """WAITING to VALIDATED: it came with its valid marker."""
        self._move(seq, State.WAITING, State.VALIDATED, _adopted(proof, at))

    def send_missed(self, seq: int, stamp: Stamp, at: float) -> None:
        """MISSED to QUEUED: a person sends it on purpose, past every rule of its client."""
        columns = {"queued_at": at, "due_at": 0.0, "reason": SENT_ON_PURPOSE, "passed": ALL_RULES}
        self._move(seq, State.MISSED, State.QUEUED, {**columns, **_stamped(stamp)})

    def unsettle(self, document: Document, reason: str) -> None:
        """QUEUED or SENDING to WAITING: it was overwritten, and must be quiet again.

        Its release is void, because a person has released other bytes.
        """
        self._move(document.seq, document.state, State.WAITING, {"reason": reason, "passed": ""})

    def claim(self, document: Document, collection_email: str) -> None:
        """QUEUED to SENDING: the next bytes go out. Its digest is void unless an earlier try is uncertain.

        Otherwise documents with the same bytes would wait for a digest that is not on its way yet.
        """
        columns: dict[str, object] = {"collection_email": collection_email, "dotted": 0}
        if not document.uncertain:
            columns["sha256"] = ""
        self._move(document.seq, State.QUEUED, State.SENDING, columns)

    def requeue(
        self, seq: int, due_at: float | None = None, attempt: Attempt | None = None, *, uncertain: bool = False
    ) -> None:
        """SENDING to QUEUED: it has not left, as far as is known. Without `due_at` it is due as before.

        Without an attempt nothing is counted: the relay, the file or the daemon stood in the way. `uncertain`: its
        dot had gone out, so it may have left.
        """
        columns: dict[str, object] = {"dotted": 0}
        if due_at is not None:
            columns["due_at"] = due_at
        if attempt is not None:
            columns |= {"reason": attempt.reply, "relay_reply": attempt.reply}
        more = ", uncertain = uncertain + 1" if uncertain else ""
        self._move(seq, State.SENDING, State.QUEUED, columns, attempt, more)

    def accept(self, seq: int, attempt: Attempt, reason: str = "") -> None:
        """SENDING to SENT: the relay accepted it. Its marker is due at once."""
        columns = {"reason": reason, "relay_reply": attempt.reply, "sent_at": attempt.at, "marker_due": 0.0}
        self._move(seq, State.SENDING, State.SENT, columns, attempt)

    def validate(self, seq: int, at: float, marker: bytes, follow_at: float | None) -> None:
        """SENT to VALIDATED: its marker is written. `follow_at`: when the marker is to follow a rename."""
        columns = {"validated_at": at, "marker": marker, "marker_due": follow_at}
        self._move(seq, State.SENT, State.VALIDATED, columns)

    # -- aside

    def hold_back(self, seq: int, reason: str, collection_email: str, rule: str = "") -> None:
        """QUEUED to HELD: its address was refused, or a rule of its client holds it before it is sent."""
        columns = {"rule": rule, "reason": reason, "collection_email": collection_email}
        self._move(seq, State.QUEUED, State.HELD, columns)

    def hold(self, seq: int, reason: str, rule: str = "", attempt: Attempt | None = None) -> None:
        """SENDING to HELD: the relay refused it, it is given up, or `rule` of its client holds it."""
        columns = {"reason": reason, "rule": rule}
        if attempt is not None:
            columns["relay_reply"] = attempt.reply
        self._move(seq, State.SENDING, State.HELD, columns, attempt)

    def release(self, document: Document, at: float | None = None) -> None:
        """HELD to QUEUED. It is due at once.

        `at`: when a person released it, past the rule that held it. Its tries begin anew. None: the relay proved to
        refuse everything. No rule is passed then, because a rule may hold a document that was refused earlier.
        """
        columns: dict[str, object] = {"due_at": 0.0, "reason": "", "rule": ""}
        if at is not None:
            passed = " ".join(dict.fromkeys([*document.passed.split(), *document.rule.split()]))
            columns |= {"passed": passed, "uncertain": 0, "queued_at": at}
        self._move(document.seq, State.HELD, State.QUEUED, columns)

    def withdraw(self, document: Document, reason: str) -> None:
        """WAITING, QUEUED, SENDING or HELD to WITHDRAWN: it is not sent."""
        self._move(document.seq, document.state, State.WITHDRAWN, {"reason": reason})

    def recover(self) -> list[Document]:
        """The recovery at the start. Returns the documents that were being sent: they are queued again.

        A document whose dot had gone out is uncertain.
        """
        interrupted = self.documents(Query(states=(State.SENDING,)))
        for document in interrupted:
            self.requeue(document.seq, 0.0, uncertain=document.dotted)
        self._sql.execute("UPDATE documents SET marker_due = 0 WHERE state = 'sent'")
        return interrupted

    # -- without an arrow

    def announce_dot(self, seq: int, sha256: str) -> None:
        """The final dot of a document that is being sent is about to go out, behind bytes of this digest."""
        self._update(seq, State.SENDING, {"dotted": 1, "sha256": sha256})

    def enter_digest(self, seq: int, sha256: str) -> None:
        """The bytes of a document that is being sent have this digest."""
        self._update(seq, State.SENDING, {"sha256": sha256})

    def put_off(self, seq: int, due_at: float, reason: str | None = None) -> None:
        """A queued document is not due before then."""
        self._update(seq, State.QUEUED, {"due_at": due_at} if reason is None else {"due_at": due_at, "reason": reason})

    def put_off_marker(self, document: Document, due_at: float) -> None:
        """The marker of a document is to be written, or moved, then."""
        self._update(document.seq, document.state, {"marker_due": due_at})

    def settle_marker(self, document: Document, marker: bytes) -> None:
        """The marker of a document is at this path, and nothing is to be done about it."""
        self._update(document.seq, document.state, {"marker": marker, "marker_due": None})

    def repath(self, seq: int, path: bytes, marker_due: float | None) -> None:
        """The document was renamed, in any state. A marker that exists follows at `marker_due`."""
        self._sql.execute(
            "UPDATE documents SET path = ?,"
            " marker_due = CASE WHEN marker <> x'' THEN ? ELSE marker_due END WHERE seq = ?",
            (path, marker_due, seq),
        )

    def attempt(self, seq: int, at: float, outcome: str, reply: str) -> None:
        """Record an attempt; 0 is the number of a mail that carries no document."""
        self._sql.execute("INSERT INTO attempts VALUES (?, ?, ?, ?)", (seq, at, outcome, reply))

    # -- the rows

    def _enter(self, state: State, new: NewDocument, columns: Columns) -> int:
        row: dict[str, object] = {
            "state": state.value,
            "id": new.id,
            "client": new.client,
            "ged": new.ged,
            "path": new.path,
            "collection_email": new.collection_email,
            "message_id": new.message_id,
            "date": new.date,
            "deposited_at": new.deposited_at,
        }
        row |= {**_stamped(new.stamp), **columns}
        sql = f"INSERT INTO documents ({', '.join(row)}) VALUES ({_marks(row)})"  # noqa: S608 - names of columns
        cursor = self._sql.execute(sql, tuple(row.values()))
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def _move(
        self, seq: int, old: State, new: State, columns: Columns, attempt: Attempt | None = None, more: str = ""
    ) -> None:
        """One arrow. An attempt is recorded and counted with it."""
        if (old, new) not in TRANSITIONS:
            raise StateConflict(f"there is no way from {old} to {new}")
        if attempt is not None:
            self.attempt(seq, *attempt)
            more += _COUNTED
        self._update(seq, old, {**columns, "state": new.value}, more)

    def _update(self, seq: int, state: State, columns: Columns, more: str = "") -> None:
        sets = ", ".join(f"{name} = ?" for name in columns) + more
        sql = f"UPDATE documents SET {sets} WHERE seq = ? AND state = ?"  # noqa: S608 - names of columns
        if self._sql.execute(sql, (*columns.values(), seq, state.value)).rowcount != 1:
            raise StateConflict(f"document {seq} is no longer {state}")


def _adopted(proof: Proof, at: float) -> dict[str, object]:
    return {
        "reason": ADOPTED,
        "validated_at": at,
        "sha256": proof.sha256,
        "message_id": proof.message_id,
        "relay_reply": proof.relay_reply,
        "attempts": proof.attempts,
    }


def _stamped(stamp: Stamp) -> dict[str, int]:
    return {"inode": stamp.inode, "size": stamp.size, "mtime_ns": stamp.mtime_ns, "ctime_ns": stamp.ctime_ns}


def _marks(values: Collection[object]) -> str:
    return ", ".join("?" * len(values))


def _not_in(values: Collection[object], column: str = "ged") -> str:
    return f"{column} NOT IN ({_marks(values)})"
