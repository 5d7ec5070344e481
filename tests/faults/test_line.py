"""The line to the relay breaks, stalls, refuses and talks nonsense: every document leaves once, none is lost."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import relay as scripted
from tests.support.bridge import until
from tests.support.line import SECRET, LineBridge, RawRelay, dribble, line_bridge, stays, with_login
from tests.support.relay import Cut, CutAfter, Say, ScriptedRelay, Stall

PHASES = ["CONNECT", "EHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "UPLOAD"]
BODY = b"the bytes of a document\n" * 4000
# More than the buffers of the kernel hold: a stalled upload must not have handed over its dot already.
LARGE = b"the bytes of a larger document\n" * 300_000


@pytest.fixture
def bridge(tmp_path: Path) -> Iterator[LineBridge]:
    """A bridge with a relay that has STARTTLS and a login."""
    with with_login(receive_buffer=8192) as relay, line_bridge(tmp_path, relay) as bridge:
        yield bridge


@pytest.fixture
def plain(tmp_path: Path, relay: ScriptedRelay) -> Iterator[LineBridge]:
    """A bridge with a relay that has neither."""
    with line_bridge(tmp_path, relay) as bridge:
        yield bridge


def mails_of(bridge: LineBridge, name: str) -> list[bytes]:
    return [mail.data for mail in bridge.relay.mails if f'filename="{name}"'.encode() in mail.data]


def nothing_counted(bridge: LineBridge, *names: str) -> None:
    """The relay's fault is no document's: no deferral, no hold, one attempt each, the accepted one."""
    assert bridge.count("document_deferred") == bridge.count("document_held") == 0
    attempts = {row["document"].rpartition("/")[2]: row["attempts"] for row in bridge.rows()}
    assert {name: attempts[name] for name in names} == dict.fromkeys(names, 1)


# -- each phase


@pytest.mark.promise("cut-UPLOAD")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", ["cut", "stalled"])
def test_a_line_lost_before_the_dot_counts_nothing_and_everything_waits(
    bridge: LineBridge, phase: str, fault: str
) -> None:
    """One `relay_unreachable`, one `relay_recovered` however many documents wait, and each leaves once."""
    after = 1 if phase == "UPLOAD" else 0
    action = Cut(after=after) if fault == "cut" else Stall(after=after)
    bridge.smtp = "timeout: 20s" if fault == "cut" else "timeout: 2s"  # otherwise a busy machine is a silent relay
    bridge.start()
    bridge.relay.always(phase, action)
    names, body = ["a.txt", "b.txt", "c.txt"], LARGE if phase == "UPLOAD" else BODY
    for name in names:
        (bridge.inbox / name).write_bytes(body)
    bridge.wait_for("relay_unreachable")
    bridge.wait_for("document_queued", 3)
    before = bridge.relay.sessions
    until(lambda: bridge.relay.sessions > before + 1, "it is probed again by itself")
    assert {row["state"] for row in bridge.rows()} <= {"queued", "sending"}
    assert not bridge.relay.mails
    bridge.relay.always(phase)
    bridge.expect(*names)
    assert (bridge.count("relay_unreachable"), bridge.count("relay_recovered")) == (1, 1)
    nothing_counted(bridge, *names)
    assert {content for name, content in bridge.arrived() if name in names} == {body}


REFUSALS = {
    "CONNECT": ("421 4.3.0 busy", "relay_unreachable", "554 5.0.0 no service here", "relay_unreachable"),
    "EHLO": ("450 4.3.2 later", "relay_unreachable", "550 5.0.0 no", "relay_unreachable"),
    "STARTTLS": ("454 4.7.0 TLS not available", "relay_unreachable", "554 5.5.1 no TLS", "relay_misconfigured"),
    "AUTH": ("454 4.3.0 later", "relay_unreachable", "535 5.7.8 no", "relay_misconfigured"),
    "MAIL": ("451 4.3.0 later", "document_deferred", "553 5.7.1 sender not owned", "relay_misconfigured"),
    "RCPT": ("450 4.2.0 later", "document_deferred", "550 5.1.1 nobody here", "document_held"),
    "DATA": ("451 4.3.0 later", "document_deferred", "554 5.6.0 no", "document_held"),
    "UPLOAD": ("451 4.3.0 later", "document_deferred", "552 5.3.4 too big", "document_held"),
    "DOT": ("451 4.3.0 later", "document_deferred", "554 5.6.0 content refused", "document_held"),
}


@pytest.mark.parametrize("fault", ["4yz", "5yz"])
@pytest.mark.parametrize("phase", REFUSALS)
def test_a_refusal_in_each_phase_has_the_reaction_of_the_contract(bridge: LineBridge, phase: str, fault: str) -> None:
    """Deferred, held, unreachable or misconfigured, in the relay's words; well again, each leaves once."""
    reply, event = REFUSALS[phase][:2] if fault == "4yz" else REFUSALS[phase][2:]
    bridge.start()
    bridge.relay.always(phase, Say(reply, after=1, then="cut") if phase == "UPLOAD" else Say(reply))
    names = ["a.txt", "b.txt"]
    for name in names:
        (bridge.inbox / name).write_bytes(LARGE if phase == "UPLOAD" else BODY)
    about_documents = event.startswith("document_")
    bridge.wait_for("document_queued", 2)
    lines = bridge.wait_for(event, 2 if about_documents else 1)
    assert all(line["reason"].startswith(reply[:9]) for line in lines), lines
    expected = {"document_held": {"held"}}.get(event, {"queued", "sending"})
    assert {row["state"] for row in bridge.rows()} <= expected
    bridge.relay.always(phase)
    if event == "document_held":
        assert bridge.run("release", "--all").returncode == 0
    elif event == "relay_misconfigured" or phase == "AUTH":  # a sign-in that must wait is tried after a minute only
        assert bridge.run("reload").returncode == 0
    bridge.expect(*names)
    if about_documents:
        assert bridge.count("relay_unreachable") == bridge.count("relay_misconfigured") == 0
    else:
        assert (bridge.count(event), bridge.count("relay_recovered")) == (1, 1)
        nothing_counted(bridge, *names)


