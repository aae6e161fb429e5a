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
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes long comes first, dealt to all processes of `-n`: none of them waits for the last of it."""
    usual_s = float(config.getini("timeout"))
    long = sorted((item for item in items if _limit_s(item) > usual_s), key=_limit_s, reverse=True)
    others = [item for item in items if _limit_s(item) <= usual_s]
    processes = config.workerinput["workercount"] if hasattr(config, "workerinput") else 1
    share = -(-len(items) // processes)  # `worksteal` begins with equal parts of the whole, one after another
    items[:] = []
    for process in range(processes):
        items += long[process::processes]
        left = max(0, (process + 1) * share - len(items))
        items += others[:left]
        del others[:left]


def _limit_s(item: pytest.Item) -> float:
    own = item.get_closest_marker("timeout")  # whoever has more time than others takes it
    return float(own.args[0]) if own is not None else 0.0


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
