"""The SGLang adapter where SGLang is not installed. With it: `make test-sglang`."""

from __future__ import annotations

import concurrent.futures
import sys
import threading
import types
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

import pytest

from lazycast import launch
from lazycast.adapters.sglang import (
    Binding,
    InputsFuture,
    SGLangBroadcast,
    UnsupportedReleaseError,
    broadcast,
    install_requests,
    plugin,
)
from lazycast.core.future import CastFuture
from lazycast.errors import BackendUnavailableError, LazycastError, ReentrantCallError
from lazycast.net.wire import Key
from lazycast.tools.bench.sglang import report, session
from lazycast.tools.bench.sglang.plan import Plan

pytestmark = pytest.mark.skipif(find_spec("sglang") is not None, reason="SGLang is installed")

WAIT_S = 20.0


@pytest.mark.cold
def test_importing_it_brings_in_neither_sglang_nor_torch(run_python: Callable[..., str]) -> None:
    code = "import sys, lazycast.adapters.sglang\nprint(*sorted({'sglang', 'torch'} & set(sys.modules)))\n"
    assert run_python(code).split() == []


def test_without_sglang_it_says_so() -> None:
    for call in (Binding.find, install_requests):
        with pytest.raises(UnsupportedReleaseError) as caught:
            call()
        assert isinstance(caught.value, LazycastError)
        assert isinstance(caught.value, ImportError)
    with pytest.raises(BackendUnavailableError, match="not installed"):
        session.run(Plan())


def test_sglang_finds_the_plugin() -> None:
    (point,) = entry_points(group="sglang.srt.plugins", name="lazycast")
    assert point.load() is plugin.plugin


def test_the_plugin_does_nothing_where_no_scheduler_is() -> None:
    plugin.plugin()
    assert not [name for name in sys.modules if name.split(".")[0] == "sglang"]


class Cast:
    """A cast whose engine does what a test tells it to."""

    root = 0

    def __init__(self) -> None:
        self.callbacks: list[Callable[[], None]] = []  # what the callback thread has not come to
        self.reentrant = False
        self.run_callback = self.callbacks.append
        self.on_withdraw: Callable[[], bool] = self.settle_cancelled
        asks: Any = self
        self.future: CastFuture[Any] = CastFuture(asks, number=1)

    def label(self, key: Key | None, seq: int | None, nth: int | None = None) -> str:
        return "a cast"

    forked = True  # or whatever else is a reason to ask the one below

    def guard_result(self) -> None:
        if self.reentrant:
            raise ReentrantCallError("in a callback")

    def withdraw(self, call: CastFuture[Any]) -> bool:
        return self.on_withdraw()

    def settle_cancelled(self) -> bool:
        self.future.settle_cancelled()
        return True


def following(cast: Cast, *, sure: bool = True) -> InputsFuture:
    future = InputsFuture(lambda exc: ValueError(f"translated {exc}"), sure=sure)
    future.follow(cast.future)
    return future


def test_waiting_in_a_callback_raises() -> None:
    cast = Cast()
    future, cast.reentrant = following(cast), True
    for wait in (future.result, future.exception):
        with pytest.raises(ReentrantCallError):
            wait(5)
    cast.future.settle(3)
    assert future.result(0) == 3
    assert future.result(0) == 3


def test_what_is_done_need_not_wait_for_the_callback_thread() -> None:
    """In a callback of another future it would wait for itself."""
    cast = Cast()
    future = following(cast)
    cast.future.settle_error(KeyError("x"))
    assert not future.done()
    with pytest.raises(ValueError, match="translated 'x'"):
        future.result(30)
    for callback in cast.callbacks:  # which comes too late, and changes nothing
        callback()
    assert isinstance(future.exception(0), ValueError)


def test_what_never_had_a_cast_is_done_and_cannot_be_given_up(on_ranks: Callable[..., list[Any]]) -> None:
    def rank(ours: SGLangBroadcast) -> list[Any]:
        done, refused = ours.process_async(None), InputsFuture()
        refused.set_exception(KeyError("x"))
        return [done.cancel(), done.cancelled(), done.result(0), refused.cancel(), repr(refused.exception(0))]

    assert on_ranks(rank, 1) == [[False, False, None, False, "KeyError('x')"]]


def test_waiting_ends_in_time() -> None:
    future = following(Cast())
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(0.01)


@pytest.mark.parametrize("won", [True, False])
def test_giving_up_while_the_cast_is_being_settled(won: bool) -> None:
    cast = Cast()
    future = following(cast)

    def late() -> bool:
        cast.future.settle(3)
        for callback in cast.callbacks:  # on another thread
            callback()
        return False

    cast.on_withdraw = cast.settle_cancelled if won else late
    assert future.cancel() is won
    assert future.done()
    assert future.cancelled() is won
    assert future.cancel() is won
    if not won:
        assert future.result(0) == 3
    assert concurrent.futures.wait([future], 5).done == {future}


@pytest.mark.parametrize("sure", [True, False])
def test_giving_up_before_there_is_a_cast(sure: bool) -> None:
    cast, future = Cast(), InputsFuture(sure=sure)
    assert future.cancel() is sure
    future.follow(cast.future)
    assert cast.future.cancelled()
    for callback in cast.callbacks:
        callback()
    assert future.cancelled()


