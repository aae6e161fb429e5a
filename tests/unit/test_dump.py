"""The state as text: its form, what it holds, and that to look cannot block, not even in a signal handler."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

import lazycast
from lazycast.core import dump
from lazycast.core.dump import layout, named, seen, trying
from lazycast.net.wire import Cast, Verdict
from lazycast.start import lifetime
from lazycast.watch import dumps
from tests.unit.test_lane import follower
from tests.unit.test_relay import FakeLink


def test_a_section_is_one_line_or_counted() -> None:
    text = layout("title", [("empty", []), ("one", ["a"]), ("two", ["a", "b"]), ("locked", None)], held=True)
    assert text.splitlines() == [
        "title",
        "  empty: none",
        "  one: a",
        "  two: 2",
        "    a",
        "    b",
        "  locked: cannot be told just now",
    ]


def test_a_long_section_is_cut() -> None:
    lines = layout("title", [("many", [str(n) for n in range(1000)])], held=True).splitlines()
    assert lines[1:3] == ["  many: 1000", "    0"]
    assert lines[-1] == f"    and {1000 - dump._SHOWN} more"


def test_keys_are_named_and_cut() -> None:
    assert (named(None), named("a"), named(b"a")) == ("", " key 'a'", " key b'a'")
    assert named("x" * 1000) == f" key '{'x' * 39}..."


def test_a_lock_that_is_free_is_held_meanwhile_and_one_that_is_not_does_not_block() -> None:
    lock = threading.Lock()
    with trying(lock) as held:
        assert held
        assert lock.locked()
    assert not lock.locked()
    with lock, trying(lock) as held:
        assert not held
    assert not lock.locked()


def test_what_changes_while_it_is_looked_at_is_said_to() -> None:
    table = {1: 1}

    def look() -> list[str]:
        return [str(table.setdefault(n + 1, n)) for n in table]

    assert seen(look) == ["(it changed while it was looked at)"]
    assert seen(lambda: ["a"]) == ["a"]


FORM = r"""lazycast 'default': rank 3 of 5 on h, root 0
  state: 2
    open
    placement every \(asked for\)
  calls that wait: 2
    broadcast_async #1 key 'k': waiting 0\.\d{3} s of 5 s: agreeing; missing: rank 0; answered: rank 3; 62 bytes
    broadcast \(number 1 without a key\): waiting 0\.\d{3} s of 4 s: not arrived; missing: rank 0; 1 cast here .*
  queue: none
  books: none
  mailbox: 2
    #2 key 'nobody wants it': 62 bytes, nobody has asked for it
    a call: its cast has not come
  under way: 2
    #1: agreeing
    #2: agreeing
  shared memory: none
  links: rank 0: the backend's link, last heard \d+\.\d s ago
  threads: 5
    lazycast-default-engine: lives
    lazycast-default-work: 0 of \d+ threads, 0 tasks, 0 queued
    lazycast-default-work-light: 0 of 1 threads, 0 tasks, 0 queued
    lazycast-default-work-apart: 0 of 1 threads, 0 tasks, 0 queued
    lazycast-default-callback: 0 of 1 threads, 0 tasks, 0 queued
  counters: casts 2, asked 2, resolved 0, cancelled 0, aborted 0, lost 0, unshared 0, failed 0
  bytes: sent to other hosts \d+, received 0, 0 of it from this host"""


def test_a_dump_holds_the_whole_state_in_a_stable_form() -> None:
    from lazycast.codec import pickling

    encoded = pickling.encode("x" * 10)
    body = memoryview(bytearray(encoded.nbytes))
    encoded.write_into(body)
    lane = follower(FakeLink(1 << 20))
    try:
        lane.call(None, None, "k", 5.0)
        waiting = lane.call(None, None, None, 4.0, here=True)
        for seq, key in ((1, "k"), (2, "nobody wants it")):
            layout_of = encoded.layout
            cast = Cast(seq, key, "every", True, None, encoded.nbytes, layout_of.stream_nbytes, layout_of.frames)
            lane.on_message(cast, memoryview(bytearray(body)))
        expected = FORM.replace("62 bytes", f"{encoded.nbytes} bytes")
        for text in (lane.engine.looks.dump(), _without_the_lock(lane.engine.looks.dump, lane.engine.lock)):
            for line, pattern in zip(text.splitlines(), expected.splitlines(), strict=True):
                assert re.fullmatch(pattern, line), text
        lane.on_message(Verdict(1), memoryview(b""))
        assert "under way: #2: agreeing" in lane.engine.looks.dump()
        assert not waiting.done()
    finally:
        lane.engine.close(0.0)
    assert "  state: 2\n    closed\n" in lane.engine.looks.dump()


def _without_the_lock(look: Callable[[], str], lock: threading.RLock) -> str:
    with lock, ThreadPoolExecutor(1) as other:  # whoever holds the lock itself is let in
        title, remark, *rest = other.submit(look).result().splitlines()
    assert remark == "  (the lock was held all the time: what follows may not fit together)"
    return "\n".join([title, *rest])


class Broken:
    def close(self, timeout_s: float) -> None:
        raise NotImplementedError

    def after_fork_in_child(self) -> None:
        raise NotImplementedError

    def dump(self) -> str:
        raise ArithmeticError("no state")


def test_all_open_objects_are_dumped_whatever_one_of_them_does(capfd: pytest.CaptureFixture[str]) -> None:
    assert lazycast.dump_all() == "lazycast: nothing is open in this process"
    broken = Broken()
    lifetime.watch(broken)
    try:
        with lazycast.LazyBroadcast(backend="local", name="a"), lazycast.LazyBroadcast(backend="local", name="b"):
            text = dumps.dump_all(2)
    finally:
        lifetime.forget(broken)
    assert capfd.readouterr().err == f"{text}\n"
    assert "lazycast 'a': rank 0 of 1" in text
    assert "lazycast 'b': rank 0 of 1" in text
    assert "cannot be dumped: ArithmeticError('no state')" in text


SIGNALLED = """
import os, signal, sys, threading, time
import lazycast


