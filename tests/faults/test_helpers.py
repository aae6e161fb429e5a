"""Helpers that crash, hang, eat memory and are killed; and leaders that die. Each promise is tested by doing it."""

from __future__ import annotations

import functools
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import CastTimeoutError, Helpers, LazyBroadcast, MaterializeError, launch
from lazycast.core.helpers.process import Helper
from lazycast.here import here
from tests import helped
from tests.children import of_this_process

LIMIT_S = 60.0  # whoever runs into it has found a hang
#: A rank that is alone loses helpers in the conformance suite too.
RANKS = [pytest.param(1, marks=pytest.mark.exhaustive), 2]


def lazy_of(fn: Any, *, helpers: Helpers = Helpers(1), **options: Any) -> LazyBroadcast[Any, Any]:  # noqa: B008
    return LazyBroadcast(fn, placement=helpers, timeout_s=LIMIT_S, **options)


def on_threads(fn: Callable[..., Any], *args: Any, ranks: int = 2) -> list[Any]:
    """Run on ranks that are threads of this process: helpers are processes all the same."""
    return launch(fn, ranks=ranks, backend="threads", args=args, timeout_s=200)


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended: a zombie has."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def errors_of(lazy: LazyBroadcast[Any, Any], kind: type[Exception], payload: Any, **more: Any) -> str:
    with pytest.raises(kind) as caught:
        lazy.broadcast(payload if lazy.is_root else None, **more)
    return str(caught.value)


def value_of(lazy: LazyBroadcast[Any, Any], payload: Any, **more: Any) -> Any:
    return lazy.broadcast(payload if lazy.is_root else None, **more)


# What a helper does


def _crashes() -> tuple[str, Any, int]:
    with lazy_of(helped.crash_or) as lazy:
        before = value_of(lazy, "fine")
        text = errors_of(lazy, MaterializeError, "crash")
        after = value_of(lazy, "again")
        assert before["pid"] != after["pid"]
        return text, after["payload"], lazy.stats().helpers_lost


@pytest.mark.parametrize("ranks", RANKS)
def test_a_payload_that_crashes_two_helpers_is_an_error_on_every_rank(ranks: int) -> None:
    for rank, (text, after, lost) in enumerate(on_threads(_crashes, ranks=ranks)):
        assert "materializer 'crash_or' was not done: helper 0" in text
        assert text.count("was killed by SIGSEGV") == 2
        assert after == "again"
        assert lost == (2 if rank == 0 else 0)


def _dies_once(marker: str) -> Any:
    with lazy_of(helped.kill_itself_once, helpers=Helpers(2)) as lazy:
        return value_of(lazy, marker)


def test_the_cast_of_a_helper_that_dies_goes_to_another(tmp_path: Path) -> None:
    first, second = on_threads(_dies_once, str(tmp_path / "marker"))
    assert first == second
    assert first["first"] != first["pid"]


def _killed_as_it_begins(marker: str) -> tuple[Any, int]:
    begins = functools.partial(helped.die_once_at_begin, marker)
    with lazy_of(helped.who, helpers=Helpers(1, init=begins)) as lazy:
        return value_of(lazy, "fine")["payload"], lazy.stats().helpers_lost


def test_a_helper_that_is_killed_as_it_begins_fails_nothing(tmp_path: Path) -> None:
    assert on_threads(_killed_as_it_begins, str(tmp_path / "marker")) == [("fine", 1), ("fine", 0)]


def test_a_pool_that_ends_slowly_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Helper.ended

    def slowly(self: Helper, within_s: float = 1.0) -> str:
        time.sleep(2.5)  # as on a machine that is very busy
        return ended(self, within_s)

    with lazy_of(helped.who) as lazy:
        pid = lazy.broadcast("fine")["pid"]
        monkeypatch.setattr(Helper, "ended", slowly)
    assert gone(pid)
    assert [thread.name for thread in threading.enumerate() if "keeper" in thread.name] == []


def _leaves() -> tuple[str, Any]:
    with lazy_of(helped.leave) as lazy:
        text = errors_of(lazy, MaterializeError, 7)
        return text, value_of(lazy, "next", materialize=helped.who)["payload"]


def test_a_helper_that_exits_is_named_with_its_exit_code() -> None:
    for text, after in on_threads(_leaves):
        assert text.count("ended with exit code 7") == 2
        assert after == "next"


