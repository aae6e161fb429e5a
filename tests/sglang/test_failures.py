"""What goes wrong on one rank is raised on all, soon, and the next request works."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from kit import Ranks, Scheduler, alone, environment, failing, installed, process, same

from lazycast.adapters.sglang import SGLangBroadcast
from lazycast.errors import (
    CastTimeoutError,
    ClosedError,
    ConfigMismatchError,
    LazycastError,
    MaterializeError,
    PayloadMismatchError,
)
from lazycast.tools.bench.sglang import inputs
from lazycast.tools.bench.sglang.scheduler import FLAG, without_model
from lazycast.tools.soak import census

HANG_S = 3.0


def bad(seed: int = 0) -> Any:
    """Inputs with an item that cannot be hashed."""
    return inputs.raw([*inputs.image_items(1, seed, patches=10), inputs.item("AUDIO")])


def good(seed: int = 0) -> Any:
    return inputs.images(1, seed, patches=20)


def one_patch_differs() -> Any:
    """What `good` returns, but for a patch in the middle."""
    raw = good()
    item = (raw["mm_items"] if inputs.bundles() else raw.mm_items)[0]
    item.feature[7] += 1
    return raw


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
        assert max(ranks.tell(max(took_s))) < 1.0


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
        lambda: one_patch_differs(),
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


@pytest.mark.parametrize("late", [0, -1])
def test_a_late_rank_fails_the_request_everywhere(ranks: Ranks, late: int) -> None:
    """Also on the rank that is late, whenever it comes; and then the next request works."""
    late %= ranks.size
    with SGLangBroadcast(timeout_s=1.0) as broadcast:
        same(broadcast.process(good(1)), alone(good(1)))
        ranks.meet()
        if ranks.rank == late:
            time.sleep(3.0)  # the entry rank's limit is 1 s, the others' 1.5 s
        exc = failing(lambda: broadcast.process(good(2)), "key 2", within_s=2.5)
        assert isinstance(cause(exc), CastTimeoutError), repr(cause(exc))
        ranks.meet()
        same(broadcast.process(good(3)), alone(good(3)))
        ranks.meet()


def test_a_rank_that_closes_is_named(ranks: Ranks) -> None:
    broadcast = SGLangBroadcast()
    if ranks.rank == ranks.size - 1:
        broadcast.close()
    ranks.meet()
    failing(lambda: broadcast.process(good()), "closed")
    broadcast.close()


def test_a_rank_that_has_closed_its_own(ranks: Ranks) -> None:
    """Also where the entry rank has yet to say that it had nothing."""
    broadcast = SGLangBroadcast()
    assert broadcast.process(None) is None
    ranks.meet()
    broadcast.close()
    assert isinstance(cause(failing(lambda: broadcast.process(good()), "closed")), ClosedError)
    for _ in range(3000):
        assert broadcast.process(None) is None
    with pytest.raises(ClosedError):
        broadcast.process_async(good(), rid="x")
    assert not broadcast.abort("x")


@pytest.mark.timeout(240)
def test_a_rank_that_is_killed_is_named_within_a_second(ranks: Ranks) -> None:
    """Processes of their own are the ranks, since one of them dies in the midst of a call."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = ranks.tell(free.getsockname()[1])[0]
    given = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC")}
    given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, str(Path(__file__).with_name("killed.py"))]
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=200)
    killed = ranks.rank == ranks.size - 1
    expected = ("", -signal.SIGKILL) if killed else ("well", 0)
    assert (done.stdout.strip(), done.returncode) == expected, done.stderr


def test_ranks_of_which_some_make_up_hashes(ranks: Ranks) -> None:
    with (
        environment(SGLANG_MM_SKIP_COMPUTE_HASH="1" if ranks.rank == 0 else "0"),
        pytest.raises(ConfigMismatchError, match="placement"),
    ):
        SGLangBroadcast()


@pytest.mark.release("0.5.23")
def test_the_scheduler_aborts_the_request(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang's own handler of a request, whose inputs cannot be hashed: status 500, and the server goes on."""
    from sglang.srt import runtime_context
    from sglang.srt.managers import scheduler as module

    settings = SimpleNamespace(**{FLAG: True})
    for where in (runtime_context, module):
        monkeypatch.setattr(where, "get_mm", lambda: settings)
    monkeypatch.setattr(module, "Req", Aborted)
    queue: list[Any] = []
    with installed() as scheduler:
        scheduler.tokenizer = None
        scheduler._maybe_namespace_elastic_radix_cache = lambda req: None
        scheduler._record_kv_event_lora_name = lambda req, name: None
        scheduler._add_request_to_queue = queue.append
        request = Anything(mm_inputs=bad())
        ranks.meet()
        scheduler.handle_embedding_request(request)
        (req,) = queue
        assert req.finished["status_code"] == 500
        assert "raised on rank" in req.finished["message"]
        ranks.agree(req.finished["message"].partition("materializer")[2])  # before it, each rank says who it is
        next_works(scheduler)


class Anything(SimpleNamespace):
    """A request of which nothing else counts."""

    def __getattr__(self, name: str) -> None:
        return None


class Aborted(Anything):
    """As much of SGLang's `Req` as is needed to end it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def set_finish_with_abort(self, message: str, **how: Any) -> None:
        self.finished = {"message": message, **how}


def test_many_calls_with_nothing(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry rank says so before they are forgotten."""
    from lazycast.adapters.sglang import broadcast as module

    monkeypatch.setattr(module, "_MAX_PASSED", 4)
    with installed() as scheduler:
        for _ in range(11):
            assert process(scheduler, None) is None
        ranks.meet()
        if ranks.rank == 0:
            end_s = time.monotonic() + 10.0  # another thread sends, and counts
            while (casts := scheduler._lazycast_broadcast.stats().casts) < 8 and time.monotonic() < end_s:
                time.sleep(0.01)
            assert casts == 8
        next_works(scheduler)
        assert scheduler._lazycast_broadcast.stats().pending == 0


def test_nothing_is_left_when_it_is_closed(ranks: Ranks) -> None:
    def one() -> None:
        with installed() as scheduler:
            for seed in range(ranks.size):
                next_works(scheduler, seed)
            process(scheduler, inputs.images(2, 1))  # on the threads that hash, which stay
            failing(lambda: process(scheduler, bad()), "raised on rank")

    one()
    ranks.meet()
    before = census.take()
    for _ in range(3):
        one()
    ranks.meet()
    assert census.left(before, memory_nbytes=256 << 20) == []


def test_ranks_that_expect_different_models(ranks: Ranks) -> None:
    """What is not said in the handshake is part of what is compared."""
    with SGLangBroadcast(requires_mm_token_modalities=ranks.rank == 0) as broadcast:
        raw = good()
        if inputs.bundles():  # these releases do not ask
            same(broadcast.process(raw), alone(good()))
        else:
            failing(lambda: broadcast.process(raw), "not the root's")
