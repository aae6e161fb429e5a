"""What is logged of an object: its beginning, failed calls, a few of many, and ranks that are lost or silent."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lazycast import LazyBroadcast, MaterializeError, PeerLostError, RemoteError, Tuning
from lazycast.backends.local import LocalBackend
from lazycast.errors import CastTimeoutError
from lazycast.net.heartbeat import Heartbeat
from lazycast.testing.kit import raises
from lazycast.watch.notices import BURST, WINDOW_S, Notices

Together = Callable[..., list[Any]]


class Log(logging.Handler):
    """Keeps the records that have fields."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: list[logging.LogRecord] = []
        self._more = threading.Condition()

    def emit(self, record: logging.LogRecord) -> None:
        with self._more:
            self.records.append(record)
            self._more.notify_all()

    def of(self, kind: str, rank: int | None = None) -> list[dict[str, Any]]:
        """Return the fields of the records of a kind, and their level and text, oldest first."""
        found = []
        for record in list(self.records):
            fields = {k.removeprefix("lazycast_"): v for k, v in vars(record).items() if k.startswith("lazycast_")}
            if fields.get("kind") == kind and rank in (None, fields["rank"]):
                found.append({**fields, "level": record.levelname, "text": record.getMessage()})
        return found

    def wait(self, kind: str, count: int, rank: int | None = None) -> list[dict[str, Any]]:
        """Wait until there are so many, and return them."""
        with self._more:
            assert self._more.wait_for(lambda: len(self.of(kind, rank)) >= count, 20), (kind, self.records)
        return self.of(kind, rank)


@pytest.fixture
def log() -> Iterator[Log]:
    handler, logger = Log(), logging.getLogger("lazycast")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.setLevel(level)
    logger.removeHandler(handler)


def group(together: Together, size: int, **options: Any) -> list[LazyBroadcast[Any, Any]]:
    options = {"timeout_s": 60, **options}
    return together(*(lambda b=b: LazyBroadcast(backend=b, name="tp", **options) for b in LocalBackend.threads(size)))


def refuse(payload: object) -> object:
    raise ValueError("no\nsuch thing")


def test_the_beginning_is_one_line(log: Log, together: Together) -> None:
    objects = group(together, 3, root=1, placement="shard")
    try:
        for rank, lazy in enumerate(objects):
            (said,) = log.of("constructed", rank)
            hosts = lazy.stats().hosts
            assert hosts == ((0, 1, 2),)
            others = tuple({0, 1, 2} - {rank})
            assert (said["level"], said["object"], said["size"], said["root"]) == ("INFO", "tp", 3, 1)
            assert (said["backend"], said["placement"], said["hosts"]) == ("local", "shard", hosts)
            assert said["shares_with"] == others
            text = said["text"]
            assert text.startswith("lazycast 'tp': ready on ")
            assert "\n" not in text
            assert "3 ranks on 1 host, root 1; backend local; placement shard" in text
            assert text.endswith(f"rank {rank} shares memory with ranks {others[0]}, {others[1]}")
    finally:
        together(*(lazy.close for lazy in objects))
    assert {record.lazycast_kind for record in log.records} == {"constructed"}  # type: ignore[attr-defined]


@pytest.mark.parametrize("size", [1, 2])
def test_the_beginning_says_why_no_memory_is_shared(log: Log, together: Together, size: int) -> None:
    objects = group(together, size, tuning=Tuning(shared_memory=False))
    together(*(lazy.close for lazy in objects))
    for rank in range(size):
        (said,) = log.of("constructed", rank)
        assert said["shares_with"] == ()
        why = "there is one rank" if size == 1 else "shared_memory=False"
        assert f"{size} rank{'s' * (size > 1)} on {size} host" in said["text"]
        assert said["text"].endswith(f"rank {rank} shares no memory: {why}")


def test_a_failed_call_is_a_warning_on_every_rank(log: Log, together: Together) -> None:
    objects = group(together, 2, placement="every")

    def fail(lazy: LazyBroadcast[Any, Any]) -> None:
        assert lazy.broadcast(7) == 7
        raises(MaterializeError, "no", lambda: lazy.broadcast(b"", materialize=refuse, key="req-1"))
        if lazy.is_root:
            raises(TypeError, "must be callable", lambda: lazy.broadcast(b"", materialize=5))  # type: ignore[arg-type]
        else:
            raises(RemoteError, "must be callable", lambda: lazy.broadcast())

    try:
        together(*(lambda lazy=lazy: fail(lazy) for lazy in objects))
        seqs = [one["seq"] for one in log.wait("failed", 2, 1)]  # code that travels takes a number of its own
        assert 1 < seqs[0] < seqs[1]
        for rank in (0, 1):
            first, second = log.wait("failed", 2, rank)
            assert first["level"] == "WARNING"
            assert (first["object"], first["rank"], first["error"]) == ("tp", rank, "MaterializeError")
            assert (first["key"], first["seq"], first["count"]) == ("req-1", seqs[0], 1)
            assert first["peer"] in (0, 1)
            assert first["text"].startswith("lazycast 'tp': a call failed: MaterializeError: broadcast #")
            assert f"on rank {rank} of 2" in first["text"]
            assert "ValueError: no\\nsuch thing" in first["text"], "a line break of a text would forge a record"
            assert second["key"] is None
            assert (second["error"], second["seq"]) == (("TypeError", "RemoteError")[rank], seqs[1])
            assert len(log.of("failed", rank)) == 2, "the call that got a value is no failure"
    finally:
        together(*(lazy.close for lazy in objects))