def _hangs() -> tuple[str, Any, Any]:
    with lazy_of(helped.hang, helpers=Helpers(2, limit_s=0.5)) as lazy:
        root = lazy.is_root
        hanging = lazy.broadcast_async("hang" if root else None, key="hang")
        beside = lazy.broadcast("beside" if root else None, key="beside")
        with pytest.raises(MaterializeError) as caught:
            hanging.result(LIMIT_S)
        return str(caught.value), beside["payload"], value_of(lazy, "after")["payload"]


def test_a_helper_that_hangs_is_ended_and_that_cast_alone_fails() -> None:
    for text, beside, after in on_threads(_hangs):
        assert "materializer 'hang' was not done: it had taken longer than limit_s=0.5, and helper" in text
        assert (beside, after) == ("beside", "after")


def _hangs_without_limit() -> tuple[str, Any]:
    with lazy_of(helped.hang) as lazy:
        value_of(lazy, "warm")
        text = errors_of(lazy, CastTimeoutError, "hang", timeout_s=1.0)
        return text, value_of(lazy, "after")["payload"]


def test_without_a_limit_the_time_of_the_call_ends_what_hangs() -> None:
    for text, after in on_threads(_hangs_without_limit):
        assert "after 1 s" in text or "had waited 1 s" in text
        assert after == "after"


def _hogs(nbytes: int) -> tuple[str, bool]:
    with lazy_of(helped.hog, helpers=Helpers(1, memory_nbytes=1 << 30)) as lazy:
        before = value_of(lazy, "fine")
        text = errors_of(lazy, MaterializeError, nbytes)
        value_of(lazy, 1 << 20)
        return text, value_of(lazy, "after")["pid"] == before["pid"]


def test_what_a_helper_may_not_take_is_an_error_of_that_cast() -> None:
    for text, same in on_threads(_hogs, 2 << 30):
        assert "materializer 'hog' raised in helper 0 on rank 0" in text
        assert "MemoryError" in text
        assert same


def _raises() -> list[str]:
    with lazy_of(None) as lazy:
        return [errors_of(lazy, MaterializeError, 5, materialize=fn) for fn in (helped.raises, helped.exits)]


def test_what_a_materializer_raises_names_the_helper_and_where() -> None:
    for raised, exited in on_threads(_raises):
        assert "materializer 'raises' raised in helper 0 on rank 0" in raised
        assert "KeyError: 'bad payload 5'" in raised
        assert "materializer 'exits' raised in helper 0 on rank 0" in exited
        assert "SystemExit: 3" in exited


def _forks() -> tuple[Any, Any]:
    with lazy_of(helped.comes_back_twice) as lazy:
        return value_of(lazy, 1), value_of(lazy, 2, materialize=helped.who)["payload"]


def test_the_child_of_a_materializer_that_forks_is_no_helper() -> None:
    assert on_threads(_forks) == [("the parent", 2)] * 2


def _leaves_a_child(marker: str) -> tuple[str, Any]:
    with lazy_of(helped.leaves_a_child) as lazy:
        text = errors_of(lazy, MaterializeError, marker)
        return text, value_of(lazy, "after", materialize=helped.who)["payload"]


def test_a_helper_that_dies_is_missed_although_its_own_child_lives(tmp_path: Path) -> None:
    marker = tmp_path / "child"
    try:
        for text, after in on_threads(_leaves_a_child, str(marker)):
            assert text.count("SIGKILL") == 2
            assert after == "after"
    finally:
        children = [int(pid) for pid in marker.read_text().split()]
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        assert len(children) == 2  # it was tried twice


# Helpers and leaders that are killed from outside


def _killed(folder: str) -> list[Any]:
    with lazy_of(helped.who) as lazy:
        found = [value_of(lazy, "first")["pid"]]
        if lazy.is_root:
            os.kill(found[0], signal.SIGKILL)  # while it is idle
        found.append(value_of(lazy, "second")["pid"])
        future = lazy.broadcast_async((folder, "third") if lazy.is_root else None, materialize=helped.slow)
        if lazy.is_root:
            until((Path(folder) / "begun").exists)
            os.kill(found[1], signal.SIGKILL)
            (Path(folder) / "go").touch()
        found.append(future.result(LIMIT_S))
        return [*found, value_of(lazy, "fourth")["pid"]]


