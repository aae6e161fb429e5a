"""What goes wrong on one rank is raised on all, soon, and the next request works."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.distributed as dist
from kit import Ranks, Scheduler, alone, failing, installed, process, same

from lazycast.adapters.sglang import SGLangBroadcast
from lazycast.bench.sglang import inputs
from lazycast.bench.sglang.scheduler import without_model
from lazycast.errors import CastTimeoutError, LazycastError, MaterializeError, PayloadMismatchError

HANG_S = 3.0


def bad(seed: int = 0) -> Any:
    """Inputs with an item that cannot be hashed."""
    return inputs.raw([*inputs.image_items(1, seed, patches=10), inputs.item("AUDIO")])


def good(seed: int = 0) -> Any:
    return inputs.images(1, seed, patches=20)


def cause(exc: BaseException) -> BaseException:
    """The error of lazycast, where SGLang's own has been raised for it."""
    return exc if isinstance(exc, LazycastError) or exc.__cause__ is None else exc.__cause__


def next_works(scheduler: Any, seed: int = 9) -> None:
    raw = good(seed)
    expected = alone(raw)
    same(process(scheduler, raw), expected)


@pytest.mark.release("0.5.9")
def test_sglang_itself_hangs(ranks: Ranks) -> None:
    group = dist.new_group()
    scheduler = without_model(Scheduler, group)
    waiting: threading.Thread | None = None
    if ranks.rank == 0:
        with pytest.raises(TypeError, match="buffer"):
            process(scheduler, bad())
    else:
        waiting = threading.Thread(target=process, args=(scheduler, bad()), daemon=True)
        waiting.start()
        waiting.join(HANG_S)
    hung = ranks.tell(waiting is not None and waiting.is_alive())
    if waiting is None:  # what the entry rank has not sent, so that this test ends
        dist.broadcast_object_list([None], src=0, group=group)
    else:
        waiting.join()
    dist.destroy_process_group(group)
    assert hung == [False, *[True] * (ranks.size - 1)]


def test_a_bad_input_raises_on_every_rank_and_the_next_works(ranks: Ranks) -> None:
    with installed() as scheduler:
        took_s = []
        for turn in range(ranks.size + 1):
            raw = bad(turn)
            ranks.meet()
            began_s = time.monotonic()
            exc = failing(lambda: process(scheduler, raw), "prepare.* raised on rank")  # noqa: B023
            took_s.append(time.monotonic() - began_s)
            assert isinstance(cause(exc), MaterializeError)
            ranks.agree(cause(exc).rank)  # type: ignore[attr-defined]
            next_works(scheduler, turn)
        assert statistics.median(took_s) < 1.0


def test_inputs_of_no_known_kind(ranks: Ranks) -> None:
    with installed() as scheduler:
        for strange in (17, {}, {"mm_items": 3}, object()):
            failing(lambda: process(scheduler, strange), "raised on rank")  # noqa: B023
        next_works(scheduler)


@pytest.mark.parametrize("odd", [0, -1])
def test_a_rank_without_inputs_fails_the_call_everywhere(ranks: Ranks, odd: int) -> None:
    odd %= ranks.size
    with installed() as scheduler:
        next_works(scheduler)
        if ranks.rank == odd:
            assert process(scheduler, None) is None
            if odd == 0:  # with its next request, the entry rank says so
                next_works(scheduler)
        else:
            exc = failing(lambda: process(scheduler, good()), "no payload|has inputs for a request")
            assert isinstance(cause(exc), PayloadMismatchError)
            assert cause(exc).rank == odd  # type: ignore[attr-defined]
            if odd == 0:
                next_works(scheduler)
        for seed in range(3):
            next_works(scheduler, seed)


def test_a_rank_whose_inputs_differ_fails_the_call_everywhere(ranks: Ranks) -> None:
    others: list[Callable[[], Any]] = [
        lambda: good(1),
        lambda: inputs.images(2, 0, patches=20),
        lambda: inputs.raw(good().get("mm_items") if inputs.bundles() else good().mm_items, im_token_id=3),
    ]
    with installed() as scheduler:
        for odd in range(ranks.size):
            for other in others:
                raw = other() if ranks.rank == odd else good()
                exc = failing(lambda: process(scheduler, raw), "not the root's")  # noqa: B023
                assert isinstance(cause(exc), PayloadMismatchError)
            next_works(scheduler)


def test_none_and_what_is_made_already_pass_through(ranks: Ranks) -> None:
    with installed() as scheduler:
        made = process(scheduler, good())
        before = scheduler._lazycast_broadcast.stats().casts
        for _ in range(3):
            assert process(scheduler, None) is None
            assert process(scheduler, made) is made
        ranks.meet()
        assert scheduler._lazycast_broadcast.stats().casts == before, "something was sent"
        ranks.meet()
        next_works(scheduler)


def test_none_blocks_nobody_and_leaves_nothing(ranks: Ranks) -> None:
    with installed() as scheduler:
        for turn in range(4):
            began_s = time.monotonic()
            assert process(scheduler, None) is None
            assert time.monotonic() - began_s < 0.5
            next_works(scheduler, turn)
        assert scheduler._lazycast_broadcast.stats().pending == 0


@pytest.mark.release("0.5.23")
def test_an_error_of_the_input_processor(ranks: Ranks) -> None:
    from sglang.srt.managers.io_struct import MMInputsProcessError

    with installed() as scheduler:
        failing(lambda: process(scheduler, MMInputsProcessError("no such image")), "^no such image$")
        next_works(scheduler)


def test_an_entry_rank_that_never_comes(ranks: Ranks) -> None:
    with SGLangBroadcast(timeout_s=1.0) as broadcast:
        if ranks.rank == 0:
            assert broadcast.process(None) is None
        else:
            exc = failing(lambda: broadcast.process(good()), "the root has not made this call")
            assert isinstance(cause(exc), CastTimeoutError)
        ranks.meet()
        raw = good()
        expected = alone(raw)
        same(broadcast.process(raw), expected)


def test_a_rank_that_closes_is_named(ranks: Ranks) -> None:
    broadcast = SGLangBroadcast()
    if ranks.rank == ranks.size - 1:
        broadcast.close()
    ranks.meet()
    failing(lambda: broadcast.process(good()), "closed")
    broadcast.close()


def test_ranks_that_expect_different_models(ranks: Ranks) -> None:
    """What is not said in the handshake is part of what is compared."""
    with SGLangBroadcast(requires_mm_token_modalities=ranks.rank == 0) as broadcast:
        raw = good()
        if inputs.bundles():  # these releases do not ask
            same(broadcast.process(raw), alone(good()))
        else:
            failing(lambda: broadcast.process(raw), "not the root's")
