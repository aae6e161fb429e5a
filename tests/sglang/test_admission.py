"""Which requests are put aside, on each rank, without a scheduler around it: `loop` has the real one."""

from __future__ import annotations

import time
from array import array
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytestmark = pytest.mark.release("0.5.23")

from kit import Ranks, alone, same  # noqa: E402

from lazycast.adapters.sglang import SGLangBroadcast  # noqa: E402
from lazycast.adapters.sglang.admission import Desk, after_idle, after_poll, before_process  # noqa: E402
from lazycast.adapters.sglang.features import is_pointer  # noqa: E402
from lazycast.tools.bench.sglang import inputs  # noqa: E402

LIMIT_S = 30.0


def generate(rid: str, raw: Any, **fields: Any) -> Any:
    from sglang.srt.managers.io_struct import TokenizedGenerateReqInput

    given: dict[str, Any] = dict.fromkeys(TokenizedGenerateReqInput.__struct_fields__[2:12])
    return TokenizedGenerateReqInput(**{**given, "rid": rid, "mm_inputs": raw, "stream": False, **fields})


def embed(rid: str, raw: Any) -> Any:
    from sglang.srt.managers.io_struct import TokenizedEmbeddingReqInput

    given = {"input_text": "", "input_ids": array("q", [1]), "token_type_ids": None, "sampling_params": None}
    return TokenizedEmbeddingReqInput(rid=rid, mm_inputs=raw, **given)


def batch(*requests: Any) -> Any:
    from sglang.srt.managers.io_struct import BatchTokenizedGenerateReqInput

    return BatchTokenizedGenerateReqInput(batch=list(requests))


def image(seed: int) -> Any:
    return inputs.images(1, seed, patches=50)


def kinds() -> dict[str, tuple[Any, bool]]:
    """Return requests, and whether they are put aside."""
    video, audio = inputs.raw([inputs.video_item(2, 1)]), inputs.raw([inputs.audio_item(1)])
    on_no_device = inputs.raw(inputs.image_items(1, 1, patches=5))
    on_no_device.mm_items[0].feature = on_no_device.mm_items[0].feature.to("meta")
    return {
        "image": (generate("image", image(1)), True),
        "embedding": (embed("embedding", image(2)), True),
        "video": (generate("video", video), True),
        "audio": (generate("audio", audio), True),
        "text": (generate("text", None), False),
        "session": (generate("session", image(3), session_id="s"), False),
        "parameters of a session": (generate("parameters", image(3), session_params=SimpleNamespace(id="s")), False),
        "overrides": (generate("overrides", image(3), positional_embed_overrides=SimpleNamespace()), False),
        "batch": (batch(generate("one", image(4)), generate("two", image(5))), False),
        "hashed": (generate("hashed", inputs.raw(inputs.image_items(1, 1, patches=5, hash=7))), False),
        "elsewhere": (generate("elsewhere", on_no_device), False),
    }


class Around:
    """As much of a scheduler as a desk sees."""

    def __init__(self, broadcast: SGLangBroadcast) -> None:
        self.answers: list[Any] = []
        self._lazycast_desk = Desk(self, broadcast)

    def send_abort_output(self, answer: Any, request: Any) -> None:
        self.answers.append((answer.rid, request.rid))


def iterations(ranks: Ranks, scheduler: Around, until: int) -> list[Any]:
    """Do as the loop does, with what the entry rank says, until so many requests have been handed on."""
    handed: list[Any] = []
    end_s = time.monotonic() + LIMIT_S
    while len(handed) < until:
        assert time.monotonic() < end_s
        received = ranks.tell(after_poll([], scheduler) if ranks.rank == 0 else None)[0]
        before_process(scheduler, received)
        handed += received
    return handed


def test_which_requests_are_put_aside(ranks: Ranks) -> None:
    with SGLangBroadcast() as broadcast:
        scheduler = Around(broadcast)
        received = [request for request, _ in kinds().values()]
        passed = [request for request, aside in kinds().values() if not aside]
        assert after_idle(True, scheduler)
        before_process(scheduler, received)
        assert [type(one) for one in received] == [type(one) for one in passed]
        assert [getattr(one, "rid", None) for one in received] == [getattr(one, "rid", None) for one in passed]
        assert not after_idle(True, scheduler)
        assert after_idle(True, scheduler, for_health_check=True)
        assert after_idle(True, scheduler, ignore_waiting=True)
        handed = iterations(ranks, scheduler, 4)
        ranks.agree([request.rid for request in handed])
        assert {request.rid for request in handed} == {"image", "embedding", "video", "audio"}
        for request in handed:
            same(request.mm_inputs, alone(kinds()[request.rid][0].mm_inputs))
        assert after_idle(True, scheduler)
        assert not after_idle(False, scheduler)
        ranks.meet()


