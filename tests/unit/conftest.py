"""What the unit tests share: a hunt for leaks around every test, child processes, threads that must not fail."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests import warm

# No deadline: speed is measured in benchmarks, and a loaded machine is no defect.
settings.register_profile("unit", deadline=None, max_examples=60)
settings.load_profile("unit")

JOIN_S = 20.0


def _descriptors() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add(f"{name} -> {os.readlink(f'/proc/self/fd/{name}')}")
        except OSError:  # the listing's own descriptor
            continue
    return found


@pytest.fixture(autouse=True)
def _leak_free(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads and descriptors are what they were when a test is over."""
    if {"warm_python", "run_python"} & set(request.fixturenames):
        warm.python()  # the parent of its ranks lasts, which is no leak
    threads, descriptors = set(threading.enumerate()), _descriptors()
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(JOIN_S)
        assert not thread.is_alive(), f"the test left the thread {thread.name!r} behind"
    if _descriptors() - descriptors:
        gc.collect()
    left = {d for d in _descriptors() - descriptors if "/dev/urandom" not in d}
    assert not left, f"the test left descriptors behind: {left}"


@pytest.fixture(autouse=True)
def _warm_torch() -> None:
    """Nothing here starts ranks over torch."""


RunPython = Callable[..., str]


@pytest.fixture
def run_python(tmp_path: Path, request: pytest.FixtureRequest) -> RunPython:
    """Run source code in a process of its own, fail unless it ends with 0, and return what it printed.

    It is forked by one that has torch, which it may import at once. A test that is `cold` has a fresh interpreter.
    """
    python = sys.executable if request.node.get_closest_marker("cold") else warm.python()

    def run(code: str, *args: str, path: tuple[Path, ...] = ()) -> str:
        folder = tmp_path / "child"
        folder.mkdir(exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LAZYCAST_", "OMPI_", "PMI", "PYTHON"))}
        if path:
            environment["PYTHONPATH"] = os.pathsep.join(map(str, path))
        script = folder / "script.py"
        script.write_text(code)
        done = subprocess.run(
            [python, str(script), *args],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"the child ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


@pytest.fixture
def together() -> Callable[..., list[object]]:
    """Run functions in threads at once; return their results in order, or raise the first error."""

    def run(*fns: Callable[[], object]) -> list[object]:
        results: list[object] = [None] * len(fns)
        errors: list[BaseException] = []

        def call(index: int, fn: Callable[[], object]) -> None:
            try:
                results[index] = fn()
            except BaseException as exc:
                errors.append(exc)

        threads = [threading.Thread(target=call, args=(i, fn), daemon=True) for i, fn in enumerate(fns)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(JOIN_S)
        assert not any(thread.is_alive() for thread in threads), "a thread hangs"
        if errors:
            raise errors[0]
        return results

    return run
