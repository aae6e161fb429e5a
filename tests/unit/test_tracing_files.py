"""Trace files: what is written is read, also after an accident, and merged onto one clock."""

from __future__ import annotations

import json
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lazycast import ClosedError, LazyBroadcast, MaterializeError
from lazycast.testing.kit import raises
from lazycast.watch.tracing import clocks, events, tracer
from lazycast.watch.tracing.events import TraceError
from lazycast.watch.tracing.merge import merge, read_all
from lazycast.watch.tracing.tracer import Tracer

ABOUT = {"object": "0123456789abcdef", "name": "tp", "size": 2, "root": 0, "host": "h", "clock": "c", "hosts": [[0, 1]]}


class Cast(NamedTuple):
    seq: int
    key: str | int | bytes | None = None
    placement: str = "every"
    nbytes: int = 5


def traced(folder: Path, rank: int = 0, **about: Any) -> Tracer:
    return Tracer(folder, {**ABOUT, "rank": rank, **about})


def test_a_file_is_json_and_holds_what_was_noted(tmp_path: Path) -> None:
    with traced(tmp_path / "made") as one:
        one.took("encode", 1.0, 1.5, Cast(7, b"\xff"))
        one.took("total", 1.0, 3.0, Cast(7, "k"), call=3)
        one.happened("failed", None, error="OSError", text="\ud800" + "x" * 1000)
    said = json.loads(one.path.read_text())
    assert list(events.problems(said)) == []
    by_name = {event["name"]: event for event in said if event["ph"] in "Xbi"}
    encode, total, failed = by_name["encode"], by_name["total"], by_name["failed"]
    assert (encode["ts"], encode["dur"]) == (1e6, 0.5e6)
    assert encode["args"] == {"seq": 7, "key": "ff", "placement": "every", "nbytes": 5}
    assert total["args"]["call"] == 3
    assert failed["args"]["error"] == "OSError"
    assert len(failed["args"]["text"]) <= 300
    threads = {event["tid"]: event["args"]["name"] for event in said if event["name"] == "thread_name"}
    assert threads[encode["tid"]] == threading.current_thread().name
    assert said[1]["args"]["name"] == "rank 0 (h) tp"
    trace = events.read(one.path)
    assert trace.whole
    assert trace.damaged == 0
    assert trace.about["rank"] == 0


def test_what_is_noted_is_in_the_file_soon_and_nothing_after_the_end(tmp_path: Path) -> None:
    one = traced(tmp_path)
    one.took("encode", 1.0, 2.0, None)
    until_s = time.monotonic() + 60
    while b'"encode"' not in one.path.read_bytes():
        assert time.monotonic() < until_s
        time.sleep(0.01)
    one.stop()
    one.took("decode", 1.0, 2.0, None)
    one.stop()
    assert b'"decode"' not in one.path.read_bytes()


def test_what_is_too_much_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracer, "_MAX_WAITING", 10)
    monkeypatch.setattr(tracer, "_EVERY_S", 60.0)
    with traced(tmp_path) as one:
        for _ in range(25):
            one.took("encode", 1.0, 2.0, None)
    said = events.read(one.path).events
    assert sum(event["name"] == "encode" for event in said) == 10
    assert [event["args"] for event in said if event["name"] == "events left out"] == [{"count": 15}]


def test_a_full_disk_ends_the_trace_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one = traced(tmp_path)

    def full(data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(one, "_file", type("Full", (), {"write": staticmethod(full), "close": one._file.close})())
    one.took("encode", 1.0, 2.0, None)
    one.stop()
    assert "No space left on device" in caplog.text
    one.took("encode", 1.0, 2.0, None)  # whoever notes does not hear of it


@pytest.mark.parametrize("cut", range(3, 400, 23))
def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path: Path, cut: int) -> None:
    with traced(tmp_path) as one:
        for n in range(5):
            one.took("encode", n, n + 1, Cast(n))
    whole = events.read(one.path)
    one.path.write_bytes(one.path.read_bytes()[:-cut])
    trace = events.read(one.path)
    assert not trace.whole
    assert trace.damaged <= 1
    assert trace.events == whole.events[: len(trace.events)]
    _, notes = read_all(tmp_path)
    assert any("has no end: its process died or still runs" in note for note in notes)


def test_what_is_no_trace_is_refused_or_left_out(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="there is no trace in"):
        read_all(tmp_path)
    (tmp_path / "other.json").write_text('{"a": 1}\n')
    with pytest.raises(TraceError, match="is not a trace that lazycast has written"):
        events.read(tmp_path / "other.json")
    traced(tmp_path).stop()
    traces, notes = read_all(tmp_path)
    assert len(traces) == 1
    assert notes == [f"left out: {tmp_path / 'other.json'} is not a trace that lazycast has written"]