@pytest.mark.parametrize(
    "action", [Cut(), Stall(), Say("451 4.3.0 later"), Say("502 5.5.1 what?")], ids=["cut", "stalled", "4yz", "5yz"]
)
def test_a_reset_that_fails_only_means_a_new_session(bridge: LineBridge, action: scripted.Action) -> None:
    """A kept session that goes bad before a mail counts against no document."""
    bridge.start()
    bridge.relay.always("RSET", action)
    names = [f"{i}.txt" for i in range(4)]
    for count, name in enumerate(names, 1):
        (bridge.inbox / name).write_bytes(BODY)
        bridge.wait_for("document_validated", count)
    bridge.expect(*names)
    assert bridge.relay.sessions >= 2
    assert bridge.count("relay_unreachable") == 0
    nothing_counted(bridge, *names)


@pytest.mark.parametrize(
    "action", [Cut(), Stall(), Say("451 4.3.0 later"), Say("554 5.5.1 stay")], ids=["cut", "stalled", "4yz", "5yz"]
)
def test_a_goodbye_that_fails_neither_delays_the_stop_nor_sends_again(
    bridge: LineBridge, action: scripted.Action
) -> None:
    """QUIT is a courtesy: exit 0 within ten seconds, and nothing in arrears at the next start."""
    bridge.start()
    bridge.relay.always("QUIT", action)
    (bridge.inbox / "a.txt").write_bytes(BODY)
    bridge.wait_for("document_validated")
    began = time.monotonic()
    assert bridge.stop() == 0
    assert time.monotonic() - began < 10
    assert any(command == "QUIT" for _, command in bridge.relay.commands)
    bridge.start()
    bridge.expect("a.txt")


# -- the final dot