def test_of_many_failures_a_few_are_logged_and_the_rest_counted(log: Log) -> None:
    with LazyBroadcast(refuse, name="many") as lazy:
        for _ in range(BURST + 7):
            raises(MaterializeError, "no", lambda: lazy.broadcast(1))
        log.wait("failed", BURST)
        assert lazy.stats().failed == {"MaterializeError": BURST + 7}
        assert log.of("left out") == []
    assert len(log.of("failed")) == BURST
    (rest,) = log.of("left out")
    assert (rest["level"], rest["object"], rest["error"], rest["count"]) == ("WARNING", "many", "MaterializeError", 7)
    assert rest["text"] == "lazycast 'many': 7 more calls failed within 10 s: MaterializeError"


def test_the_limit_is_that_of_one_class_and_one_window(log: Log) -> None:
    notices = Notices("x", 3, threading.RLock())
    assert notices.due_s is None
    for _ in range(BURST + 2):
        notices.failed(ValueError("a"), 100.0, key=b"k", seq=9)
    notices.failed(KeyError("b"), 100.5, key=None, seq=None)
    assert notices.due_s == 100.5
    assert notices.tell(101.0) == 100.0 + WINDOW_S == notices.due_s, "then the rest is told"
    said = log.of("failed")
    assert [one["error"] for one in said] == ["ValueError"] * BURST + ["KeyError"]
    assert (said[0]["key"], said[0]["seq"], said[0]["peer"], said[0]["rank"]) == (b"k", 9, None, 3)
    assert notices.tell(100.0 + WINDOW_S) is None
    assert [(one["error"], one["count"]) for one in log.of("left out")] == [("ValueError", 2)]
    assert notices.due_s is None
    assert notices.tell(200.0, all_of_it=True) is None
    assert len(log.records) == BURST + 2, "nothing is told twice"

    notices.failed(ValueError("c"), 100.0 + WINDOW_S, key=None, seq=None)
    notices.tell(100.0 + WINDOW_S)
    assert log.of("failed")[-1]["text"] == "lazycast 'x': a call failed: ValueError: c", "a new window has begun"


def test_a_window_that_nobody_has_ended_is_told_with_the_next_failure(log: Log) -> None:
    notices = Notices("x", 0, threading.RLock())
    for _ in range(BURST + 1):
        notices.failed(ValueError("early"), 0.0, key=None, seq=None)
    notices.failed(ValueError("late"), 1000.0, key=None, seq=None)
    notices.tell(1000.0)
    assert [record.getMessage().rpartition(": ")[2] for record in log.records[-2:]] == ["ValueError", "late"]
    assert log.of("left out")[0]["text"] == "lazycast 'x': 1 more call failed within 10 s: ValueError"


class Hostile(Exception):
    def __str__(self) -> str:
        raise AssertionError("whoever notes a failure holds the lock")

    __repr__ = __str__
    args = property(__str__)  # type: ignore[assignment]
    rank = property(__str__)


def test_no_code_of_an_exception_runs_and_none_is_kept(log: Log) -> None:
    notices = Notices("x", 0, threading.RLock())
    exc = Hostile("what it was made with")
    gone = weakref.ref(exc)
    notices.failed(exc, 0.0, key=None, seq=None)
    notices.failed(ValueError(), 0.0, key=None, seq=None)
    notices.failed(ValueError("x" * 100_000), 0.0, key=None, seq=None)
    notices.tell(0.0)
    first, second, third = log.of("failed")
    assert first["text"] == "lazycast 'x': a call failed: Hostile: what it was made with"
    assert second["text"] == "lazycast 'x': a call failed: ValueError"
    assert len(third["text"]) < 2200
    assert "characters left out" in third["text"]
    del exc
    gc.collect()
    assert gone() is None, "a record keeps the exception"


