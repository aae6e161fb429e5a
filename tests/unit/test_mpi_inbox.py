"""The queue of a thread that waits for very short times."""

from __future__ import annotations

import queue
import signal
import threading

from lazycast.backends._mpi_inbox import Inbox

LIMIT_S = 60.0


def next_of(inbox: Inbox[int]) -> int:
    """The next item: `take` may return early."""
    while (item := inbox.take(LIMIT_S)) is None:
        pass
    return item


def test_items_come_in_order_and_none_where_there_is_none() -> None:
    inbox: Inbox[int] = Inbox()
    assert inbox.take(0.0) is None
    for number in range(3):
        inbox.put(number)
    assert [inbox.take(wait_s) for wait_s in (0.0, LIMIT_S, 0.0, 0.0, 1e-6)] == [0, 1, 2, None, None]


def test_who_waits_gets_what_comes() -> None:
    there, back = Inbox[int](), Inbox[int]()

    def answer() -> None:
        while (number := next_of(there)) >= 0:
            back.put(number + 1)

    thread = threading.Thread(target=answer)
    thread.start()
    for number in range(2000):
        there.put(number)
        assert next_of(back) == number + 1
    there.put(-1)
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_nothing_is_lost_or_waited_for_in_vain_with_waits_shorter_than_a_switch_of_threads() -> None:
    """With `queue.SimpleQueue` in place of it some threads wait for ever, on Python 3.12 and before."""
    done: queue.Queue[int] = queue.Queue()

    def work() -> None:
        inbox: Inbox[int] = Inbox()
        taken = 0
        for number in range(3000):
            assert inbox.take(1e-6) is None
            inbox.put(number)
            taken += inbox.take(LIMIT_S) == number
        done.put(taken)

    for _ in range(6):
        threading.Thread(target=work, daemon=True).start()
    assert [done.get(timeout=LIMIT_S) for _ in range(6)] == [3000] * 6


def test_a_signal_handler_may_put_in_the_middle_of_a_put() -> None:
    inbox: Inbox[int] = Inbox()
    old = signal.signal(signal.SIGALRM, lambda number, frame: inbox.put(-1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
        for number in range(20_000):
            inbox.put(number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    got = []
    while (number := inbox.take(0.0)) is not None:
        got.append(number)
    assert [number for number in got if number >= 0] == list(range(20_000))
    assert -1 in got
