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

from asking import flush  # noqa: E402
from watched import Watch  # noqa: E402

from lazycast.adapters.sglang.segments import Segments, keep_segments  # noqa: E402
from lazycast.tools.bench.sglang_loop.prompts import Prompts  # noqa: E402

FLAG = "--enable-broadcast-mm-inputs-process"
#: How the server is started, and with what in its environment.
WAYS: dict[str, tuple[list[str], dict[str, str]]] = {
    "alone": ([], {"SGLANG_PLUGINS": "none"}),
    "blocking": ([FLAG], {"LAZYCAST_SGLANG_ADMISSION": "blocking"}),
    "deferred": ([FLAG], {}),
}
Usual = tuple[fleets.Fleet, Watch]
Started = Callable[..., Usual]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those that share schedulers come after each other, and no others run beside these: idle ones spin."""
    items.sort(key=lambda item: "usual" in getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True, scope="session")
def _told_of_ends() -> Iterator[None]:
    """A scheduler that fails sends its parent SIGQUIT, which would end it: the fleet's next call says more."""
    before = signal.signal(signal.SIGQUIT, lambda *_: None)
    yield
    signal.signal(signal.SIGQUIT, before)


@pytest.fixture(scope="session")
def segments() -> Iterator[Segments]:
    """The memory in which this process, in a tokenizer's place, sends features."""
    kept = keep_segments()
    assert kept is not None
    yield kept
    kept.close()


@pytest.fixture(scope="session")
def prompts(segments: Segments) -> Prompts:
    return Prompts()


def watched(folder: Path, way: str, *switches: str, gated: bool = False, **environment: str) -> Usual:
    """Start schedulers in one of the ways."""
    folder.mkdir()
    watch = Watch(folder, gated=gated)
    own, variables = WAYS[way]
    given: dict[str, Any] = {"LAZYCAST_SGLANG_CAST_FROM_NBYTES": "2000000", **variables, **environment}
    return fleets.Fleet([*own, *switches], environment=given, within=watch), watch


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Started]:
    """Starts schedulers in one of the ways, which are watched; ends them after the test."""
    running: list[fleets.Fleet] = []

    def start(way: str, *switches: str, gated: bool = False, **environment: str) -> Usual:
        folder = tmp_path / f"{way}-{len(running)}"
        for other in running:
            other.freeze()
        fleet, watch = watched(folder, way, *switches, gated=gated, **environment)
        running.append(fleet)
        return fleet, watch

    yield start
    for fleet in running:
        fleet.close()


@pytest.fixture(scope="session")
def _shared() -> Iterator[list[Usual]]:
    shared: list[Usual] = []
    yield shared
    for fleet, _ in shared:
        fleet.close()


@pytest.fixture
def usual(_shared: list[Usual], request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Usual]:
    """Schedulers without switches that put requests aside, behind a gate. Tests share them, one after another.

    Each finds them with nothing to do and with no prompts that they know, and uses names of its own for its requests.
    After one that fails, or that closes them, the next has others.
    """
    if _shared:
        flush(_shared[0][0])
        _shared[0][1].begin()
    else:
        _shared.append(watched(tmp_path / "usual", "deferred", gated=True))
    fleet, watch = _shared[0]
    failed = request.session.testsfailed
    yield fleet, watch
    if request.session.testsfailed > failed or not fleet.pids:
        _shared.clear()
        fleet.close()
