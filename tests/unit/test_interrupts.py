"""Ctrl-C waits until what must not stop half-way is done."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from lazycast.core.interrupts import Uninterrupted, of_handler
from lazycast.here import call_out, here


def test_an_interrupt_comes_at_the_end() -> None:
    done = []

    def work() -> None:
        with Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            done.append("the rest")
        done.append("never")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["the rest"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nested_it_comes_at_the_outer_end() -> None:
    done = []

    def work() -> None:
        with Uninterrupted():
            with Uninterrupted():
                signal.raise_signal(signal.SIGINT)
            done.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["outer"]


def test_an_own_handler_is_called_and_put_back() -> None:
    calls: list[int] = []

    def handler(number: int, frame: object) -> None:
        calls.append(number)

    before = signal.signal(signal.SIGINT, handler)
    try:
        with Uninterrupted():
            signal.raise_signal(signal.SIGINT)
            assert calls == []
        assert calls == [signal.SIGINT]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_one_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with Uninterrupted():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_change_nothing() -> None:
    seen = []

    def other() -> None:
        with Uninterrupted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


class Alarm(Exception):
    """What a handler of the tests raises."""


@pytest.fixture
def alarms() -> Iterator[None]:
    """Handlers that raise, as those of watchdogs and of whoever ends a process in an orderly way."""

    def alarm(number: int, frame: object) -> None:
        raise Alarm(number)

    def end(number: int, frame: object) -> None:
        raise SystemExit(number)

    before = {n: signal.signal(n, end if n == signal.SIGTERM else alarm) for n in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


SIGNALS = (signal.SIGALRM, signal.SIGUSR1, signal.SIGTERM)


@pytest.mark.parametrize("number", SIGNALS)
def test_any_signal_comes_at_the_end(alarms: None, number: signal.Signals) -> None:
    done = []
    handler = signal.getsignal(number)

    def work() -> None:
        with Uninterrupted():
            signal.raise_signal(number)
            done.append("the rest")

    with pytest.raises((Alarm, SystemExit)):
        work()
    assert done == ["the rest"]
    assert signal.getsignal(number) is handler
    with pytest.raises((Alarm, SystemExit)):
        signal.raise_signal(number)


def test_of_several_signals_each_is_raised(alarms: None) -> None:
    def work() -> None:
        with Uninterrupted():
            for number in (*SIGNALS, signal.SIGINT):
                signal.raise_signal(number)

    with pytest.raises((Alarm, SystemExit, KeyboardInterrupt)) as caught:
        work()
    raised: list[type[BaseException]] = []
    exc: BaseException | None = caught.value
    while exc is not None:
        raised.append(type(exc))
        exc = exc.__context__
    assert sorted(kind.__name__ for kind in raised) == ["Alarm", "Alarm", "KeyboardInterrupt", "SystemExit"]


def test_user_code_in_the_middle_is_interrupted_at_once(alarms: None) -> None:
    done = []

    def materializer() -> None:
        signal.raise_signal(signal.SIGALRM)
        done.append("never")

    def work() -> None:
        with Uninterrupted():
            with pytest.raises(Alarm) as caught:
                call_out(materializer)
            assert of_handler(caught.value)
            assert not of_handler(Alarm())
            signal.raise_signal(signal.SIGUSR1)  # outside of it they wait again
            done.append("the rest")

    with pytest.raises(Alarm):
        work()
    assert done == ["the rest"]


def test_a_handler_that_user_code_installs_stays(alarms: None) -> None:
    def other(number: int, frame: object) -> None: ...

    with Uninterrupted():
        mine = call_out(signal.signal, signal.SIGALRM, other)
    assert signal.getsignal(signal.SIGALRM) is other
    signal.signal(signal.SIGALRM, mine)  # what was found there may be put back at any time
    with pytest.raises(Alarm):
        signal.raise_signal(signal.SIGALRM)


def test_whatever_the_work_leaves_behind_is_put_right() -> None:
    with Uninterrupted():
        here.depth, here.defers = 5, False
        here.roles.append((None, "materializer"))
    assert (here.depth, here.defers, here.roles) == (0, False, [])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_our_own_work_for_user_code_in_the_middle_ends_nobody_elses(alarms: None) -> None:
    done = []

    def materializer() -> None:
        with pytest.raises(Alarm):
            ours()
        done.append("materialized")

    def ours() -> None:
        with Uninterrupted():
            signal.raise_signal(signal.SIGALRM)
            done.append("looked")

    def work() -> None:
        with Uninterrupted():
            call_out(materializer)
            signal.raise_signal(signal.SIGALRM)
            done.append("the rest")

    with pytest.raises(Alarm):
        work()
    assert done == ["looked", "materialized", "the rest"]
