"""What plain `pytest` leaves alone, and what it needs of its process."""

from __future__ import annotations

import signal

import pytest

#: The tests in `sglang` run inside environments of their own (`make test-sglang`).
collect_ignore = ["sglang"]

# A shell that starts a command in the background has it ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("tests.skips")
