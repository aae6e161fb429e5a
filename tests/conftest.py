"""What plain `pytest` leaves alone, and what it needs of its process."""

from __future__ import annotations

import functools
import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm

#: The tests in `sglang` run inside environments of their own (`make test-sglang`).
collect_ignore = ["sglang"]

# Hundreds of ranks import the library: where the environment forbids to keep it compiled, each would compile it again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell that starts a command in the background has it ignore Ctrl-C, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.import_plugin("tests.skips")
    if hasattr(config, "workerinput"):
        warm.use(Path(config.workerinput["warm"]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """All processes of `-n` have their programs forked by one warm parent: torch is imported once."""
    node.workerinput["warm"] = str(_shared())


@functools.cache
def _shared() -> Path:
    return warm.start()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long comes first: the other processes of `-n` do not wait for the last of it."""
    items.sort(key=lambda item: not _takes_long(item))


def _takes_long(item: pytest.Item) -> bool:
    own = item.get_closest_marker("timeout")  # whoever has more time than others takes it
    return own is not None and own.args[0] > float(item.config.getini("timeout"))


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """What is there before the first test is there after the last: the collections of the tests need not look at it."""
    gc.collect()
    gc.freeze()


def _backend(request: pytest.FixtureRequest) -> object:
    callspec = getattr(request.node, "callspec", None)
    return callspec and callspec.params.get("backend")


@pytest.fixture
def warm_python(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is started with `sys.executable` has imported torch already, `launch`'s ranks too; MPI's have not.

    A test that is `cold` has interpreters of its own.
    """
    if _backend(request) != "mpi" and not request.node.get_closest_marker("cold"):
        monkeypatch.setattr(sys, "executable", warm.python())


@pytest.fixture(autouse=True)
def _warm_torch(request: pytest.FixtureRequest) -> None:
    """Ranks that would wait for torch above all do not."""
    if _backend(request) == "torch":
        request.getfixturevalue("warm_python")