def shared(ranks: Ranks, raw: Any) -> Any:
    """Return inputs of the entry rank as all get them, their features in shared memory."""
    from sglang.srt.managers.mm_utils import _wrap_tensor_or_list

    if ranks.rank == 0:
        for item in raw.mm_items:
            item.feature = _wrap_tensor_or_list(item.feature)
        first = raw.mm_items[0]
        first.precomputed_embeddings = _wrap_tensor_or_list([first.offsets, torch.ones(3)])
    return ranks.tell(raw)[0]


def pointers_of(raw: Any) -> list[Any]:
    embeddings = raw.mm_items[0].precomputed_embeddings or []
    return [value for value in [*(item.feature for item in raw.mm_items), *embeddings] if is_pointer(value)]


def test_features_in_shared_memory_are_each_ranks_own(ranks: Ranks) -> None:
    with SGLangBroadcast() as broadcast:
        scheduler = Around(broadcast)
        raw = shared(ranks, inputs.images(3, 8, patches=50))
        names = [part.shm_name for part in pointers_of(raw)]
        assert len(names) == 4
        before_process(scheduler, [generate("x", raw)])
        (request,) = iterations(ranks, scheduler, 1)
        expected = inputs.images(3, 8, patches=50)
        expected.mm_items[0].precomputed_embeddings = [expected.mm_items[0].offsets, torch.ones(3)]
        same(request.mm_inputs, alone(expected))
        ranks.meet()
        if ranks.rank == 0:
            for item in request.mm_inputs.mm_items:
                item.feature.zero_()
        ranks.meet()
        if ranks.rank:
            same(request.mm_inputs, alone(expected))
        assert not any(Path("/dev/shm", name).exists() for name in names)
        ranks.meet()


@pytest.mark.parametrize("where", ["the entry rank", "another"])
def test_a_rank_that_cannot_open_them_ends_the_request_on_all(ranks: Ranks, where: str) -> None:
    from sglang.srt.managers.io_struct import MMInputsProcessError

    at = 0 if where == "the entry rank" else ranks.size - 1
    with SGLangBroadcast() as broadcast:
        scheduler = Around(broadcast)
        for turn in range(2 * ranks.size):  # whoever hashes
            raw = shared(ranks, image(turn))
            pointer = pointers_of(raw)[0]
            if ranks.rank == at:
                pointer.__del__()
                pointer._materialization_error = "OSError: too many open files"
            before_process(scheduler, [generate("x", raw)])
            (request,) = iterations(ranks, scheduler, 1)
            assert isinstance(request.mm_inputs, MMInputsProcessError)
            assert "could not be opened: OSError: too many open files" in request.mm_inputs.message
            assert f"rank {at} " in request.mm_inputs.message
            ranks.meet()
            assert not Path("/dev/shm", pointer.shm_name).exists()
        ranks.meet()


def test_an_id_that_comes_again_while_its_first_is_aborted(ranks: Ranks) -> None:
    from sglang.srt.managers.io_struct import AbortReq

    with SGLangBroadcast() as broadcast:
        scheduler = Around(broadcast)
        for turn in range(10):
            received = [generate("x", image(turn)), AbortReq(rid="x"), generate("x", image(turn + 50))]
            before_process(scheduler, received)
            assert [type(one) for one in received] == [AbortReq]
            (request,) = iterations(ranks, scheduler, 1)
            same(request.mm_inputs, alone(image(turn + 50)))
        assert scheduler.answers == [("x", "x")] * 10
        ranks.meet()


def test_a_broadcast_that_is_closed_ends_requests_and_no_scheduler(ranks: Ranks) -> None:
    from sglang.srt.managers.io_struct import MMInputsProcessError

    broadcast = SGLangBroadcast()
    scheduler = Around(broadcast)
    ranks.meet()
    broadcast.close()
    before_process(scheduler, [generate("x", image(1))])
    (request,) = iterations(ranks, scheduler, 1)
    assert isinstance(request.mm_inputs, MMInputsProcessError)
    assert "closed" in request.mm_inputs.message
