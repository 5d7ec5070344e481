"""The one alert of a start whose configuration is refused."""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, get_args

from pydantic import ValidationError

from bridged.alerts import letters
from bridged.alerts.events import Kind, Raised
from bridged.alerts.ledger import Condition
from bridged.alerts.post import Deliver, Post, composed, words_of
from bridged.config import as_written, read
from bridged.config.settings import Alerts, Smtp
from bridged.logs import say
from bridged.relay.outcome import Accepted

REFUSED_WITHIN: Final = 20.0  # seconds for the one alert of a start that is refused
_LARGEST: Final = 1_000_000  # bytes that are read of a refused configuration


def refused_at_start(
    path: Path, problems: Sequence[str], now: float, deliver: Deliver | None = None, within: float = REFUSED_WITHIN
) -> None:
    """Mail the firm that its configuration was refused, when the file says to whom and by which relay. Never raises.

    Ends within `within` seconds. A failure is logged as `state_failed`.
    """
    post = Post()
    failures: list[str] = []

    def attempt() -> None:
        try:
            failures.extend(_refusal_failures(path, problems, now, within, deliver or post))
        except Exception as error:  # noqa: BLE001 - logged; the caller still has to tell the refusal
            failures.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=attempt, name="refused", daemon=True)
    thread.start()
    thread.join(within)
    why = f"not within {within:g} s" if thread.is_alive() else next(iter(failures), "")
    post.abort()
    if why:
        say("state_failed", half="alerts", level="warning", reason=f"the alert about it cannot be sent: {why}")


def _refusal_failures(
    path: Path, problems: Sequence[str], now: float, within: float, deliver: Deliver
) -> Iterator[str]:
    """Send it. Yields the relay's words for each address that did not accept."""
    with path.open("rb") as file:
        text = file.read(_LARGEST).decode("utf-8-sig", "replace")
    found = salvaged(text)
    if found is None:
        if _wants_alerts(text):
            yield "alerts.to, or the relay for them, is not good by itself"
        return
    wanted, smtp = found
    smtp = smtp.model_copy(update={"timeout": min(smtp.timeout, within)})
    conditions = [Condition(Raised(Kind.CONFIGURATION, why=problem), now, 0.0) for problem in problems]
    letter = letters.alert(conditions, wanted.language)
    mail = composed(letter, smtp, wanted.to, f"alert-{uuid.uuid4().hex}", now)
    for outcome in deliver(smtp, wanted.to, mail).values():
        if not isinstance(outcome, Accepted):
            yield words_of(outcome)


def salvaged(text: str) -> tuple[Alerts, Smtp] | None:
    """The addresses and the relay for the alert of a refused configuration. None unless both are good by themselves.

    Other mistakes in `alerts` do not matter. An unknown language counts as English.
    """
    written = _outermost(text)
    given = written.get("alerts") or _block(text, "alerts")
    if not isinstance(given, dict):
        return None
    kept = {key: given[key] for key in ("to", "language", "smtp") if key in given}
    if kept.get("language") not in get_args(letters.Language):
        kept.pop("language", None)
    try:
        wanted = Alerts.model_validate(kept)
        smtp = wanted.smtp or Smtp.model_validate(written.get("smtp") or _block(text, "smtp"))
    except ValidationError:
        return None
    collecting = {found.casefold() for found in _COLLECTION_EMAIL.findall(text)}
    people = tuple(address for address in wanted.to if address.casefold() not in collecting)
    return (wanted.model_copy(update={"to": people}), smtp) if people else None


_COLLECTION_EMAIL: Final = re.compile(r"""collection_email["']?:\s*["']?([^\s"',}]+)""")


def _wants_alerts(text: str) -> bool:
    """Whether the file has an `alerts` section, be it well written or not."""
    written = _outermost(text)
    return bool(written.get("alerts")) if written else re.search(r"^alerts:", text, re.MULTILINE) is not None


def _outermost(text: str) -> dict[str, Any]:
    lines = read(text, "")
    if not isinstance(lines.value, dict):
        return {}
    as_written(lines)
    return lines.value


def _block(text: str, key: str) -> Any:
    """The value of an outermost key, read from its own lines, where a slip elsewhere breaks the YAML."""
    found = re.search(rf"^{key}:.*\n(?:(?:[ \t#-].*)?\n)*", text + "\n", re.MULTILINE)
    return _outermost(found[0]).get(key) if found else None
