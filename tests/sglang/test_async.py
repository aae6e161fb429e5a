"""Requests by their ids: futures, in any order, and given up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from typing import Any

import pytest
from kit import BINDING, Ranks, alone, failing, hashes, same

from lazycast.adapters.sglang import SGLangBroadcast
from lazycast.errors import KeyInUseError
from lazycast.tools.bench.sglang import inputs

TIMEOUT_S = 20.0


def image(seed: int) -> Any:
    return inputs.images(1, seed, patches=50)


def test_ranks_may_ask_in_any_order(ranks: Ranks) -> None:
    with SGLangBroadcast() as broadcast:
        order = list(range(8))
        order = order[ranks.rank :] + order[: ranks.rank]
        futures = {n: broadcast.process_async(image(n), rid=f"request {n}") for n in order}
        concurrent.futures.wait(futures.values(), TIMEOUT_S)
        for n, future in futures.items():
            same(future.result(0), alone(image(n)))
        ranks.meet()
        again = broadcast.process_async(image(1), rid="request 1")  # an id may come again
        same(again.result(TIMEOUT_S), alone(image(1)))


def test_it_can_be_awaited(ranks: Ranks) -> None:
    async def main() -> list[Any]:
        return await asyncio.gather(*(broadcast.process_async(image(n), rid=str(n)) for n in range(4)))

    with SGLangBroadcast() as broadcast:
        made = asyncio.run(main())
        ranks.agree([hashes(one) for one in made])


def test_without_ids_they_count_with_the_others(ranks: Ranks) -> None:
    with SGLangBroadcast() as broadcast:
        first = broadcast.process_async(image(1))
        second = broadcast.process(image(2))
        third = broadcast.process_async(None)
        same(first.result(TIMEOUT_S), alone(image(1)))
        same(second, alone(image(2)))
        assert third.result(0) is None


def test_errors_are_those_of_sglang(ranks: Ranks) -> None:
    with SGLangBroadcast() as broadcast:
        future = broadcast.process_async(inputs.raw([inputs.item("AUDIO")]), rid="bad")
        failing(lambda: future.result(TIMEOUT_S), "raised on rank")
        same(broadcast.process_async(image(1), rid="good").result(TIMEOUT_S), alone(image(1)))


def test_an_id_that_is_pending(ranks: Ranks) -> None:
    with SGLangBroadcast(timeout_s=TIMEOUT_S) as broadcast:
        if ranks.rank == 0:
            ranks.meet()
            assert broadcast.process_async(image(1), rid="x").result(TIMEOUT_S) is not None
        else:
            future = broadcast.process_async(image(1), rid="x")
            ranks.meet()
            assert future.result(TIMEOUT_S) is not None
        if ranks.rank != 0:
            first = broadcast.process_async(image(2), rid="y")
            with pytest.raises(KeyInUseError):
                broadcast.process_async(image(2), rid="y")
            ranks.meet()
            assert first.result(TIMEOUT_S) is not None
        else:
            ranks.meet()
            assert broadcast.process_async(image(2), rid="y").result(TIMEOUT_S) is not None
            # Each call counts: the others' second one is waiting for this.
            broadcast.process_async(image(2), rid="y").exception(TIMEOUT_S)


def test_a_request_given_up_on_some_ranks_is_made_on_the_others(ranks: Ranks) -> None:
    with SGLangBroadcast() as broadcast:
        for turn in range(2 * ranks.size):  # whoever would hash
            rid = f"turn {turn}"
            if ranks.rank != 0:
                future = broadcast.process_async(image(turn), rid=rid)
            ranks.meet()
            if ranks.rank == ranks.size - 1:
                assert broadcast.abort(rid)
                with pytest.raises(concurrent.futures.CancelledError):
                    future.result(TIMEOUT_S)
            ranks.meet()
            if ranks.rank == 0:
                future = broadcast.process_async(image(turn), rid=rid)
            if ranks.rank != ranks.size - 1:
                same(future.result(TIMEOUT_S), alone(image(turn)))
            ranks.meet()
        assert not broadcast.abort("turn 0")
        assert not broadcast.abort("never heard of")
        same(broadcast.process(image(7)), alone(image(7)))


def test_the_entry_rank_withdraws_what_is_not_sent(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first one is being looked at, the second waits in the queue."""
    from lazycast.core import sending

    gate, original = threading.Event(), sending.fingerprint

    def slowly(payload: Any) -> Any:
        gate.wait(TIMEOUT_S)
        return original(payload)

    monkeypatch.setattr(sending, "fingerprint", slowly)
    with SGLangBroadcast() as broadcast:
        first = broadcast.process_async(image(1), rid="first")
        second = broadcast.process_async(image(2), rid="second")
        if ranks.rank == 0:
            assert broadcast.abort("second")
        gate.set()
        same(first.result(TIMEOUT_S), alone(image(1)))
        with pytest.raises(concurrent.futures.CancelledError):
            second.result(TIMEOUT_S)
        same(broadcast.process(image(3)), alone(image(3)))


def test_ids_of_many_threads_some_with_nothing(ranks: Ranks) -> None:
    """Those with nothing the first time come again, with inputs: no call meets another's cast."""

    def raw(n: int, turn: int) -> Any:
        return None if turn == 0 and n % 3 == 0 else inputs.images(1, n, patches=3)

    with SGLangBroadcast() as broadcast, concurrent.futures.ThreadPoolExecutor(4) as threads:

        def one(n: int, turn: int) -> Any:
            return broadcast.process_async(raw(n, turn), rid=f"request {n}").result(TIMEOUT_S)

        for turn in range(3):
            made = list(threads.map(one, range(40), [turn] * 40))
            for n, found in enumerate(made):
                if raw(n, turn) is None:
                    assert found is None
                else:
                    same(found, alone(raw(n, turn)))
            ranks.meet()


def test_a_request_given_up_while_it_is_being_asked_for(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    with SGLangBroadcast() as broadcast:
        if ranks.rank == ranks.size - 1:
            original, said = broadcast._lazy.broadcast_async, []

            def slowly(*args: Any, **kwargs: Any) -> Any:
                said.append(broadcast.abort("x"))
                return original(*args, **kwargs)

            monkeypatch.setattr(broadcast._lazy, "broadcast_async", slowly)
            future = broadcast.process_async(image(1), rid="x")
            assert said == [True]
            with pytest.raises(concurrent.futures.CancelledError):
                future.result(TIMEOUT_S)
            monkeypatch.undo()
        else:
            same(broadcast.process_async(image(1), rid="x").result(TIMEOUT_S), alone(image(1)))
        ranks.meet()
        same(broadcast.process_async(image(2), rid="x").result(TIMEOUT_S), alone(image(2)))
        assert broadcast._open == {} or all(left.done() for left in broadcast._open.values())


def test_ids_are_strings(ranks: Ranks) -> None:
    with SGLangBroadcast() as broadcast, pytest.raises(TypeError, match="rid must be a string"):
        broadcast.process_async(None, rid=3)  # type: ignore[arg-type]


def test_it_says_what_it_is(ranks: Ranks) -> None:
    with SGLangBroadcast() as broadcast:
        assert BINDING.method in repr(broadcast)
        assert (broadcast.rank, broadcast.size) == (ranks.rank, ranks.size)
        assert "sglang" in broadcast.dump()