def on_signal(number, frame):
    fd = os.open("dumps.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    lazycast.dump_all(fd)
    os.close(fd)


def interrupt(times, over):
    main = threading.main_thread().ident
    for _ in range(times):
        if over.wait(0.002):
            return
        signal.pthread_kill(main, signal.SIGUSR1)


def rank():
    with lazycast.LazyBroadcast(timeout_s=20) as lazy:
        if lazy.is_root:
            over = threading.Event()
            blocked = threading.Timer(0.3, lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1))
            signal.signal(signal.SIGUSR1, on_signal)
            blocked.start()
        assert lazy.broadcast("held up", materialize=slow) == "held up"
        if lazy.is_root:
            blocked.join()
            thread = threading.Thread(target=interrupt, args=(200, over))
            thread.start()
        for n in range(300):
            assert lazy.broadcast(n) == n
        if lazy.is_root:
            over.set()
            thread.join()
    return True


def slow(payload):
    time.sleep(1.0)
    return payload


if __name__ == "__main__":
    assert lazycast.launch(rank, ranks=2, timeout_s=200) == [True, True]
    print(open("dumps.txt").read())
"""


def test_a_signal_handler_dumps_whatever_it_interrupts(run_python: Callable[..., str]) -> None:
    said = run_python(SIGNALLED)
    dumped = said.split("lazycast 'default': rank 0 of 2")[1:]
    assert len(dumped) > 5, "the calls are interrupted again and again"
    assert re.search(r"broadcast #1 \(number 1 without a key\): waiting 0\.\d+ s of 20 s", dumped[0]), dumped[0]
    for text in dumped:
        assert "calls that wait" in text
        assert "threads: " in text
