"""The choice of tests for `make test`, and the fixtures of the tests that run the whole bridge."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from bridged import logs
from tests.support import twice
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
        if not _is_small(item) and not _proves_a_promise(item):
            item.add_marker("rest")
    _require_the_named(items)
    items.sort(key=_longest_time, reverse=True)


def _is_small(item: pytest.Item) -> bool:
    return any(item.path.is_relative_to(small) for small in SMALL)


def _proves_a_promise(item: pytest.Item) -> bool:
    """`promise` chooses a test, or with arguments only those of its parametrizations."""
    marker = item.get_closest_marker("promise")
    return marker is not None and (not marker.args or _id(item) in marker.args)


def _id(item: pytest.Item) -> str:
    return item.name.partition("[")[2].removesuffix("]")


def _require_the_named(items: list[pytest.Item]) -> None:
    """Refuse a `promise` of a parametrization that does not exist. Otherwise `make test` would run none of them."""
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    for name, group in tests.items():
        marker = group[0].get_closest_marker("promise")
        missing = set(marker.args if marker else ()) - {_id(item) for item in group}
        if missing and len(group) > 1:  # one alone was asked for by its name
            raise pytest.UsageError(f"{name} has no parametrization {sorted(missing)}")


def _longest_time(item: pytest.Item) -> float:
    """Seconds that a test may take, as its `timeout` says. A small test takes next to none."""
    timeout = item.get_closest_marker("timeout")
    return 0.0 if _is_small(item) else float(timeout.args[0] if timeout else 120)


@pytest.fixture(autouse=True)
def own_log() -> None:
    """Give each test a log of its own. Otherwise it writes to that of an earlier test, which may be closed."""
    logs.configure("json", "info", io.StringIO())


@pytest.fixture(autouse=True)
def wishes_run_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wish of a test's journal has no side effect, or the test fails."""
    monkeypatch.setattr("bridged.journal.Journal._grant", twice.twice)


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
