"""Helpers under each backend, in each kind of object: what arrives, where it was made, and what is said of it."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lazycast import (
    Auto,
    ConfigMismatchError,
    DecodeError,
    EncodeError,
    Helpers,
    LazyBroadcast,
    MaterializeError,
    RemoteError,
    Staged,
    TrustError,
    Tuning,
    launch,
    register_materializer,
)
from tests import helped

pytestmark = pytest.mark.usefixtures("warm_python")  # for ranks: helpers are interpreters of their own
ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 60.0
#: A rank that is alone has helpers in the conformance suite too.
RANKS = [pytest.param(1, marks=pytest.mark.exhaustive), 2]


def lazy_of(fn: Any, *, helpers: Helpers = Helpers(1), **options: Any) -> LazyBroadcast[Any, Any]:  # noqa: B008
    return LazyBroadcast(fn, placement=helpers, **{"timeout_s": LIMIT_S, **options})


def on_threads(fn: Callable[..., Any], *args: Any, ranks: int = 2) -> list[Any]:
    return launch(fn, ranks=ranks, backend="threads", args=args, timeout_s=200)


def value_of(lazy: LazyBroadcast[Any, Any], payload: Any, **more: Any) -> Any:
    return lazy.broadcast(payload if lazy.is_root else None, **more)


# On each backend, on one host and on several


def _made(root: int, shared_memory: bool | str) -> list[dict[str, Any]]:
    tuning = Tuning(shared_memory=shared_memory)
    with lazy_of(helped.who, root=root, tuning=tuning) as lazy:
        array = np.arange(200_000)
        found = [value_of(lazy, payload) for payload in (1, "text", array)]
        assert (found[2].pop("payload") == array).all()
        stats = lazy.stats()
        assert stats.placements == {"helpers": 3}
        return [*found, {"pid": os.getpid(), "helpers": stats.helpers, "hosts": stats.hosts}]


@pytest.mark.parametrize("backend", ["local", "torch", pytest.param("mpi", marks=pytest.mark.exhaustive)])
def test_helpers_of_the_leader_make_what_its_host_gets(backend: str) -> None:
    results = launch(_made, ranks=3, backend=backend, args=(1, "auto"), timeout_s=200)
    pids = [said["pid"] for *_, said in results]
    for rank, (*values, said) in enumerate(results):
        assert [value.get("payload") for value in values] == [1, "text", None]
        assert {value["pid"] for value in values}.isdisjoint(pids)
        assert {value["parent"] for value in values} == {pids[1]}, "the root is the leader"
        assert said["helpers"] == (1 if rank == 1 else 0)


def test_ranks_that_share_no_memory_have_helpers_of_their_own() -> None:
    results = launch(_made, ranks=2, args=(0, False), timeout_s=200)
    for *values, said in results:
        assert {value["parent"] for value in values} == {said["pid"]}
        assert said["helpers"] == 1


def _two_hosts() -> tuple[int, Any, Any]:
    rank = int(os.environ["LAZYCAST_RANK"])
    os.environ["LAZYCAST_HOST"] = f"host {rank // 2}"
    offset = np.float64(rank)
    with lazy_of(None) as lazy:
        # A closure, which the leader of the other host has as code alone; and a payload that came over the network.
        made = value_of(lazy, np.arange(300_000.0), materialize=lambda array: (os.getppid(), array + offset))
        again = value_of(lazy, 2, materialize=lambda n: (os.getppid(), n + offset))
        assert len(lazy.stats().hosts) == 2
        return os.getpid(), made, again


def test_each_host_makes_its_own() -> None:
    results = launch(_two_hosts, ranks=4, timeout_s=200)
    pids = [pid for pid, _, _ in results]
    for rank, (_, made, again) in enumerate(results):
        assert (made[0], again[0]) == (pids[rank // 2 * 2],) * 2
        assert (made[1] == np.arange(300_000.0)).all()  # of rank 0, whose materializer it is
        assert again[1] == 2.0


# Kinds of objects


def _staged() -> list[Any]:
    with lazy_of(Staged(helped.prepare, helped.finish)) as lazy:
        return [os.getpid(), *(value_of(lazy, np.full(n, 2.0)) for n in (10, 100_000))]


@pytest.mark.parametrize("ranks", RANKS)
def test_of_two_stages_a_helper_runs_the_first(ranks: int) -> None:
    for pid, small, large in launch(_staged, ranks=ranks, timeout_s=200):
        assert (small["pid"], large["pid"]) == (pid, pid)
        assert small["hint"]["pid"] == large["hint"]["pid"] != pid
        assert (small["hint"]["sum"], small["after"]) == (20.0, 30.0)
        assert (large["hint"]["sum"], large["after"]) == (200_000.0, 300_000.0)


def _each_its_own(values: str, agree: bool) -> bool:
    with lazy_of(helped.grown, values=values, agree=agree) as lazy:
        value = value_of(lazy, 300_000)
        return bool(value["large"].flags.writeable)


def test_values_are_what_the_object_says() -> None:
    assert on_threads(_each_its_own, "readonly", True) == [False, False]
    assert on_threads(_each_its_own, "readonly", True, ranks=1) == [False]
    assert on_threads(_each_its_own, "copy", False) == [True, True]


def _replicated(gives_up: bool) -> Any:
    with lazy_of(helped.who, replicated=True) as lazy:
        lazy.broadcast("both are there")
        first = lazy.broadcast({"n": np.arange(50_000)}, key="first")
        future = lazy.broadcast_async("second", key="second") if lazy.is_root or not gives_up else None
        if future is None:
            lazy.discard("second")
        second = None if future is None else future.result(LIMIT_S)["pid"]
        lazy.broadcast("both are done")
        return first["pid"], second


def test_replicated_payloads_go_to_helpers() -> None:
    for gives_up in (False, True):
        (one, other), (second, _) = on_threads(_replicated, gives_up)
        assert one == other == second != os.getpid()


def _plain() -> Any:
    with lazy_of(None) as lazy:
        return value_of(lazy, {"plain": 1}), lazy.stats().placements


def test_a_cast_without_a_materializer_needs_no_helper() -> None:
    for ranks in (1, 2):
        for value, _ in on_threads(_plain, ranks=ranks):
            assert value == {"plain": 1}


# Trust


def _data() -> list[Any]:
    register_materializer("helped.add", lambda payload: {"sum": float(payload.sum()), "by": os.getpid()})
    with lazy_of(None, trust="data") as lazy:
        from lazycast.materialize.materializers import _registered

        fn = _registered["helped.add"]
        found = [value_of(lazy, np.ones(n), materialize=fn if lazy.is_root else None) for n in (3, 100_000)]
        register_materializer("helped.add", lambda payload: {"sum": -1.0, "by": os.getpid()})
        fn = _registered["helped.add"]
        found.append(value_of(lazy, np.ones(3), materialize=fn if lazy.is_root else None))
        with pytest.raises(TrustError if lazy.is_root else RemoteError):
            value_of(lazy, 1, materialize=helped.who)
        return found


@pytest.mark.parametrize("ranks", RANKS)
def test_what_is_registered_gets_to_helpers(ranks: int) -> None:
    for found in launch(_data, ranks=ranks, timeout_s=200):
        assert [value["sum"] for value in found] == [3.0, 100_000.0, -1.0]
        assert os.getpid() not in {value["by"] for value in found}


def _unlisted() -> str:
    with lazy_of(helped.who, trust={"tests.helped.who"}) as lazy:
        with pytest.raises((TrustError, RemoteError)) as caught:
            value_of(lazy, 1, materialize=helped.raises)
        return str(caught.value) + str(value_of(lazy, 2)["payload"])


def test_what_is_not_listed_is_not_loaded() -> None:
    for text in on_threads(_unlisted):
        assert "'tests.helped.raises' is not one" in text
        assert text.endswith("2")


# What cannot be


def _no_value() -> list[str]:
    with lazy_of(helped.unpicklable) as lazy:
        kind = EncodeError if lazy.is_root else RemoteError
        with pytest.raises(kind) as caught:
            value_of(lazy, 1)
        assert value_of(lazy, 2, materialize=helped.who)["payload"] == 2
        return str(caught.value).splitlines()


@pytest.mark.parametrize("ranks", RANKS)
def test_a_value_that_cannot_leave_its_helper_is_an_error_that_says_which_part(ranks: int) -> None:
    for text, *_ in on_threads(_no_value, ranks=ranks):
        assert "what materializer 'unpicklable' made cannot leave its process in helper 0 on rank 0" in text
        assert "bad" in text


def _cannot_travel() -> str:
    lock = __import__("threading").Lock()
    with lazy_of(None) as lazy, pytest.raises((EncodeError, RemoteError)) as caught:
        value_of(lazy, 1, materialize=lambda payload: lock)
    return str(caught.value)


def test_a_materializer_that_cannot_travel_is_an_error_before_anything_is_sent() -> None:
    for ranks in (1, 2):
        for text in on_threads(_cannot_travel, ranks=ranks):
            assert "lock" in text


def _not_rebuilt() -> str:
    with lazy_of(None) as lazy, pytest.raises((DecodeError, EncodeError)) as caught:
        value_of(lazy, helped.OnlyHere() if lazy.is_root else None, materialize=helped.who)
    return str(caught.value)


def test_a_payload_that_a_helper_cannot_rebuild_is_an_error() -> None:
    for text in on_threads(_not_rebuilt):
        assert "what arrived could not be decoded in helper 0 on rank 0" in text
        assert "only where it was made" in text


# Beginning


def _begun(helpers: Helpers) -> Any:
    with lazy_of(helped.surroundings, helpers=helpers) as lazy:
        ready = lazy.stats().helpers
        return ready, value_of(lazy, [])["begun"]


def test_init_is_called_once_in_each_helper_before_the_object_is_there() -> None:
    assert on_threads(_begun, Helpers(2, init=helped.begin)) == [(2, True), (0, True)]
    assert on_threads(_begun, Helpers(2, init=helped.begin), ranks=1) == [(2, True)]
    assert on_threads(_begun, Helpers(1))[1] == (0, False)


def _no_beginning(helpers: Helpers, timeout_s: float) -> str:
    with pytest.raises(MaterializeError) as caught:
        lazy_of(helped.who, helpers=helpers, timeout_s=timeout_s)
    return str(caught.value)


def _no_beginning_of_a_late_leader() -> str:
    from lazycast.start.discovery import resolve

    if resolve("auto").rank == 0:
        time.sleep(1.0)  # so the others' time is over before its own
    return _no_beginning(Helpers(1, init=helped.begin_never), 3.0)


@pytest.mark.parametrize("ranks", RANKS)
def test_an_init_that_fails_fails_the_construction_on_every_rank(ranks: int) -> None:
    for text in on_threads(_no_beginning, Helpers(2, init=helped.fail_to_begin), LIMIT_S, ranks=ranks):
        assert re.search(r"its helpers could not begin: init raised in helper [01] on rank 0", text)
        assert "OSError: no such model" in text
    for text in on_threads(_no_beginning, Helpers(1, init=helped.die_at_begin), LIMIT_S, ranks=ranks):
        assert "was killed by SIGKILL before it had begun; it said: about to die" in text
    for text in on_threads(_no_beginning_of_a_late_leader, ranks=ranks):
        assert "helpers have not begun after" in text


def _init_cannot_travel() -> str:
    lock = __import__("threading").Lock()
    with pytest.raises(EncodeError) as caught:
        lazy_of(helped.who, helpers=Helpers(1, init=lambda: lock.acquire()))
    return str(caught.value)


def test_an_init_that_cannot_travel_fails_the_construction_on_every_rank() -> None:
    for ranks in (1, 2):
        for text in on_threads(_init_cannot_travel, ranks=ranks):
            assert "Helpers: init cannot travel to helpers" in text


def _differ(backend_ranks: int) -> str:
    from lazycast.start.discovery import resolve

    rank = resolve("auto").rank
    with pytest.raises(ConfigMismatchError) as caught:
        lazy_of(helped.who, helpers=Helpers(1 + rank))
    return str(caught.value)


def test_ranks_must_ask_for_the_same_helpers() -> None:
    for text in on_threads(_differ, 2):
        assert "helpers" in text


def test_helpers_that_cannot_begin_are_named_by_casts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr("multiprocessing.spawn._python_exe", str(broken))
    for text in on_threads(_casts_fail):
        assert "ended with exit code 3 before it had begun; it said: no such thing" in text


def _casts_fail() -> str:
    with lazy_of(helped.who) as lazy, pytest.raises(MaterializeError) as caught:
        value_of(lazy, 1)
    return str(caught.value)


def _kept() -> list[int]:
    with lazy_of(helped.count_up) as lazy:
        return [value_of(lazy, n) for n in range(4)]


def test_what_a_helper_keeps_it_keeps_as_long_as_it_lives() -> None:
    assert on_threads(_kept) == [[1, 2, 3, 4]] * 2


# Where they run

_NAMES = ["RANK", "LAZYCAST_RANK", "LAZYCAST_RENDEZVOUS", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MINE"]


def _faults(nbytes: int) -> list[int]:
    with lazy_of(helped.faults_of_an_array, helpers=Helpers(1)) as lazy:
        return [value_of(lazy, nbytes) for _ in range(4)]


def test_a_helper_keeps_the_memory_of_large_arrays_for_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    nbytes = 3 << 20
    assert max(on_threads(_faults, nbytes, ranks=1)[0][2:]) < 100, "pages that the system had to find"
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(64 << 10))  # what the user says counts: each is memory of its own
    assert min(on_threads(_faults, nbytes, ranks=1)[0][2:]) > 100


def _surroundings() -> Any:
    with lazy_of(helped.surroundings, helpers=Helpers(1, niceness=3)) as lazy:
        found = value_of(lazy, _NAMES)
        return {**found, "same path": found["path"] == sys.path, "rank's nice": os.nice(0), "session": os.getsid(0)}


def test_a_helper_has_what_its_leader_has_but_for_what_makes_a_rank(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINE", "yes")
    found = launch(_surroundings, ranks=2, timeout_s=200)[0]
    none_of_a_rank = dict.fromkeys(("RANK", "LAZYCAST_RANK", "LAZYCAST_RENDEZVOUS"))
    expected = {**none_of_a_rank, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "MINE": "yes"}
    assert found["env"] == expected
    assert found["nice"] == found["rank's nice"] + 3
    assert found["same path"]
    assert not found["main thread"]
    said = capfd.readouterr()
    assert said.out.splitlines() == ["[helper 0 of rank 0] printed"]
    assert said.err.splitlines() == ["[helper 0 of rank 0] in two lines", "[helper 0 of rank 0] of errors"]


@pytest.mark.exhaustive
def test_with_more_helpers_than_cores_the_figure_is_said(caplog: pytest.LogCaptureFixture) -> None:
    count = len(os.sched_getaffinity(0)) + 1
    with caplog.at_level(logging.WARNING, "lazycast"), lazy_of(helped.who, helpers=Helpers(count)) as lazy:
        lazy.broadcast(1)
    (text,) = [record.getMessage() for record in caplog.records if "Helpers" in record.getMessage()]
    assert f"Helpers({count})" in text
    assert f"may use {count - 1} cores" in text


_PROGRAM = """
import sys
from dataclasses import dataclass
from lazycast import Helpers, LazyBroadcast