def test_a_helper_that_is_killed_is_replaced_and_no_cast_is_lost(tmp_path: Path) -> None:
    first, second = on_threads(_killed, str(tmp_path))
    assert first == second
    assert first[2] == "third"
    assert len(set(first)) == 4


def _all_there(lazy: LazyBroadcast[Any, Any], lost: int) -> bool:
    stats = lazy.stats()  # at one moment: a death comes between two
    return stats.helpers == 2 and stats.helpers_lost == lost


def _under_fire(kills: int) -> tuple[list[Any], int]:
    stop = threading.Event()

    def shoot(lazy: LazyBroadcast[Any, Any]) -> None:
        """Kill one helper after another, each when all are there again."""
        for number in range(kills):
            until(functools.partial(_all_there, lazy, number))
            pids = [int(found) for found in re.findall(r"helper \d: process (\d+)", lazy.dump())]
            os.kill(pids[number % 2], signal.SIGKILL)
        until(lambda: lazy.stats().helpers_lost == kills)
        stop.set()

    with lazy_of(helped.checked, helpers=Helpers(2)) as lazy:
        if lazy.is_root:
            threading.Thread(target=shoot, args=(lazy,), daemon=True).start()
        wrong, casts, last = [], 0, False
        while not last:
            last = stop.is_set()
            payload = (casts, np.full(30_000, casts % 251, np.uint8), last)
            number, made, last = lazy.broadcast(payload if lazy.is_root else None)
            if number != casts or not (made == (casts + 1) % 251).all():
                wrong.append((casts, number))
            made += 1
            casts += 1
        del made
        if lazy.is_root:
            until(lambda: lazy.stats().shared_slots == 0)
        return wrong, casts


@pytest.mark.exhaustive
def test_no_cast_is_lost_while_helpers_are_killed_one_after_another() -> None:
    (wrong, casts), (other_wrong, other_casts) = on_threads(_under_fire, 5)
    assert (wrong, other_wrong) == ([], [])
    assert casts == other_casts > 5


def _alive_until_killed(folder: str, busy: bool) -> None:
    with lazy_of(helped.who, helpers=Helpers(2)) as lazy:
        (Path(folder) / f"rank {lazy.rank}").write_text(str(os.getpid()))
        pid = value_of(lazy, 1)["pid"]  # with agreement: both have said who they are
        if busy:
            lazy.broadcast_async("hang" if lazy.is_root else None, materialize=helped.hang)
        if lazy.is_root:
            until(lambda: (stats := lazy.stats()).helpers == 2 and stats.helpers_busy == busy)
            pids = [int(found) for found in re.findall(r"helper \d: process (\d+)", lazy.dump())]
            assert pid in pids
            (Path(folder) / "part").write_text(" ".join(map(str, [os.getpid(), *pids])))
            (Path(folder) / "part").rename(Path(folder) / "pids")
        time.sleep(600)


_JOB = """
import sys
from lazycast import launch
from tests.faults import test_helpers
launch(test_helpers._alive_until_killed, ranks=int(sys.argv[1]), args=(sys.argv[2], sys.argv[3] == "busy"))
"""


@pytest.mark.parametrize("what", [pytest.param("idle", marks=pytest.mark.exhaustive), "busy"])
@pytest.mark.parametrize("victim", ["leader", "follower", "job"])
def test_no_helper_outlives_its_leader_or_its_job(tmp_path: Path, victim: str, what: str) -> None:
    job = helped.start_program("-c", _JOB, "2", str(tmp_path), what)
    try:
        until(lambda: (tmp_path / "pids").exists() or job.poll() is not None)
        leader, *pids = map(int, (tmp_path / "pids").read_text().split())
        assert len(pids) == 2
        assert not any(gone(pid) for pid in pids)
        follower = int((tmp_path / "rank 1").read_text())
        os.kill({"leader": leader, "follower": follower, "job": job.pid}[victim], signal.SIGKILL)
        until(lambda: all(gone(pid) for pid in pids))
    finally:
        job.kill()
        job.communicate()


def _left_busy(folder: str) -> int:
    lazy = lazy_of(helped.hang)
    future = lazy.broadcast_async("hang" if lazy.is_root else None)
    if lazy.is_root:
        until(lambda: lazy.stats().helpers_busy == 1)
        (Path(folder) / "busy").touch()
    until((Path(folder) / "busy").exists)
    lazy.close(timeout_s=0.1)
    assert future.exception(LIMIT_S) is not None
    return 0


