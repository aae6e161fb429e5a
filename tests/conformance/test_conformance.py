"""The conformance suite, on ranks that are threads of this process. `tests/launch` runs it under real launchers."""

from __future__ import annotations

import pytest

from lazycast import launch
from lazycast.discovery import resolve
from lazycast.testing import Outcome, run
from lazycast.testing.kit import behaviours, name_of

SIZES = (1, 2, 4)
CASES = [(size, name_of(fn)) for size in SIZES for fn in behaviours(size)]


def _run_one(name: str) -> list[Outcome]:
    return run(resolve("auto"), only=name)


@pytest.mark.parametrize(("size", "name"), CASES, ids=[f"{name}-{size}" for size, name in CASES])
def test_behaviour(size: int, name: str) -> None:
    for rank, outcomes in enumerate(launch(_run_one, ranks=size, backend="threads", args=(name,), timeout_s=110)):
        assert [outcome.name for outcome in outcomes] == [name]
        assert outcomes[0].passed, f"seen by rank {rank}:\n" + "\n".join(e for e in outcomes[0].errors if e)