def test_the_check_of_a_trace_finds_what_is_wrong() -> None:
    good = {"name": "n", "cat": "c", "pid": 1, "tid": 1, "ts": 1.0}
    bad = [
        {**good, "ph": "X"},
        {**good, "ph": "X", "dur": -1.0},
        {**good, "ph": "b", "id": "1"},
        {**good, "ph": "s", "id": 2},
        {**good, "ph": "s", "id": "job.send.3"},
        {**good, "ph": "i", "s": "t", "ts": -1},
        {"ph": "?"},
    ]
    found = "\n".join(events.problems(bad))
    for text in (
        "lacks dur",
        "takes -1.0",
        "has no end",
        "flow 2 is",
        "flow 'job.send.3', which is no integer",
        "begins at -1",
        "phase '?'",
    ):
        assert text in found
    assert list(events.problems([{**good, "ph": "X", "dur": 0.0}])) == []


def test_slices_of_a_thread_must_nest_to_the_nanosecond_and_begin_from_the_outside() -> None:
    outer = {"name": "outer", "cat": "c", "pid": 1, "tid": 1, "ts": 1.0, "ph": "X", "dur": 2.0}
    inner = {**outer, "name": "inner", "dur": 1.0}
    assert list(events.problems([outer, inner, {**inner, "ts": 2.0}])) == []
    assert list(events.problems([outer, {**inner, "ts": 2.001, "tid": 2}])) == []
    for wrong in ([outer, {**inner, "ts": 2.001}], [inner, outer]):
        assert any("is not inside" in problem for problem in events.problems(wrong))


def test_a_thread_has_one_name() -> None:
    name = {"name": "thread_name", "pid": 1, "tid": 1, "ph": "M", "ts": 0, "args": {"name": "a"}}
    assert list(events.problems([name, name, {**name, "tid": 2, "args": {"name": "b"}}])) == []
    (problem,) = events.problems([name, {**name, "args": {"name": "b"}}])
    assert "is named 'a' and 'b'" in problem


def test_what_ends_together_is_written_as_ending_together(tmp_path: Path) -> None:
    with traced(tmp_path) as one:
        for n in range(200):
            began_s, end_s = 5000 + n / 7, 5000 + n / 7 + 0.0123456
            one.took("encode", began_s + 0.0012344 * n / 200, end_s, None)
            one.took("broadcast", began_s, end_s, None)
    merged = merge(*read_all(tmp_path))
    assert list(events.problems(merged.events)) == []


def test_threads_of_ranks_and_of_later_traces_are_told_apart(tmp_path: Path) -> None:
    for rank in (0, 1, 0):
        with traced(tmp_path, rank) as one:
            one.took("encode", 1.0, 2.0, None)
    merged = merge(*read_all(tmp_path))
    slices = [event for event in merged.events if event["ph"] == "X"]
    assert len({event["pid"] for event in slices}) == 2
    assert len({event["tid"] for event in slices}) == 3
    assert list(events.problems(merged.events)) == []


# Clocks


def test_the_offset_lies_between_the_tightest_bounds_and_the_error_holds() -> None:
    true_us, here = 5e6, 1000.0  # the rank's clock is 5 s behind the root's
    down = [(here + true_us + n, here + n + delay) for n, delay in enumerate((900.0, 120.0, 400.0))]
    up = [(here + n, here + n + true_us + delay) for n, delay in enumerate((800.0, 80.0, 500.0))]
    offset = clocks.estimate(down, up, wall_us=0.0)
    assert offset.how == "messages both ways"
    assert offset.error_us == pytest.approx((120 + 80) / 2)
    assert abs(offset.us - true_us) <= offset.error_us


def test_without_messages_both_ways_the_clocks_of_day_help() -> None:
    assert clocks.estimate([], [], wall_us=7.0)[:2] == (7.0, None)
    assert clocks.estimate([(100.0, 50.0)], [], wall_us=7.0)[:2] == (50.0, None), "a bound that they break holds"
    assert clocks.estimate([], [(50.0, 100.0)], wall_us=70.0)[:2] == (50.0, None)
    assert "contradict" in clocks.estimate([(100.0, 0.0)], [(0.0, 90.0)], wall_us=0.0).how


