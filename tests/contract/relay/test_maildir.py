"""The Maildir of a dry run against a real directory."""

from __future__ import annotations

import mailbox

import pytest

from bridged.config.settings import Smtp
from bridged.relay import Maildir, Relay
from bridged.relay.outcome import Accepted, Refused

MAIL = b"Subject: x\r\n\r\ntext\r\n"


def deliver(way, mail=MAIL):
    return way.deliver("a@b.example", "c@d.example", len(mail), iter([mail]), lambda: None)


@pytest.mark.parametrize("limit", [None, len(MAIL)])
def test_a_mail_that_fits_is_whole_in_new(tmp_path, limit):
    assert isinstance(deliver(Maildir(tmp_path / "Maildir", limit)), Accepted)
    (mail,) = mailbox.Maildir(tmp_path / "Maildir", create=False)
    assert mail["Subject"] == "x"
    assert list((tmp_path / "Maildir" / "tmp").iterdir()) == []


def test_a_mail_above_size_limit_is_refused_in_the_words_of_the_relays_side(tmp_path):
    """A dry run holds the documents that the relay's side would hold, and for the same reason."""
    smtp = Smtp(host="127.0.0.1", port=1, security="plain", sender="a@b.example", size_limit="19B")
    outcome = deliver(Maildir(tmp_path / "Maildir", 19))
    assert isinstance(outcome, Refused)
    assert outcome == deliver(Relay(smtp, lambda _: None))
    assert not (tmp_path / "Maildir").exists()