def test_a_handler_that_raises_ends_no_cast(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            raise RuntimeError("a filter of somebody's")

    broken, logger = Broken(), logging.getLogger("lazycast")
    with LazyBroadcast(name="strong") as lazy:
        logger.addFilter(broken)
        try:
            raises(MaterializeError, "no", lambda: lazy.broadcast(1, materialize=refuse))
            deadline_s = time.monotonic() + 20
            while lazy._engine.notices.due_s is not None and time.monotonic() < deadline_s:
                time.sleep(0.01)
            assert lazy.broadcast(2) == 2
        finally:
            logger.removeFilter(broken)
        assert "strong-engine: lives" in lazy.dump()
    assert "RuntimeError: a filter of somebody's" in capsys.readouterr().err


def test_a_record_factory_that_sets_rank_is_no_conflict(log: Log) -> None:
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **more: Any) -> logging.LogRecord:
        record = before(*args, **more)
        record.rank, record.key = 17, "theirs"
        return record

    logging.setLogRecordFactory(factory)
    try:
        with LazyBroadcast(name="theirs"):
            pass
    finally:
        logging.setLogRecordFactory(before)
    (said,) = log.of("constructed")
    assert said["rank"] == 0
    assert log.records[0].rank == 17  # type: ignore[attr-defined]


def test_a_lost_rank_is_a_warning_that_names_it(log: Log, together: Together) -> None:
    objects = group(together, 2)
    try:
        future = objects[1].broadcast_async(key="k")
        objects[1]._lane.on_neighbour_gone(0, "end of file")  # type: ignore[union-attr]
        raises(PeerLostError, "rank 0", lambda: future.result(20))
        (said,) = log.wait("lost", 1, 1)
        assert (said["level"], said["object"], said["rank"], said["peer"]) == ("WARNING", "tp", 1, 0)
        assert "was lost: end of file" in said["text"]
        (failed,) = log.wait("failed", 1, 1)
        assert (failed["error"], failed["key"], failed["peer"]) == ("PeerLostError", "k", 0)
    finally:
        together(*(lazy.close for lazy in objects))


def test_a_silent_rank_is_named_and_again_when_it_is_heard(log: Log, together: Together) -> None:
    objects = group(together, 2, tuning=Tuning(shared_memory=False))  # each is a host: they give signs of life
    try:
        lane: Any = objects[1]._lane
        with lane.engine.lock:
            lane.near._heartbeat = Heartbeat([0], time.monotonic(), 0.02)
        lane.engine.thread.wake()
        (said,) = log.wait("silent", 1, 1)
        assert (said["level"], said["object"], said["rank"], said["peer"]) == ("WARNING", "tp", 1, 0)
        assert "rank 0 (" in said["text"]
        assert "has not been heard for" in said["text"]
        assert together(lambda: objects[0].broadcast(1), lambda: objects[1].broadcast()) == [1, 1]
        back = log.wait("heard again", 1, 1)[0]
        assert (back["level"], back["peer"]) == ("WARNING", 0)
        assert "is heard again over" in back["text"]
    finally:
        together(*(lazy.close for lazy in objects))


def test_a_call_that_waits_is_a_warning_with_its_key(log: Log, together: Together) -> None:
    objects = group(together, 2, tuning=Tuning(warn_after_s=2.0))  # a fifth of it is the root's, to answer in
    try:
        future = objects[1].broadcast_async(key="late", timeout_s=math.inf)
        (said,) = log.wait("waits", 1, 1)
        assert (said["level"], said["object"], said["key"], said["seq"]) == ("WARNING", "tp", "late", None)
        assert said["silent"] == ()
        assert "broadcast_async key 'late' on rank 1 of 2, root 0: still waiting after" in said["text"]
        objects[0].broadcast_async(3, key="late")
        assert future.result(20) == 3
        raises(CastTimeoutError, "no value after", lambda: objects[1].broadcast(key="never", timeout_s=0.2))
        (failed,) = log.wait("failed", 1, 1)
        assert (failed["error"], failed["key"], failed["seq"]) == ("CastTimeoutError", "never", None)
    finally:
        together(*(lazy.close for lazy in objects))


def test_a_rank_that_stops_asking_is_a_warning_of_the_root_that_names_it(log: Log, together: Together) -> None:
    objects = group(together, 3, tuning=Tuning(warn_after_s=0.2))
    try:
        assert together(lambda: objects[0].broadcast(1, key="k"), lambda: objects[1].broadcast(key="k")) == [1, 1]
        (said,) = log.wait("lags", 1, 0)
        assert (said["level"], said["object"], said["peer"]) == ("WARNING", "tp", 2)
        assert (said["key"], said["seq"], said["count"]) == ("k", 1, 1)
        assert "rank 2 (" in said["text"]
        assert "has not asked for 1 cast, the oldest #1 key 'k' for" in said["text"]
        assert objects[2].broadcast(key="k") == 1
    finally:
        together(*(lazy.close for lazy in objects))