def test_what_this_call_has_cancelled_is_given_up() -> None:
    """Also while the callback thread is about to say so."""
    cast = Cast()
    future = following(cast)
    at_it, go_on = threading.Event(), threading.Event()
    asked = cast.future.cancelled

    def slowly() -> bool:  # asked by who settles
        at_it.set()
        return go_on.wait(WAIT_S) and asked()

    with concurrent.futures.ThreadPoolExecutor(1) as callback_thread:

        def withdraw() -> bool:
            cast.future.settle_cancelled()
            cast.future.cancelled = slowly  # type: ignore[method-assign]
            for callback in cast.callbacks:
                callback_thread.submit(callback)
            return at_it.wait(WAIT_S)

        cast.on_withdraw = withdraw
        try:
            assert future.cancel()
        finally:
            go_on.set()
        with pytest.raises(concurrent.futures.CancelledError):
            future.result(WAIT_S)
    assert future.cancelled()


class Inputs:
    """In place of SGLang's `MultimodalInputs`, with nothing that takes hashing."""

    def __init__(self, raw: Any) -> None:
        self.text, self.mm_items = raw.text, raw.mm_items

    @classmethod
    def from_processor_output(cls, raw: Any) -> Inputs:
        return cls(raw)


def raw(text: str) -> types.SimpleNamespace:
    none = {"hash": None, "pad_value": None, "feature": None, "precomputed_embeddings": None}
    return types.SimpleNamespace(text=text, mm_items=[types.SimpleNamespace(is_valid=lambda: True, **none)])


@pytest.fixture
def on_ranks(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Run a function with an `SGLangBroadcast` of each rank; ranks are threads, without SGLang and torch."""
    for name, contents in (("managers.schedule_batch", {"MultimodalInputs": Inputs}), ("environ", {"envs": None})):
        module = types.ModuleType(f"sglang.srt.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(broadcast, "discovery", types.SimpleNamespace(by_name=lambda name: lambda group: "auto"))
    monkeypatch.setattr(broadcast, "_executor_for_device", lambda: None)

    def run(fn: Callable[[SGLangBroadcast], Any], ranks: int) -> list[Any]:
        def rank() -> Any:
            with SGLangBroadcast(timeout_s=WAIT_S) as ours:
                return fn(ours)

        return launch(rank, ranks=ranks, backend="threads", timeout_s=4 * WAIT_S)

    return run


@pytest.mark.parametrize("rid", ["x" * 1025, "é" * 513, "\ud800"], ids=["long", "long as UTF-8", "a lone surrogate"])
def test_an_id_that_is_no_key_is_refused_before_it_counts(on_ranks: Callable[..., list[Any]], rid: str) -> None:
    def rank(ours: SGLangBroadcast) -> list[str]:
        for of_request in (None, raw("none")):
            with pytest.raises(ValueError, match=r"at most 1024 bytes|surrogates not allowed"):
                ours.process_async(of_request, rid=rid)
        return [ours.process(raw("one")).text, ours.process_async(raw("two"), rid="x").result(WAIT_S).text]

    assert on_ranks(rank, 2) == [["one", "two"]] * 2


def test_what_passed_is_said_once_though_an_interrupt_comes(on_ranks: Callable[..., list[Any]]) -> None:
    def rank(ours: SGLangBroadcast) -> str:
        said, original = [], ours._lazy.broadcast_async

        def interrupted(*args: Any, key: Any, **options: Any) -> Any:
            said.append(key)
            try:
                return original(*args, key=key, **options)
            finally:
                raise KeyboardInterrupt  # when the call has counted

        assert ours.process_async(None, rid="nothing").result(0) is None
        ours._lazy.broadcast_async = interrupted  # type: ignore[method-assign]
        with pytest.raises(KeyboardInterrupt):
            ours.process(raw("one"))
        made = ours.process(raw("two"))
        assert said == ["nothing"]
        return str(made.text)

    assert on_ranks(rank, 1) == ["two"]


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("lazycast bench sglang --ranks 2,4 --out /some/where --short", "lazycast bench sglang --ranks 2,4 --short"),
        ("lazycast bench sglang --out='/some where'", "lazycast bench sglang"),
        ("lazycast bench sglang --ou x --no-requests", "lazycast bench sglang --no-requests"),
        ("lazycast bench sglang", "lazycast bench sglang"),
    ],
)
def test_reports_do_not_say_where_they_were_written_to(command: str, kept: str) -> None:
    assert session.recorded(command) == kept


def test_ratios_are_not_rounded_up_to_what_was_hoped_for() -> None:
    assert [report.ratio_text(ratio) for ratio in (3.965, 0.796, 9.994, 9.996, 15.56)] == [
        *("3.96", "0.80", "9.99", "10.0", "15.6")
    ]
    ways = {
        "sglang": {"call_s": [0.02, 0.04], "last_s": 0.03965, "qps": 20, "cpu_s": 0.05},
        "lazycast": {"call_s": [0.01, 0.01], "last_s": 0.01, "qps": 100, "cpu_s": 0.01},
    }
    cell = {"ranks": 2, "kind": "inputs", "images": 1, "text": "1 image", "ways": ways}
    ((_, rows),) = report.tables({"plan": {"ranks": [2]}, "cells": [cell]})
    ratios = [at for at, heading in enumerate(report.HEADINGS) if heading == "ratio"]
    assert [[row[at] for at in ratios] for row in rows] == [["2.00", "3.96"], ["", ""]]
