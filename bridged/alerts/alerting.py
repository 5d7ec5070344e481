"""Alerts and digests on their way to the firm: gathered from the log, mailed, tried again, kept over a restart.

No alert stops a document. Alerts have a loop of their own. A failure is logged once, and the mail is tried again.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, tzinfo
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import Any, Final

from bridged.alerts import events, letters
from bridged.alerts.digest import LATE, LOOK_BACK, Digest, digest_due, silences
from bridged.alerts.events import Ended, Raised
from bridged.alerts.ledger import Ledger
from bridged.alerts.letters import Letter
from bridged.alerts.post import Deliver, Post, composed, is_login, words_of
from bridged.config.settings import Alerts, Settings, Smtp
from bridged.journal import Journal, JournalError, Transaction
from bridged.logs import say
from bridged.model import Instant
from bridged.relay import Outbox, Outgoing
from bridged.relay.outcome import Accepted, Outcome, is_relays

KEPT: Final = "alerts"  # the journal's key of the memory that outlives a restart
STEP: Final = 1.0  # seconds between two looks
AGAIN: Final = (60.0, 300.0, 900.0, 3600.0)  # seconds from each failed try of a mail to the next; the last one repeats
SIGNED_IN_AGAIN: Final = 2  # the place in AGAIN after a refused login, because many of them lock the account
HALTED: Final = 3600.0  # seconds between two tries by a relay that is in trouble
FRESH: Final = 3 * STEP  # seconds after which a mail says that it is delayed
WORTH: Final = 3 * 86400.0  # seconds after which an alert that could not leave is given up
MOST: Final = 30  # mails that are kept; the oldest is given up


@dataclass(frozen=True, slots=True)
class Mailing:
    """A letter with the addresses that have not got it yet. `written`: wall clock. `due`: steady clock."""

    id: str
    letter: Letter
    written: float
    left: tuple[str, ...]
    tries: int = 0
    due: float = float("-inf")
    digest: bool = False


class Alerting:
    """Writes alerts and digests, and sees them through. `hear`, `configure` and `abort` may be called by any thread."""

    def __init__(
        self,
        journal: Journal,
        settings: Settings,
        outbox: Outbox | None = None,
        deliver: Deliver | None = None,
        zone: tzinfo | None = None,
    ) -> None:
        """`outbox` takes the mails for the relay of the documents. Without one, `deliver` sends all mails.

        `deliver` None opens a session for each letter. `zone` None is the machine's time zone.
        """
        self._journal = journal
        self._settings = settings
        self._outbox = outbox
        self._wanted: Settings | None = None
        self._post = Post()
        self._deliver: Deliver = deliver or self._post
        self._zone = zone
        self._heard: SimpleQueue[tuple[str, tuple[Raised | Ended, ...]]] = SimpleQueue()
        self._try_at: float | None = None  # steady clock: the next try by a relay in trouble
        self._told = ""  # the reason in the last `state_failed` about alerts; empty once one has left
        self._ledger, self._mailings, self._digest_at, self._troubled = self._remembered()
        self._only_remembered = self._troubled  # true while only an earlier run knows of the trouble
        self._kept = self._memory()

    def hear(self, event: str, fields: Mapping[str, Any]) -> None:
        """Take a log line, from any thread. Returns at once, because the thread that logs must not wait."""
        news = events.read(event, fields)
        if news or event in _RELAY_WELL:
            self._heard.put((event, news))

    def configure(self, settings: Settings) -> None:
        """Put a configuration in force with the next step, from any thread."""
        self._wanted = settings

    def abort(self) -> None:
        """Break the mail in transit, from any thread, for the stop. The next start sends it again."""
        self._post.abort()

    def close(self, now: Instant) -> None:
        """Keep the last outcomes, after the last step. Otherwise the next start would send those mails again."""
        self._collect(now)
        if self._settings.alerts is not None:
            self._guarded(self._remember)

    def step(self, now: Instant) -> float:
        """Hear, write, mail, remember. Returns the seconds until the next step. Raises for no mail or disk."""
        self._collect(now)
        self._reconfigured()
        self._listen(now)
        wanted = self._settings.alerts
        if wanted is not None:
            self._write_alerts(wanted, now)
            self._mail(wanted, now)
            self._guarded(lambda: self._write_digest(wanted, now))
            self._guarded(self._remember)
        return STEP

    # -- hearing

    def _reconfigured(self) -> None:
        if self._wanted is not None:
            self._settings, self._wanted = self._wanted, None
            if self._outbox is not None:
                self._outbox.offer(())
            self._ledger.keep_clients(client.name for client in self._settings.clients)
            self._mailings = [replace(mailing, due=float("-inf")) for mailing in self._mailings]
            self._try_at = float("-inf")

    def _listen(self, now: Instant) -> None:
        if self._try_at is None:  # otherwise a daemon that starts again and again would try at each start
            self._try_at = now.steady + HALTED
        try:
            while True:
                event, news = self._heard.get_nowait()
                self._relay_is(_RELAY_WELL.get(event), now)
                if event == "document_sent" and self._only_remembered:  # another relay has no `relay_recovered`
                    self._relay_is(True, now)
                for one in news:
                    self._ledger.take(one, now)
        except Empty:
            return

    def _relay_is(self, well: bool | None, now: Instant) -> None:
        """Take the log's word for the relay of the documents. None: this line says nothing of it."""
        if well is None:
            return
        if well:
            self._mailings = [replace(mailing, due=now.steady) for mailing in self._mailings]
        elif not self._troubled:
            self._try_at = now.steady + HALTED
        self._troubled, self._only_remembered = not well, False

    # -- writing

    def _write_alerts(self, wanted: Alerts, now: Instant) -> None:
        for conditions in self._ledger.due(now):
            self._add(letters.alert(conditions, wanted.language, self._zone), wanted, now)

    def _write_digest(self, wanted: Alerts, now: Instant) -> None:
        """Write the digest that is due. The first start ever tells of no day. A last digest in the future is now."""
        if self._digest_at is None or self._digest_at > now.wall:
            self._digest_at = now.wall
        last = self._digest_at
        if wanted.digest is None or not digest_due(wanted.digest, last, now.wall, self._zone):
            return
        found = self._found(last, now.wall)
        self._digest_at = now.wall
        if found:
            # A new digest replaces an older one that could not leave.
            self._mailings = [mailing for mailing in self._mailings if not mailing.digest]
            self._add(letters.digest(found, wanted.language, self._zone), wanted, now, digest=True)

    def _found(self, last: float, now: float) -> Digest:
        since = now - timedelta(days=LOOK_BACK).total_seconds()
        held, late, missed, days = self._journal.read(
            lambda tx: (tx.held(), tx.late(now - LATE), tx.missed_since(last), tx.active_days(since))
        )
        names = [client.name for client in self._settings.clients]
        yesterday, today = (datetime.fromtimestamp(at, self._zone).date() for at in (last, now))
        silent = silences(days, names, yesterday, today)
        return Digest(tuple(held), tuple(late), tuple(missed), silent)

    def _add(self, letter: Letter, wanted: Alerts, now: Instant, *, digest: bool = False) -> None:
        mailing = Mailing(f"alert-{uuid.uuid4().hex}", letter, now.wall, tuple(wanted.to), digest=digest)
        self._mailings.append(mailing)
        if len(self._mailings) > MOST:
            self._tell(f"{len(self._mailings)} alerts could not be sent; the oldest is given up")
            self._mailings = self._mailings[-MOST:]

    # -- mailing

    def _mail(self, wanted: Alerts, now: Instant) -> None:
        """Offer the due mails to the documents' sessions. With a relay of the alerts' own, send them here."""
        still = [(one, tuple(address for address in one.left if address in wanted.to)) for one in self._mailings]
        self._mailings = [replace(mailing, left=left) for mailing, left in still if left]
        if wanted.smtp is None and self._outbox is not None:
            self._outbox.offer(list(self._due(wanted, now)))
            return
        for letter, mails in groupby(self._due(wanted, now), lambda mail: mail.letter):
            outcomes = self._delivered(list(mails))
            self._conclude(letter, outcomes, now)
            if any(map(is_relays, outcomes.values())):
                return

    def _due(self, wanted: Alerts, now: Instant) -> Iterator[Outgoing]:
        """The due mails, one for each address. Of one letter only while the documents' relay is in trouble."""
        for mailing in list(self._mailings):
            if mailing.due > now.steady or not self._may_try(wanted, now):
                continue
            smtp = wanted.smtp or self._settings.smtp
            try:
                data = self._composed(mailing, smtp, wanted, now)
            except Exception as error:  # noqa: BLE001 - logged, and tried again
                self._conclude(mailing.id, dict.fromkeys(mailing.left, error), now)
                continue
            yield from (Outgoing(mailing.id, smtp, address, data) for address in mailing.left)
            if self._troubled and wanted.smtp is None:
                return

    def _composed(self, mailing: Mailing, smtp: Smtp, wanted: Alerts, now: Instant) -> bytes:
        letter = mailing.letter
        if mailing.tries or now.wall - mailing.written > FRESH:
            letter = letters.late(letter, mailing.written, wanted.language, self._zone)
        return composed(letter, smtp, wanted.to, mailing.id, now.wall)

    def _may_try(self, wanted: Alerts, now: Instant) -> bool:
        """Not by the documents' relay while it is in trouble, because each try may be one more failed login."""
        return wanted.smtp is not None or not self._troubled or self._try_at is None or now.steady >= self._try_at

    def _delivered(self, mails: Sequence[Outgoing]) -> Mapping[str, Outcome | Exception]:
        try:
            return self._deliver(mails[0].smtp, [mail.to for mail in mails], mails[0].data)
        except Exception as error:  # noqa: BLE001 - logged, and tried again
            return {mail.to: error for mail in mails}

    def _collect(self, now: Instant) -> None:
        """Take the outcomes out of the outbox."""
        if self._outbox is None:
            return
        concluded = self._outbox.collect()
        accepted = sum(isinstance(outcome, Accepted) for _, outcome in concluded)
        if accepted:
            self._guarded(lambda: self._journal.write(lambda tx: _enter(tx, accepted, now)))
        for letter in dict.fromkeys(one.letter for one, _ in concluded):
            self._conclude(letter, {one.to: outcome for one, outcome in concluded if one.letter == letter}, now)

    def _conclude(self, letter: str, outcomes: Mapping[str, Outcome | Exception], now: Instant) -> None:
        """Apply outcomes to a letter's mailing, by address. A missing address was not tried."""
        if self._troubled:
            self._try_at = now.steady + HALTED
        self._mailings = [
            rest
            for mailing in self._mailings
            for rest in ([mailing] if mailing.id != letter else self._rest(mailing, outcomes, now))
        ]
        if any(map(is_relays, outcomes.values())):
            self._put_off(now)

    def _rest(self, mailing: Mailing, outcomes: Mapping[str, Outcome | Exception], now: Instant) -> Iterator[Mailing]:
        """The mailing with the addresses that are left. None of it when no address is left, or when it is too old."""
        left = tuple(address for address in mailing.left if not isinstance(outcomes.get(address), Accepted))
        failed = [outcomes[address] for address in left if address in outcomes]
        rest = replace(mailing, left=left)
        if failed:
            self._tell(words_of(failed[0]))
            tries = max(mailing.tries, SIGNED_IN_AGAIN) if any(map(is_login, failed)) else mailing.tries
            rest = self._again(rest, now, tries)
        if not left:
            self._told = ""
        elif now.wall - mailing.written < WORTH:
            yield rest

    def _again(self, mailing: Mailing, now: Instant, tries: int) -> Mailing:
        return replace(mailing, tries=tries + 1, due=now.steady + AGAIN[min(tries, len(AGAIN) - 1)])

    def _put_off(self, now: Instant) -> None:
        """Put the other mails off as well, because one mail has met the relay's trouble."""
        soonest = max((mailing.due for mailing in self._mailings if mailing.tries), default=now.steady)
        self._mailings = [replace(mailing, due=max(mailing.due, soonest)) for mailing in self._mailings]

    # -- over a restart

    def _memory(self) -> str:
        mailings = [
            {"id": m.id, "letter": asdict(m.letter), "written": m.written, "left": m.left, "digest": m.digest}
            for m in self._mailings
        ]
        memory = {
            "ledger": self._ledger.memory(),
            "mailings": mailings,
            "digest_at": self._digest_at,
            "troubled": self._troubled,
        }
        return json.dumps(memory, ensure_ascii=False)

    def _remember(self) -> None:
        memory = self._memory()
        if memory != self._kept:
            self._journal.write(lambda tx: tx.keep(KEPT, memory))
            self._kept = memory

    def _remembered(self) -> tuple[Ledger, list[Mailing], float | None, bool]:
        """The memory of an earlier run. Where it cannot be read, alerts are told once more."""
        try:
            memory = json.loads(self._journal.read(lambda tx: tx.kept(KEPT)) or "null")
            if memory is None:
                return Ledger(), [], None, False
            mailings = [
                Mailing(
                    str(row["id"]),
                    Letter(**row["letter"]),
                    float(row["written"]),
                    tuple(map(str, row["left"])),
                    digest=bool(row["digest"]),
                )
                for row in memory["mailings"]
            ]
            at = memory["digest_at"]
            return Ledger(memory["ledger"]), mailings, None if at is None else float(at), bool(memory["troubled"])
        except (JournalError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._tell(f"what earlier alerts were told cannot be read: {type(error).__name__}: {error}")
            return Ledger(), [], None, False

    # -- failures of the alerts themselves

    def _guarded(self, part: Callable[[], None]) -> None:
        """Log a failure of the state directory, and go on, because that failure is itself an alert."""
        try:
            part()
        except (JournalError, OSError) as error:
            self._tell(f"{type(error).__name__}: {error}")

    def _tell(self, why: str) -> None:
        """Log the reason, once until a mail leaves. `hear` ignores lines of half `alerts`: no alert makes another."""
        if not self._told:
            say("state_failed", half="alerts", level="warning", reason=f"an alert cannot be sent or kept: {why}")
        self._told = why


def _enter(tx: Transaction, accepted: int, now: Instant) -> None:
    """Note accepted mails, because the daily quota counts them after a restart, too."""
    for _ in range(accepted):
        tx.attempt(0, now.wall, "accepted", "an alert")


# Events of the documents' relay, and whether it is well with them.
_RELAY_WELL: Final[dict[str, bool]] = {
    "relay_misconfigured": False,
    "relay_unreachable": False,
    "relay_throttled": False,
    "relay_recovered": True,
}