@dataclass
class Value:
    n: int

def make(payload):
    assert isinstance(payload, Value), type(payload)
    return Value(payload.n + 1)

def run():
    with LazyBroadcast(make, placement=Helpers(1), timeout_s=60) as lazy:
        for _ in range(2):
            value = lazy.broadcast(Value(1) if lazy.is_root else None)
            assert value == Value(2) and type(value) is Value
        print(f"rank {lazy.rank} has it\\n", end="", flush=True)
"""


def _launched(program: Path, ranks: int) -> tuple[int, str, str]:
    code = f"""
import os, subprocess, sys
from pathlib import Path
from lazycast.start.commands import commands
from lazycast.start.launcher import start_all
import tempfile
processes = []
with tempfile.TemporaryDirectory() as folder:
    start_all(processes, commands("local", [sys.executable, {str(program)!r}], {ranks}, Path(folder)))
    sys.exit(max(process.wait() for process in processes))
"""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, env=env, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.cold  # the program is what the interpreter was started with
@pytest.mark.parametrize("ranks", RANKS)
def test_classes_of_the_program_are_the_same_in_helpers_and_on_ranks(tmp_path: Path, ranks: int) -> None:
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM + '\nif __name__ == "__main__":\n    run()\n')
    code, said, errors = _launched(program, ranks)
    assert (code, errors) == (0, "")
    assert sorted(said.splitlines()) == [f"rank {rank} has it" for rank in range(ranks)]


_NAMES_OF_OURS = """
from lazycast import Each, Helpers, LazyBroadcast, launch

