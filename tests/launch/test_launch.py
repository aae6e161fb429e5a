"""`launch`: what ranks find, and what is said when one of them fails. Also what only separate processes can show."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import (
    CastTimeoutError,
    ClosedError,
    DecodeError,
    EncodeError,
    LaunchError,
    LazyBroadcast,
    MaterializeError,
    Tuning,
    launch,
)
from lazycast.testing.kit import raises

pytestmark = pytest.mark.usefixtures("warm_python")


def who() -> tuple[int, int]:
    with LazyBroadcast(timeout_s=20) as lazy:
        return lazy.rank, lazy.size


@pytest.mark.parametrize("backend", ["local", "threads"])
def test_ranks_find_their_group_whatever_another_launcher_left(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMIX_RANK", "0")  # as inside srun or mpirun
    monkeypatch.setenv("WORLD_SIZE", "7")
    assert launch(who, ranks=2, backend=backend, timeout_s=200) == [(0, 2), (1, 2)]


def dies(code: int) -> Any:
    with LazyBroadcast(timeout_s=20) as lazy:
        lazy.broadcast(0)
        if lazy.rank == 1:
            os._exit(code)
        return lazy.broadcast(1)


def test_a_rank_that_dies_is_named_before_those_that_failed_because_of_it() -> None:
    with pytest.raises(LaunchError, match="rank 1 ended with exit code 7"):
        launch(dies, ranks=3, args=(7,), timeout_s=200)


def the_last_one_dies() -> None:
    if os.environ["LAZYCAST_RANK"] == "2":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)  # the others hear of nothing


def test_the_last_rank_is_missed_though_the_others_go_on() -> None:
    with pytest.raises(LaunchError, match="rank 2 was killed by signal 9"):
        launch(the_last_one_dies, ranks=3, timeout_s=200)


def test_what_cannot_be_sent_is_named() -> None:
    lock = threading.Lock()
    with pytest.raises(EncodeError, match="captured variable 'lock'"):
        launch(lambda: lock, ranks=2)
    with pytest.raises(LaunchError, match="result of the launched function, a lock, does not pickle"):
        launch(lambda: __import__("threading").Lock(), ranks=1, timeout_s=200)


def test_a_time_limit_ends_all_ranks() -> None:
    with pytest.raises(CastTimeoutError, match="still running after 1 s"):
        launch(time.sleep, ranks=2, args=(1000,), timeout_s=1)


@pytest.mark.parametrize(
    ("arguments", "error"), [({"ranks": 0}, "positive int"), ({"backend": "carrier pigeon"}, "'threads', 'local'")]
)
def test_bad_arguments(arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(ValueError, match=error):
        launch(who, **arguments)


def test_modules_beside_the_script_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "beside.py").write_text("def answer():\n    return 42\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import beside  # type: ignore[import-not-found]

    assert launch(beside.answer, ranks=2, timeout_s=200) == [42, 42]


def only_the_root_can_import(folder: str, close_at_once: bool) -> Any:
    with LazyBroadcast(agree=False, timeout_s=30) as lazy:
        if not lazy.is_root:
            try:
                return lazy.broadcast()
            except ClosedError as exc:
                return exc.message
            finally:
                Path(folder, f"done.{lazy.rank}").touch()
        sys.path.append(folder)
        import rootonly  # type: ignore[import-not-found]

        if close_at_once:
            lazy._lane.on_message = lambda message, body: None  # type: ignore[attr-defined]  # deaf: nobody is answered
        value = lazy.broadcast(20, materialize=rootonly.double)
        while not close_at_once and len(list(Path(folder).glob("done.*"))) < lazy.size - 1:
            time.sleep(0.01)  # without agreement nobody tells the root that the others are done
        return value


@pytest.mark.parametrize("close_at_once", [False, True])
def test_code_that_only_the_root_can_import_is_fetched_or_said_to_be_gone(tmp_path: Path, close_at_once: bool) -> None:
    (tmp_path / "rootonly.py").write_text("FACTOR = 2\n\n\ndef double(n):\n    return FACTOR * n\n")
    root, *others = launch(only_the_root_can_import, ranks=3, args=(str(tmp_path), close_at_once), timeout_s=200)
    assert root == 40
    if close_at_once:
        assert all("rank 0 (" in said and "has closed" in said for said in others), others
    else:
        assert others == [40, 40]


def lacks_memory() -> Any:
    import lazycast.net.relay

    with LazyBroadcast(timeout_s=30, tuning=Tuning(shared_memory=False)) as lazy:
        if lazy.rank == 1:
            whole = lazycast.net.relay.allocate

            def allocate(nbytes: int) -> memoryview:
                if nbytes > 8 << 20:
                    raise MemoryError
                return whole(nbytes)

            lazycast.net.relay.allocate = allocate
        exc = raises(
            DecodeError, r"on rank 1 .*could not be allocated", lambda: lazy.broadcast(np.zeros(20 << 20, "u1"))
        )
        assert exc.rank == 1
        return lazy.broadcast(np.arange(1_000_000)).sum()


def test_a_rank_without_memory_fails_the_cast_by_name_and_still_passes_it_on() -> None:
    assert launch(lacks_memory, ranks=5, timeout_s=200) == [499999500000] * 5  # rank 1 passes on to rank 4


def forks(ended: Path) -> Any:
    with LazyBroadcast(timeout_s=60) as lazy:
        pending = lazy.broadcast_async("x", key="k") if not lazy.is_root else None

        def child() -> None:
            if pending is not None:
                raises(ClosedError, "parent of this forked process", pending.result)
            for call in (lambda: lazy.broadcast_async(1), lambda: lazy.discard("k")):
                raises(ClosedError, "parent of this forked process", call)
            lazy.close()

        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join(50)
        if pending is not None:
            ended.touch()
            return process.exitcode, pending.result()
        while not ended.exists():  # a child has no value that was there before the fork
            time.sleep(0.01)
        return process.exitcode, lazy.broadcast("x", key="k")


def test_a_forked_child_is_refused_without_waiting(tmp_path: Path) -> None:
    assert launch(forks, ranks=2, args=(tmp_path / "ended",), timeout_s=200) == [(0, "x"), (0, "x")]


def interrupts(payload: object) -> object:
    raise KeyboardInterrupt


def test_an_interrupt_of_a_group_of_one_reaches_its_caller() -> None:
    with LazyBroadcast(interrupts, backend="local") as lazy:
        with pytest.raises(KeyboardInterrupt):
            lazy.broadcast(1)
        with pytest.raises(MaterializeError):
            lazy.broadcast_async(1).result(20)
        assert lazy.broadcast(1, materialize=str, timeout_s=1e12) == "1"