def test_another_clock_is_aligned_by_what_the_ranks_have_told_each_other(tmp_path: Path) -> None:
    ahead_s = 1000.0  # what the second host's clock is ahead
    with traced(tmp_path, 0) as root, traced(tmp_path, 1, host="far", clock="d") as far:
        for n in range(5):
            at = 10.0 + n
            root.took("send", at, at + 0.001, Cast(n))
            far.took("arrive", at + 0.002 + ahead_s, at + 0.003 + ahead_s, Cast(n))
            far._put(("said", at + 0.004 + ahead_s, None, 1, None, {"rank": 1, "kind": "report", "seq": n}))
            root._put(("heard", at + 0.006, None, 1, None, {"rank": 1, "kind": "report", "seq": n}))
    merged = merge(*read_all(tmp_path))
    offset = merged.offsets[far.path]
    assert offset.us == pytest.approx(-ahead_s * 1e6, abs=1.0)
    assert offset.error_us == pytest.approx(2000.0, abs=1.0)
    assert any("rank 1 on far has another clock: aligned by messages both ways" in note for note in merged.notes)
    assert list(events.problems(merged.events)) == []
    transfers = [event for event in merged.events if event["name"] == "transfer"]
    assert len(transfers) == 10
    sends = {e["args"]["seq"]: e["ts"] for e in merged.events if e["name"] == "send"}
    arrivals = {e["args"]["seq"]: e["ts"] for e in merged.events if e["name"] == "arrive"}
    assert all(0 <= arrivals[n] - sends[n] <= 4000 for n in range(5))


def test_a_word_that_was_said_twice_tells_nothing_of_the_clocks(tmp_path: Path) -> None:
    """A rank that speaks for others says of one cast who has asked for it as they ask."""
    with traced(tmp_path, 0) as root, traced(tmp_path, 1, host="far", clock="d") as far:
        for n in range(2):
            root.took("send", 10.0 + n, 10.001 + n, Cast(n))
            far.took("arrive", 10.002 + n, 10.003 + n, Cast(n))
        for seq, at in ((0, 10.1), (1, 11.1), (1, 11.3)):
            far._put(("said", at, None, 1, None, {"rank": 1, "kind": "read", "seq": seq}))
            root._put(("heard", at + 0.002, None, 1, None, {"rank": 1, "kind": "read", "seq": seq}))
    offset = merge(*read_all(tmp_path)).offsets[far.path]
    assert offset.how == "messages both ways"


# An object


def test_an_object_is_traced_while_it_is_asked_for(tmp_path: Path) -> None:
    def refuse(payload: object) -> object:
        raise ValueError("no such luck")

    with LazyBroadcast(len, name="odd name/../x") as lazy:
        lazy.broadcast(b"before")
        with lazy.trace(tmp_path) as trace:
            with pytest.raises(ValueError, match="is being traced to"):
                lazy.trace(tmp_path)
            lazy.broadcast(b"1", key="k")
            raises(MaterializeError, "luck", lambda: lazy.broadcast(b"", materialize=refuse))
        lazy.broadcast(b"after")
        again = lazy.trace(tmp_path)
        lazy.broadcast(b"again")
    assert trace.path.parent == again.path.parent == tmp_path
    said = events.read(trace.path)
    spans = [(event["name"], event["args"].get("seq")) for event in said.events if event["ph"] in "Xb"]
    assert sorted(spans, key=str) == [
        ("broadcast", None),
        ("broadcast", None),
        ("materialize", 2),
        ("materialize", 3),
        ("total", 2),
        ("total", 3),
    ]
    (failed,) = [event for event in said.events if event["name"] == "failed"]
    assert failed["args"]["error"] == "MaterializeError"
    assert "no such luck" in failed["args"]["text"]
    assert events.read(again.path).whole, "close() ends a trace"
    raises(ClosedError, "closed on this rank", lambda: lazy.trace(tmp_path))
    merged = merge(*read_all(tmp_path))
    assert list(events.problems(merged.events)) == []
    assert len({event["pid"] for event in merged.events}) == 1


def test_the_environment_traces_every_object(tmp_path: Path, run_python: Callable[..., str]) -> None:
    code = """
import os, sys
os.environ["LAZYCAST_TRACE"] = sys.argv[1]
from lazycast import LazyBroadcast
for name in ("a", "b"):
    with LazyBroadcast(len, name=name) as lazy:
        lazy.broadcast(b"1")
"""
    run_python(code, str(tmp_path / "traces"))
    traces, notes = read_all(tmp_path / "traces")
    assert [trace.about["name"] for trace in traces] == ["a", "b"]
    assert notes == []