def work(number):
    return number + 1

def path(number):
    return number + 2

def json(number):
    return number + 3

def rank():
    found = []
    for fn in (work, path, json):
        with LazyBroadcast(Each(fn), placement=Helpers(1), timeout_s=60) as lazy:
            found += lazy.broadcast([1])
    return found

if __name__ == "__main__":
    print(launch(rank, ranks=1, backend="threads"))
"""


@pytest.mark.exhaustive
@pytest.mark.cold  # the program is what the interpreter was started with
def test_functions_of_the_program_are_not_mistaken_for_names_of_what_starts_a_helper(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_NAMES_OF_OURS)
    assert _launched(program, 1) == (0, "[[2, 3, 4]]\n", "")


@pytest.mark.exhaustive
@pytest.mark.cold
def test_a_program_that_is_not_guarded_is_told_so(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(_PROGRAM + "\nrun()\n")
    code, _, errors = _launched(program, 2)
    assert code == 1
    assert "could not be run in a helper: RuntimeError: LazyBroadcast() is called while a helper runs" in errors
    assert 'below `if __name__ == "__main__":`' in errors


# What is said of them


def _looked_at(folder: str) -> Any:
    with lazy_of(helped.who, helpers=Helpers(2)) as lazy, lazy.trace(folder):
        for n in range(3):
            value_of(lazy, n)
        while lazy.is_root and lazy.stats().helpers < 2:
            time.sleep(0.01)
        return lazy.dump(), str(lazy.stats()), lazy.stats().materialize.count


def test_helpers_are_seen_in_dumps_figures_and_traces(tmp_path: Path) -> None:
    (dump, figures, count), (_, other_figures, other_count) = on_threads(_looked_at, str(tmp_path))
    assert re.search(r"helper 0: process \d+, is free, \d made", dump)
    assert "2 ready, 0 at work, 0 lost" in figures
    assert "ready" not in other_figures
    assert (count, other_count) == (3, 0)
    events = [event for path in tmp_path.glob("*rank0*") for event in json.loads(path.read_text())]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    tracks = [names[event["tid"]] for event in events if event["name"] == "materialize"]
    assert len(tracks) == 3
    assert set(tracks) <= {"helper 0", "helper 1"}


@pytest.mark.exhaustive
def test_helpers_are_counted_for_prometheus() -> None:
    import prometheus_client

    from lazycast.watch.prometheus import Collector

    registry = prometheus_client.CollectorRegistry()
    with lazy_of(helped.crash_or, helpers=Helpers(1, init=helped.begin), name="counted") as lazy:
        registry.register(Collector(lazy))
        labels = {"name": "counted", "rank": "0"}
        assert registry.get_sample_value("lazycast_helpers", labels) == 1
        assert registry.get_sample_value("lazycast_busy_helpers", labels) == 0
        with pytest.raises(MaterializeError):
            lazy.broadcast("crash")
        assert lazy.broadcast("after")["payload"] == "after"
        assert registry.get_sample_value("lazycast_lost_helpers_total", labels) == 2


# Where helpers are one placement among others


def _settle(lazy: LazyBroadcast[Any, Any], least: int, most: int) -> list[Any]:
    """Cast until the root has come to helpers, or so often; return who has made each value."""
    made: list[Any] = []
    for n in range(most):
        over = n >= least and lazy.is_root and "helpers" in [one.placement for one in lazy.stats().standings]
        pid = value_of(lazy, "over" if over else n)
        if pid == "over":
            break
        made.append(pid)
        if n == 0:
            time.sleep(1.0)  # helpers begin meanwhile
    return made


def _chosen(fn: Any, least: int, most: int) -> dict[str, Any]:
    with LazyBroadcast(fn, placement=Auto(helpers=Helpers(1, niceness=0)), timeout_s=LIMIT_S) as lazy:
        made = _settle(lazy, least, most)
        stats = lazy.stats()
        standing = max(stats.standings, key=lambda one: one.casts, default=None)
        return {"pid": os.getpid(), "made": made, "stats": stats, "standing": standing}


@pytest.mark.parametrize("ranks", RANKS)
def test_what_holds_the_lock_comes_to_be_made_by_helpers(ranks: int) -> None:
    found = launch(_chosen, ranks=ranks, args=(helped.computes, 20, 400), timeout_s=200)
    own = {said["pid"] for said in found}
    assert found[0]["made"][0] in own, "nothing was known yet"
    standing, stats = found[0]["standing"], found[0]["stats"]
    assert standing.placement == "helpers", standing
    assert standing.costs["helpers"].stall_s == 0.0 < standing.costs["every"].stall_s
    assert standing.reason.startswith("helpers: ")
    by_helpers = [pid for pid in found[0]["made"] if pid not in own]
    assert len(by_helpers) == standing.costs["helpers"].casts > 0
    assert stats.placements["helpers"] >= len(by_helpers)
    for said in found[1:]:
        assert [pid for pid in said["made"] if pid not in own] == by_helpers


@pytest.mark.parametrize("ranks", RANKS)
def test_what_is_cheap_stays_with_the_ranks(ranks: int) -> None:
    found = launch(_chosen, ranks=ranks, args=(helped.is_cheap, 60, 60), timeout_s=200)
    standing, stats = found[0]["standing"], found[0]["stats"]
    assert standing.placement != "helpers", standing
    assert stats.placements.get("helpers", 0) < 20, stats.placements


def _with_helpers_chosen(lazy: LazyBroadcast[Any, Any]) -> None:
    """Have the root choose helpers, whatever it has measured."""
    lane: Any = lazy._lane
    if lazy.is_root:
        placing = lane._placing if lazy.size == 1 else lane.sending.placing
        choose = placing.place

        def place(*args: Any) -> tuple[str, str]:
            choose(*args)
            return "helpers", "for this test"

        placing.place = place


def _does_not_travel() -> tuple[list[bool], Any]:
    with LazyBroadcast(helped.computes, placement=Auto(helpers=Helpers(1)), timeout_s=LIMIT_S) as lazy:
        _with_helpers_chosen(lazy)
        values = [value_of(lazy, -n) for n in range(1, 4)]
        return [hasattr(value, "acquire") for value in values], lazy.stats()


@pytest.mark.parametrize("ranks", RANKS)
def test_a_choice_of_helpers_fails_no_value_that_does_not_pickle(ranks: int) -> None:
    found = launch(_does_not_travel, ranks=ranks, timeout_s=200)
    for locks, stats in found:
        assert locks == [True] * 3
        assert stats.placements == {"helpers": 3}
        assert stats.failed == {}
    _, root = found[0]
    assert root.unshared == 3
    assert "pickle" in root.unshared_reason


def _die_for_good(broken: str) -> tuple[list[int], Any, list[int]]:
    with LazyBroadcast(helped.who, placement=Auto(helpers=Helpers(1)), timeout_s=LIMIT_S) as lazy:
        _with_helpers_chosen(lazy)
        first = value_of(lazy, 0)["pid"]
        if lazy.is_root:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("multiprocessing.spawn._python_exe", broken)
                lane: Any = lazy._lane
                os.kill(first, signal.SIGKILL)
                while not lane.engine.maker.pool.lost:  # or the next cast may have killed it
                    time.sleep(0.001)
                values = [value_of(lazy, n)["pid"] for n in range(3)]
        else:
            values = [value_of(lazy, n)["pid"] for n in range(3)]
        return [first, os.getpid()], lazy.stats(), values


@pytest.mark.parametrize("ranks", RANKS)
def test_a_choice_of_helpers_that_cannot_begin_any_more_fails_nothing(ranks: int, tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho no such thing >&2\nexit 3\n")
    broken.chmod(0o755)
    for (first, own), stats, values in launch(_die_for_good, ranks=ranks, args=(str(broken),), timeout_s=200):
        assert values == [own] * 3 != [first] * 3
        assert stats.failed == {}
        if ranks == 1:
            assert "no such thing" in stats.unshared_reason


def _crashes() -> str:
    with LazyBroadcast(helped.computes, placement=Auto(helpers=Helpers(1)), timeout_s=LIMIT_S) as lazy:
        _with_helpers_chosen(lazy)
        with pytest.raises(MaterializeError) as caught:
            value_of(lazy, 1 << 40)
        return str(caught.value)


@pytest.mark.exhaustive
@pytest.mark.parametrize("ranks", RANKS)
def test_what_kills_the_helpers_that_were_chosen_is_an_error_on_every_rank(ranks: int) -> None:
    for said in launch(_crashes, ranks=ranks, timeout_s=200):
        assert "SIGSEGV" in said
