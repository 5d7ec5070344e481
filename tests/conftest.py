"""The fixtures of the tests that run the whole bridge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.bridge import Bridge
from tests.support.relay import ScriptedRelay


@pytest.fixture
def relay() -> Iterator[ScriptedRelay]:
    with ScriptedRelay() as relay:
        yield relay


@pytest.fixture(params=["inotify", "polling"])
def bridge(request: pytest.FixtureRequest, tmp_path: Path, relay: ScriptedRelay) -> Iterator[Bridge]:
    """A bridge that is not started yet, once with hints and once without."""
    bridge = Bridge(tmp_path, relay, request.param)
    yield bridge
    if bridge.process is not None and bridge.process.poll() is None:
        bridge.stop()