@pytest.mark.promise("cut0")
@pytest.mark.parametrize("cut", [Cut(keep=True), Cut(keep=True, reset=True), Cut(raw=b"25", keep=True)])
def test_a_lost_reply_to_the_dot_is_tried_so_often_and_then_held(plain: LineBridge, cut: Cut) -> None:
    """Each time the same Message-ID and the very same bytes; two more tries, then a person decides."""
    plain.extra = ""
    plain.relay.always("DOT", cut)
    config = plain.text
    plain.text = lambda: config().replace("max: 1s", "max: 1s, uncertain_attempts: 2")  # type: ignore[method-assign]
    plain.start()
    (plain.inbox / "a.txt").write_bytes(BODY)
    plain.wait_for("document_held")
    mails = mails_of(plain, "a.txt")
    assert len(mails) == 3
    assert len(set(mails)) == 1
    assert [line["message_id"] for line in plain.lines("document_deferred") if line["uncertain"]] == [
        plain.row("a.txt")["message_id"]
    ] * 2
    stays(lambda: len(mails_of(plain, "a.txt")), 3, during=2.5)
    plain.relay.always("DOT")
    assert plain.run("release", "--all").returncode == 0
    plain.wait_for("document_validated")
    assert len(set(mails_of(plain, "a.txt"))) == 1
    assert plain.row("a.txt")["state"] == "validated"


def test_a_relay_that_is_slow_after_the_dot_is_waited_for_beyond_the_timeout(plain: LineBridge) -> None:
    """Giving up after smtp.timeout would make a duplicate of a mail that the relay has."""
    plain.relay.script("DOT", Stall(keep=True))
    plain.start()
    (plain.inbox / "a.txt").write_bytes(BODY)
    until(lambda: plain.relay.stalled, "the relay has read the dot")
    stays(lambda: (len(plain.relay.mails), plain.count("document_deferred")), (1, 0), during=3.0)
    assert plain.row("a.txt")["state"] == "sending"
    plain.relay.go_on()  # it closes without an answer
    plain.wait_for("document_validated")
    mails = mails_of(plain, "a.txt")
    assert len(mails) == 2
    assert len(set(mails)) == 1
    assert [line["uncertain"] for line in plain.lines("document_deferred")] == [True]


# -- a long absence of the relay


def deposit(bridge: LineBridge, count: int) -> None:
    for number in range(count):
        directory = bridge.inbox / ("mars" if number % 3 == 0 else "")
        directory.mkdir(exist_ok=True)
        (directory / f"{number:02}.txt").write_text(f"document {number}")


def rearrange(bridge: LineBridge) -> tuple[dict[str, str], set[str]]:
    """The changes of a month: name -> bytes that are to leave, and the names withdrawn before they were sent."""
    inbox, notes, march = bridge.inbox, bridge.ged / "Notes", bridge.inbox / "mars"
    stay = {f"{n:02}.txt": f"document {n}" for n in range(30)}
    os.rename(inbox / "01.txt", inbox / "renamed é.txt")
    os.rename(inbox / "02.txt", notes / "02.txt")
    os.rename(march / "03.txt", notes / "moved and renamed.txt")
    os.rename(inbox / "04.txt", bridge.outside / "04.txt")
    os.rename(inbox / "05.txt", bridge.ged / "Brouillons" / "05.txt")
    (march / "06.txt").unlink()
    (inbox / "07.txt").write_text("overwritten in place, longer")
    (bridge.outside / "new").write_text("replaced by a rename")
    os.rename(bridge.outside / "new", inbox / "08.txt")
    os.rename(march, inbox / "mars 2026")
    os.rename(inbox / "mars 2026" / "09.txt", inbox / "09.txt")
    shutil.move(inbox / "10.txt", inbox / "mars 2026" / "10.txt")
    stay["renamed é.txt"] = stay.pop("01.txt")
    stay["moved and renamed.txt"] = stay.pop("03.txt")
    stay["07.txt"], stay["08.txt"] = "overwritten in place, longer", "replaced by a rename"
    gone = {"Achats/04.txt", "Achats/05.txt", "Achats/mars/06.txt"}
    for path in gone:
        stay.pop(path.rpartition("/")[2])
    return stay, gone


