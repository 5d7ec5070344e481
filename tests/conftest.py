"""The choice of tests for `make test`, and the fixtures of the tests that run the whole bridge."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.support.bridge import Bridge
from tests.support.relay import ScriptedRelay

HERE = Path(__file__).parent
# No deadline for one example, because on a busy machine any of them may wait 200 ms for a processor.
settings.register_profile("bridged", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("bridged")

SMALL = (HERE / "unit", HERE / "contract", HERE / "test_architecture.py")  # all of these tests are in `make test`


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that `make test` leaves out, and put the longest first: otherwise one worker ends late."""
    for item in items:
        if not any(item.path.is_relative_to(small) for small in SMALL) and not item.get_closest_marker("promise"):
            item.add_marker("rest")
    items.sort(key=_longest_time, reverse=True)


def _longest_time(item: pytest.Item) -> float:
    """Seconds that a test may take, as its `timeout` says."""
    timeout = item.get_closest_marker("timeout")
    return float(timeout.args[0]) if timeout else 0.0


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
