"""SGLang's real schedulers are forked from this process: `run.py` starts it without ranks."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from lazycast.tools.bench.sglang_loop import fleet as fleets

fleets.load()

from watched import Watch  # noqa: E402

from lazycast.tools.bench.sglang_loop.prompts import Prompts  # noqa: E402

FLAG = "--enable-broadcast-mm-inputs-process"
#: How the server is started, and with what in its environment.
WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "alone": ([], {"SGLANG_PLUGINS": "none"}),
    "blocking": ([FLAG], {"LAZYCAST_SGLANG_ADMISSION": "blocking"}),
    "deferred": ([FLAG], {}),
}
Started = Callable[..., tuple[fleets.Fleet, Watch]]


@pytest.fixture(autouse=True, scope="session")
def _told_of_ends() -> Iterator[None]:
    """A scheduler that fails sends its parent SIGQUIT, which would end it: the fleet's next call says more."""
    before = signal.signal(signal.SIGQUIT, lambda *_: None)
    yield
    signal.signal(signal.SIGQUIT, before)


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    return Prompts()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Starts schedulers in one of the ways, which are watched; ends them after the test."""
    running: list[fleets.Fleet] = []

    def start(way: str, *switches: str, gated: bool = False, **environment: str) -> tuple[fleets.Fleet, Watch]:
        folder = tmp_path / f"{way}-{len(running)}"
        folder.mkdir()
        watch = Watch(folder, gated=gated)
        own, variables = WAYS[way]
        for other in running:
            other.freeze()
        given: dict[str, Any] = {"LAZYCAST_SGLANG_CAST_FROM_NBYTES": "2000000", **variables, **environment}
        running.append(fleets.Fleet([*own, *switches], environment=given, within=watch))
        return running[-1], watch

    yield start
    for fleet in running:
        fleet.close()
