"""Features in memory that is written again, through SGLang's own code on both sides."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import shared_memory
from typing import Any

import pytest
import torch
from sglang.srt.managers import mm_utils

from lazycast.adapters.sglang import segments as module
from lazycast.adapters.sglang.memory import Memory
from lazycast.adapters.sglang.segments import Segments
from lazycast.tools.bench.sglang_loop.prompts import Prompts


def features(request: Any) -> list[torch.Tensor]:
    return [item.feature for item in request.mm_inputs.mm_items]


def received(request: Any, ranks: int) -> list[Any]:
    """What each rank has: all open the features before any of them takes a name away."""
    sent = pickle.dumps(request)
    found = [pickle.loads(sent) for _ in range(ranks)]
    for one in found:
        for item in one.mm_inputs.mm_items:
            item.feature = mm_utils._unwrap_tensor_or_list(item.feature)
    return found


def test_ranks_have_what_was_sent_until_they_drop_it(segments: Segments, prompts: Prompts) -> None:
    def sent(number: int) -> tuple[list[torch.Tensor], list[Any]]:
        request = prompts.images(f"segments-{number}", [number, number + 100], side=16 + 2 * (number % 3))
        expected = [feature.clone() for feature in features(request)]
        return expected, received(prompts.share(request), ranks=2)

    before = segments.made
    held = [sent(number) for number in range(10)]
    for expected, ranks in held:
        for rank in ranks:
            assert all(map(torch.equal, features(rank), expected))
        features(ranks[0])[0].zero_()  # private to its rank
        assert torch.equal(features(ranks[1])[0], expected[0])
    assert segments.made - before <= 20
    made = segments.made
    held.clear()
    del expected, ranks, rank
    for number in range(10):
        sent(number)
    assert segments.made == made, "all of it is free again"


def test_threads_send_at_the_same_time(segments: Segments, prompts: Prompts) -> None:
    lock = threading.Lock()  # the prompts' own

    def send(number: int) -> bool:
        with lock:
            request = prompts.images(f"threads-{number}", [number], side=20)
        (expected,) = (feature.clone() for feature in features(request))
        return all(torch.equal(features(rank)[0], expected) for rank in received(prompts.share(request), ranks=2))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(send, range(80)))


def test_a_tokenizer_that_cannot_or_may_not(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KINDS", "lazycast.version")  # a release that makes no segments there
    assert module.keep_segments() is None
    monkeypatch.undo()
    monkeypatch.setattr(mm_utils, "shared_memory", shared_memory)
    monkeypatch.setenv(module.SEGMENTS, "0")
    assert module.keep_segments() is None


def test_where_there_is_too_little(segments: Segments, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang makes a segment of its own, and what it cannot put there it sends inside the message."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Memory, "__init__", full)
    tensor = torch.zeros(100 << 20, dtype=torch.uint8)
    sent = mm_utils._wrap_tensor_or_list(tensor)
    assert isinstance(sent, mm_utils.ShmPointerMMData)
    sent.close_and_unlink()
    monkeypatch.setattr("os.posix_fallocate", full)
    assert mm_utils._wrap_tensor_or_list(tensor) is tensor


def test_a_second_tokenizer_in_a_process_has_the_same(segments: Segments) -> None:
    assert module.keep_segments() is segments