def test_close_ends_helpers_in_the_middle_of_what_they_do(tmp_path: Path) -> None:
    before = _children()
    on_threads(_left_busy, str(tmp_path))
    assert _children() == before


def _children() -> set[int]:
    return {pid for pid in of_this_process() if not gone(pid)}


_EXIT = """
from lazycast import Helpers, LazyBroadcast
from tests import helped
lazy = LazyBroadcast(helped.who, placement=Helpers(2))
print(lazy.broadcast(1)["pid"], flush=True)
"""


def test_an_interpreter_that_exits_without_close_leaves_no_helper() -> None:
    program = helped.start_program("-c", _EXIT)
    said, errors = program.communicate(timeout=200)
    assert (program.returncode, errors) == (0, "")
    assert gone(int(said))


# What is withdrawn, and what comes first


def _withdraws(folder: str) -> list[Any]:
    with lazy_of(helped.slow) as lazy:
        root = lazy.is_root
        names = ("runs", "waits", "stays")
        futures = [lazy.broadcast_async((folder, name) if root else None, key=name) for name in names]
        if root:
            until((Path(folder) / "begun").exists)
            assert futures[1].cancel()
            assert futures[0].cancel()
            until((Path(folder) / "cancelled").exists)
            (Path(folder) / "go").touch()
        last = futures[2].result(LIMIT_S)
        return [*(future.cancelled() for future in futures[:2]), last]


def test_what_is_withdrawn_before_it_begins_never_does_and_what_runs_can_tell(tmp_path: Path) -> None:
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        for seen in on_threads(_withdraws, str(folder), ranks=ranks):
            assert seen == [True, True, "stays"]
        assert (folder / "begun").read_text().split() == ["runs", "stays"]
        assert (folder / "cancelled").read_text() == "runs"
    assert here.unwanted is None


def _in_order(folder: str) -> None:
    with lazy_of(helped.slow) as lazy:
        root = lazy.is_root
        priorities = {"first": 0, "low": -1, "high": 5, "middle": 0}
        futures = []
        for name, priority in priorities.items():
            futures.append(lazy.broadcast_async((folder, name) if root else None, key=name, priority=priority))
            if root and name == "first":
                until((Path(folder) / "begun").exists)
        if root:
            until(lambda: "3 queued" in lazy.dump())
            (Path(folder) / "go").touch()
        for future in futures:
            future.result(LIMIT_S)


def test_of_what_waits_for_a_helper_the_highest_priority_comes_first(tmp_path: Path) -> None:
    on_threads(_in_order, str(tmp_path))
    assert (tmp_path / "begun").read_text().split() == ["first", "high", "middle", "low"]


# Memory


def _keeps(change: bool) -> list[Any]:
    with lazy_of(helped.change if change else helped.keep) as lazy:
        seen = [value_of(lazy, np.full(100_000, float(n))) for n in range(8)]
        if lazy.is_root:  # what is kept is no copy
            until(lambda: lazy.stats().shared_slots == (0 if change else 8))
        return seen


def test_a_payload_that_a_helper_keeps_stays_as_it_is() -> None:
    for seen in on_threads(_keeps, False):
        assert seen == [[float(n) for n in range(last + 1)] for last in range(8)]


def test_a_payload_that_a_helper_changes_changes_for_nobody_else() -> None:
    assert on_threads(_keeps, True) == [[float(n) for n in range(8)]] * 2


def _grows(sizes: list[int]) -> None:
    with lazy_of(helped.grown, helpers=Helpers(2)) as lazy:
        for n in sizes:
            value = value_of(lazy, n)
            assert value["large"].nbytes == n
            assert (value["large"] == n % 251).all()
            assert (value["small"] == np.arange(7)).all()
            value["large"][:] = lazy.rank
            value["small"] += lazy.rank
        del value
        if lazy.is_root:
            until(lambda: lazy.stats().shared_slots == 0)


SIZES = [0, 1, 1000, 12_000, 13_001, 65_536, 65_537, 1_000_003, 20_000_001]


def test_values_of_all_sizes_arrive_and_are_private() -> None:
    on_threads(_grows, SIZES)


def test_values_arrive_where_no_process_may_read_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazycast.core.helpers.reading._readv", None)
    on_threads(_grows, SIZES)
