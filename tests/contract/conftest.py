"""What several of these tests look at."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from bridged import logs


@pytest.fixture
def collected() -> None:
    """For who counts descriptors: what other tests have left open is closed now, and not meanwhile."""
    gc.collect()


@pytest.fixture
def said() -> Iterator[list[dict[str, Any]]]:
    """What the log says, as the listener hears it."""
    lines: list[dict[str, Any]] = []
    logs.listen(lambda event, fields: lines.append({"event": event, **fields}))
    yield lines
    logs.listen(None)
