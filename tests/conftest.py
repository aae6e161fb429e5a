"""What plain `pytest` leaves alone, and what it needs of its process."""

from __future__ import annotations

import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.turns import turn

#: The tests in `sglang` run inside environments of their own (`make test-sglang`).
collect_ignore = ["sglang"]

# A shell that starts a command in the background has it ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Where `-n` has several processes run tests, have those marked `alone` wait for the others, outside the limit."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    of_all = Path(item.config.getoption("basetemp")).parent  # this one's own is in it
    with turn(of_all, alone=item.get_closest_marker("alone") is not None):
        return (yield)