@pytest.mark.promise("running")
@pytest.mark.parametrize("when", ["running", "killed", "stopped while it happens"])
@pytest.mark.timeout(180)
def test_a_queue_rearranged_while_the_relay_is_away_leaves_as_it_is_at_the_end(plain: LineBridge, when: str) -> None:
    """Each remaining document once, under its final name, with its final bytes; the rest withdrawn, one warning."""
    plain.relay.stop_listening()
    plain.start()
    deposit(plain, 30)
    plain.wait_for("document_queued", 30)
    if when == "stopped while it happens":
        plain.stop()
    stay, gone = rearrange(plain)
    if when == "running":
        until(lambda: plain.count("document_withdrawn") == 3, "three withdrawn")
    else:
        plain.stop(9)
        plain.start()
    plain.relay.listen_again()
    until(lambda: len(plain.relay.mails) >= len(stay), "all sent")
    plain.expect(*stay)
    assert {name: content.decode() for name, content in plain.arrived() if name in stay} == stay
    until(lambda: plain.count("document_withdrawn") >= 3, "the gone ones are withdrawn")
    assert Counter(line["document"] for line in plain.lines("document_withdrawn")) == Counter(gone)
    assert {line["level"] for line in plain.lines("document_withdrawn")} == {"warning"}
    final = {row["document"].rpartition("/")[2]: row["state"] for row in plain.rows()}
    assert {name for name, state in final.items() if state == "validated" and not name.startswith("probe")} == set(stay)
    markers = {p.name for p in plain.ged.rglob("*.validated.json") if not p.name.startswith("probe")}
    assert markers == {f"{name}.validated.json" for name in stay}


@pytest.mark.parametrize("restart", [False, True])
def test_a_folder_switched_off_while_the_relay_is_away_sends_nothing_of_it(plain: LineBridge, restart: bool) -> None:
    """Its queued documents are withdrawn with one warning each, those of the other folder leave."""
    plain.relay.stop_listening()
    plain.start()
    for name in ("Achats/a.txt", "Achats/b.txt", "Notes/c.txt", "Notes/d.txt"):
        (plain.ged / name).write_text(name)
    plain.wait_for("document_queued", 4)
    plain.folders = "[Achats]"
    if restart:
        plain.stop(9)
        plain.start()
    else:
        plain.config.write_text(plain.text())
        assert plain.run("reload").returncode == 0
    plain.relay.listen_again()
    plain.expect("a.txt", "b.txt")
    withdrawn = plain.lines("document_withdrawn")
    assert sorted((w["document"], w["reason"]) for w in withdrawn) == [
        ("Notes/c.txt", "switched_off"),
        ("Notes/d.txt", "switched_off"),
    ]
    assert not list((plain.ged / "Notes").glob("*.json"))


# -- a relay that talks nonsense


class Dribbling(scripted._Session):
    """Says everything byte by byte."""

    def say(self, reply: str) -> None:
        for byte in reply.encode() + b"\r\n":
            self.sock.sendall(bytes([byte]))
            time.sleep(0.001)