def test_a_folder_that_cannot_be_made_is_no_reason_not_to_cast(tmp_path: Path, run_python: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    code = """
import os, sys
os.environ["LAZYCAST_TRACE"] = sys.argv[1]
from lazycast import LazyBroadcast
with LazyBroadcast(len) as lazy:
    print(lazy.broadcast(b"1"))
    try:
        lazy.trace(sys.argv[1])
    except OSError as exc:
        print(type(exc).__name__)
"""
    assert run_python(code, str(tmp_path / "file")).split() == ["1", "FileExistsError"]


def test_what_waits_to_be_written_keeps_nothing_alive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Call:
        seq, key, placement = 1, None, ""

    monkeypatch.setattr(tracer, "_EVERY_S", 60.0)
    with traced(tmp_path) as one:
        call = Call()
        gone = weakref.ref(call)
        one.took("queue", 1.0, 2.0, call)
        one.happened("failed", call)
        del call
        assert gone() is None
    (queue,) = [event for event in events.read(one.path).events if event["ph"] == "b"]
    assert queue["args"] == {"seq": 1, "key": None}


def test_threads_that_note_for_the_first_time_at_once_get_different_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, here = threading.Barrier(2), threading.current_thread

    def named() -> threading.Thread:
        if here().name.startswith("notes"):
            both.wait(60)
        return here()

    with traced(tmp_path) as one:
        threads = [
            threading.Thread(target=one.took, args=("encode", n, n + 1, None), name=f"notes {n}") for n in (1, 2)
        ]
        with monkeypatch.context() as patched:
            patched.setattr(threading, "current_thread", named)
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(20)
    said = events.read(one.path).events
    assert len({event["tid"] for event in said if event["name"] == "encode"}) == 2
    names = [event["args"]["name"] for event in said if event["name"] == "thread_name"]
    assert {"notes 1", "notes 2"} <= set(names)


def test_stopping_does_not_wait_for_a_disk_that_takes_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracer, "_STOPS_WITHIN_S", 0.05)
    one, answers = traced(tmp_path), threading.Event()

    def stuck(data: bytes) -> int:
        answers.wait(60)
        return len(data)

    file = one._file
    monkeypatch.setattr(one, "_file", type("Stuck", (), {"write": staticmethod(stuck), "close": file.close})())
    one.took("encode", 1.0, 2.0, None)
    stopping = threading.Thread(target=one.stop, daemon=True)
    stopping.start()
    stopping.join(20)
    try:
        assert not stopping.is_alive()
        assert f"the trace {one.path} is not all written after 0.1 s" in caplog.text
    finally:
        answers.set()
        one._thread.join(20)
    assert file.closed


def test_a_forked_child_does_not_hold_the_file_open(tmp_path: Path, run_python: Callable[..., str]) -> None:
    code = f"""
import os, pathlib, lazycast
from lazycast import LazyBroadcast

def held():
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{{fd}}"))
        except FileNotFoundError:
            pass  # the descriptor that listed them
    return str(tracer.path) in links

with LazyBroadcast(len) as lazy, lazy.trace(pathlib.Path({str(tmp_path / "traces")!r})) as tracer:
    print(held(), flush=True)
    pid = os.fork()
    if pid == 0:
        print(held(), flush=True)
        tracer.stop()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    lazy.broadcast([1])
"""
    assert run_python(code).split() == ["True", "False"]
    (path,) = (tmp_path / "traces").iterdir()
    assert events.read(path).whole


def test_a_child_that_is_forked_while_a_trace_ends_does_not_hold_the_file_open(
    tmp_path: Path, run_python: Callable[..., str]
) -> None:
    """The object has let go of its tracer by then, but the thread that writes is not done."""
    code = f"""
import os, pathlib, threading
from lazycast import LazyBroadcast
from lazycast.watch.tracing.tracer import Tracer

writing, go_on, write = threading.Event(), threading.Event(), Tracer._write

def slow(self):
    if self._stopping.is_set():
        writing.set()
        go_on.wait(20)
    write(self)

Tracer._write = slow

def held():
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{{fd}}"))
        except FileNotFoundError:
            pass  # the descriptor that listed them
    return str(tracer.path) in links

with LazyBroadcast(len) as lazy:
    tracer = lazy.trace(pathlib.Path({str(tmp_path / "traces")!r}))
    stopping = threading.Thread(target=tracer.stop)
    stopping.start()
    assert writing.wait(20)
    print(held(), flush=True)
    pid = os.fork()
    if pid == 0:
        print(held(), flush=True)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    go_on.set()
    stopping.join()
"""
    assert run_python(code).split() == ["True", "False"]
    (path,) = (tmp_path / "traces").iterdir()
    assert events.read(path).whole


def test_a_merged_trace_says_when_it_began(tmp_path: Path) -> None:
    before_ns = time.time_ns()
    with traced(tmp_path) as one:
        began_s = time.monotonic()
        one.took("encode", began_s, began_s + 0.5, Cast(1))
    merged = merge(*read_all(tmp_path))
    (encode,) = (event for event in merged.events if event["name"] == "encode")
    assert before_ns - 2_000_000 <= merged.base_ns + encode["ts"] * 1e3 <= time.time_ns() + 2_000_000