def test_a_relay_that_answers_byte_by_byte_is_only_slow(plain: LineBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer within the time-out, in a hundred pieces."""
    monkeypatch.setattr(scripted, "_Session", Dribbling)
    plain.start()
    names = [f"{i}.txt" for i in range(5)]
    for name in names:
        (plain.inbox / name).write_bytes(BODY)
    plain.expect(*names)
    assert plain.count("relay_unreachable") == 0
    nothing_counted(plain, *names)


@dataclass(frozen=True)
class Babble:
    """A reply that never ends, and the proper replies before it."""

    piece: bytes
    greeting: bool = True


BABBLES = {
    "a greeting that never ends": Babble(b"x", greeting=False),
    "a greeting with ever more lines": Babble(b"220-still greeting\r\n", greeting=False),
    "an EHLO that never ends": Babble(b"x"),
    "an EHLO with ever more lines": Babble(b"250-X-ANOTHER\r\n"),
}


@pytest.mark.promise("an EHLO that never ends")
@pytest.mark.parametrize("babble", BABBLES.values(), ids=BABBLES)
def test_a_relay_that_never_ends_its_reply_is_unreachable_after_the_timeout(tmp_path: Path, babble: Babble) -> None:
    """It is never silent, so that a time-out per read never comes: the whole reply must have one."""

    def talk(channel, relay) -> None:
        if babble.greeting:
            channel.sendall(b"220 relay.example ESMTP\r\n")
            channel.recv(1000)
        dribble(channel, relay, babble.piece, every=0.1)

    with RawRelay(talk) as relay, line_bridge(tmp_path, relay) as bridge:
        bridge.start()
        (bridge.inbox / "a.txt").write_bytes(BODY)
        until(lambda: relay.sessions, "it connects")
        bridge.wait_for("relay_unreachable")
        assert bridge.row("a.txt")["state"] in ("queued", "sending")


GARBAGE = {
    "binary": bytes(range(1, 256)).replace(b"\n", b"").decode("latin-1"),
    "escapes": "550 5.1.1 \x1b[31m\x1b]0;owned\x07red \x9b2J\u202egnp \u2028 next\x00\x08\x7f",
    "overlong": "550 5.1.1 " + "long " * 20_000,
    "many lines": "\r\n".join(["550-5.1.1 \x1b[2Jline"] * 500) + "\r\n550 5.1.1 the end",
    "forged": '550 5.1.1 no\n{"event": "document_sent"}\n',
}
UNPRINTABLE = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.mark.promise("escapes-DOT")
@pytest.mark.parametrize("phase", ["CONNECT", "EHLO", "MAIL", "RCPT", "DOT"])
@pytest.mark.parametrize("garbage", GARBAGE.values(), ids=GARBAGE)
def test_nothing_that_a_relay_says_is_shown_but_as_printable_text(plain: LineBridge, phase: str, garbage: str) -> None:
    """Log lines, lists and answers: no control character, nothing long, and the document still leaves once."""
    plain.relay.script(phase, Say(garbage))
    plain.start()
    (plain.inbox / "a.txt").write_bytes(BODY)
    until(
        lambda: (
            any(plain.count(e) for e in ("relay_unreachable", "document_held", "document_deferred"))
            or plain.count("relay_misconfigured")
        ),
        "the relay's answer is told",
    )
    shown = [plain.log.read_text()]
    for command in (["documents"], ["documents", "--json"], ["status"], ["explain", plain.inbox / "a.txt"]):
        result = plain.run(*command)
        assert result.returncode == 0, result.stderr
        shown.append(result.stdout + result.stderr)
    assert not [UNPRINTABLE.search(text) for text in shown if UNPRINTABLE.search(text)]
    assert max(len(line) for line in plain.log.read_text().splitlines()) < 4096
    plain.run("reload")
    plain.run("release", "--all")
    plain.wait_for("document_validated")
    assert len(set(mails_of(plain, "a.txt"))) == 1
    assert not plain.lines("document_sent")[1:]


def test_an_acceptance_full_of_escapes_is_printable_in_the_marker_and_everywhere(plain: LineBridge) -> None:
    """The relay's words stand in the marker, the log, and the lists."""
    plain.relay.script("DOT", Say("250 2.0.0 \x1b[31mOk\x07: \x9b2J\u202equeued\r"))
    plain.start()
    (plain.inbox / "a.txt").write_bytes(BODY)
    plain.expect("a.txt")
    marker = (plain.inbox / "a.txt.validated.json").read_text()
    assert not UNPRINTABLE.search(marker)
    assert json.loads(marker)["relay_reply"].isprintable()
    assert not UNPRINTABLE.search(plain.log.read_text() + plain.run("documents", "--json").stdout)


@pytest.mark.parametrize("phase", ["AUTH", "MAIL", "RCPT", "DATA", "DOT"])
def test_a_password_that_the_relay_echoes_is_nowhere_to_be_read(bridge: LineBridge, phase: str) -> None:
    """As it is, in base64, and as the whole SASL answer: not in a log line, list, marker or the state directory."""
    forms = [SECRET, base64.b64encode(SECRET.encode()).decode(), base64.b64encode(f"\0us\0{SECRET}".encode()).decode()]
    code = {"AUTH": "535 5.7.8", "MAIL": "451 4.3.0", "RCPT": "550 5.1.1", "DATA": "451 4.3.0", "DOT": "250 2.0.0"}
    bridge.relay.script(phase, Say(f"{code[phase]} you said {' and '.join(forms)}"))
    bridge.start()
    (bridge.inbox / "a.txt").write_bytes(BODY)
    until(
        lambda: any("***" in str(line) for line in bridge.lines()),
        "the relay's words are told without the password",
    )
    shown = bridge.log.read_text()
    for command in (["documents"], ["documents", "--json"], ["status"], ["explain", bridge.inbox / "a.txt"]):
        shown += bridge.run(*command).stdout
    bridge.run("reload")
    bridge.run("release", "--all")
    bridge.expect("a.txt")
    shown += (bridge.inbox / "a.txt.validated.json").read_text() + bridge.log.read_text()
    kept = b"".join(p.read_bytes() for p in (bridge.base / "state").iterdir() if p.is_file())
    for form in forms:
        assert form not in shown
        assert form.encode() not in kept


# -- sessions


@pytest.mark.parametrize("killed", [False, True])
def test_three_sessions_cut_at_once_are_one_trouble(plain: LineBridge, killed: bool) -> None:
    """One `relay_unreachable`, not one a session; every document once."""
    plain.smtp = "timeout: 20s, connections: 3"
    plain.relay._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
    plain.start()
    plain.relay.script("UPLOAD", *[Stall(after=1)] * 3)
    names = [f"{i}.txt" for i in range(6)]
    for name in names:
        (plain.inbox / name).write_bytes(LARGE)
    until(lambda: plain.relay.stalled == 3, "three sessions upload at the same time")
    plain.relay.stop_listening()
    plain.relay.cut_all()
    plain.relay.go_on()
    plain.wait_for("relay_unreachable")
    if killed:
        plain.stop(9)
        plain.start()
    plain.relay.listen_again()
    plain.expect(*names)
    assert plain.relay.most_sessions == 3
    nothing_counted(plain, *names)
    assert plain.count("relay_unreachable") <= (2 if killed else 1)
    assert plain.count("relay_recovered") == plain.count("relay_unreachable") - killed


@pytest.mark.parametrize("action", [CutAfter(), CutAfter(reset=True), "421"])
def test_a_relay_that_takes_one_mail_a_connection_gets_one_each(plain: LineBridge, action) -> None:
    """Closing after the acceptance, or answering the next mail with 421: no trouble, no duplicate."""
    if action == "421":
        plain.relay.always("RSET", Say("421 4.4.2 one mail only", then="cut"))
    else:
        plain.relay.always("DOT", action)
    plain.smtp = "timeout: 5s, connections: 3"
    plain.start()
    names = [f"{i}.txt" for i in range(15)]
    for name in names:
        (plain.inbox / name).write_bytes(BODY)
    plain.expect(*names)
    assert plain.count("relay_unreachable") == 0
    assert plain.relay.sessions >= 15
    nothing_counted(plain, *names)


def test_a_relay_that_closes_idle_sessions_is_greeted_anew(plain: LineBridge) -> None:
    """The kept session is dead when the next document comes: a new one, no trouble told."""
    plain.start()
    names = [f"{i}.txt" for i in range(4)]
    for count, name in enumerate(names, 1):
        (plain.inbox / name).write_bytes(BODY)
        plain.wait_for("document_validated", count)
        plain.relay.cut_all()
        plain.relay.wait_for(lambda: plain.relay.open_sessions == 0)
    plain.expect(*names)
    assert plain.relay.sessions >= 4
    assert plain.count("relay_unreachable") == 0
    nothing_counted(plain, *names)
