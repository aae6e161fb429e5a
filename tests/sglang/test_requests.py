"""Whole requests over lazycast, through the receiver's own code."""

from __future__ import annotations

import contextlib
import copy
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import zmq
from kit import Ranks, Scheduler, same
from sglang.srt.managers.io_struct import AbortReq, TokenizedGenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from lazycast.adapters.sglang import install_requests, requests, uninstall_requests
from lazycast.adapters.sglang.plugin import REQUESTS, plugin
from lazycast.errors import EncodeError, RemoteError
from lazycast.tools.bench.sglang import inputs

AROUND = (-1000, *range(-330, 9, 13), 1000)  # a head and a pickle are some 200 bytes


def request(seed: int) -> Any:
    """What the tokenizer sends for a prompt with two images."""
    fields = {
        "rid": f"request {seed}",
        "input_text": "what is in these images?",
        "input_ids": list(range(900)),
        "mm_inputs": inputs.images(2, seed, patches=200),
        "sampling_params": SamplingParams(max_new_tokens=7),
        "return_logprob": False,
        "logprob_start_len": 0,
        "top_logprobs_num": 0,
        "token_ids_logprob": None,
        "stream": False,
    }
    if not inputs.bundles():
        fields |= {"input_embeds": None, "token_type_ids": None}
    return TokenizedGenerateReqInput(**fields)


class Socket:
    """A socket on which these requests have come."""

    def __init__(self, sent: list[Any]) -> None:
        self.sent = list(sent)

    def recv_pyobj(self, flags: int) -> Any:
        if not self.sent:
            raise zmq.Again
        return self.sent.pop(0)


def receive(sent: list[Any], group: Any, *, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Let the real receiver bring what rank 0 of a group has got to all of its ranks."""
    members = dist.get_process_group_ranks(group)
    rank = dist.get_rank()
    tp = SimpleNamespace(rank=rank, ranks=members, cpu_group=group)
    if inputs.bundles():
        from sglang.srt.managers import scheduler as module

        # It would import the HTTP server to find out that nothing came by shared memory.
        monkeypatch.setattr(module, "unwrap_shm_features", lambda request: request)
        scheduler = Scheduler.__new__(Scheduler)
        vars(scheduler).update(
            recv_skipper=None,
            input_blocker=None,
            pp_rank=0,
            attn_tp_rank=members.index(rank),
            attn_cp_rank=0,
            max_recv_per_poll=-1,
            enable_trace=False,
            recv_from_tokenizer=Socket(sent if rank == members[0] else []),
            recv_from_rpc=Socket([]),
            server_args=SimpleNamespace(
                enable_dp_attention=False, language_only=False, encoder_transfer_backend="", enable_trace=False
            ),
            tp_size=len(members),
            tp_group=tp,
            tp_cpu_group=group,
        )
        received: list[Any] = scheduler.recv_requests()
        return received
    from sglang.srt.managers.scheduler_components import request_receiver

    context = SimpleNamespace(attn_dp_enabled=False, tp_size=len(members), tp_group=tp)
    monkeypatch.setattr(request_receiver, "get_parallel", lambda: context)
    broadcast = request_receiver.SchedulerRequestReceiver._broadcast_reqs_across_ranks
    found: list[Any] = broadcast(SimpleNamespace(), sent if rank == members[0] else None)
    return found


@pytest.fixture
def installed(ranks: Ranks) -> Iterator[None]:
    install_requests()
    install_requests()
    yield
    ranks.meet()
    uninstall_requests()
    assert not requests._open


def test_it_is_the_receiver_that_is_changed_and_changed_back(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    group = dist.group.WORLD
    sent = [request(1), AbortReq(rid="x")]
    theirs = receive(copy.deepcopy(sent), group, monkeypatch=monkeypatch)
    install_requests()
    try:
        found = receive(sent, group, monkeypatch=monkeypatch)
        assert requests._open, "lazycast had no part in it"
        if ranks.rank == 0:
            assert all(one is other for one, other in zip(found, sent, strict=True))
        same_requests(found, theirs)
        ranks.meet()
    finally:
        uninstall_requests()
    same_requests(receive(sent, group, monkeypatch=monkeypatch), theirs)
    assert not requests._open


def same_requests(found: list[Any], expected: list[Any]) -> None:
    assert [type(one) for one in found] == [type(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.rid == other.rid
        if isinstance(one, TokenizedGenerateReqInput):
            assert list(one.input_ids) == list(other.input_ids)
            assert one.sampling_params.max_new_tokens == other.sampling_params.max_new_tokens
            same(one.mm_inputs, other.mm_inputs)


def test_many_lists_some_of_them_empty(ranks: Ranks, installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for turn in range(30):
        sent = [request(turn)] if turn % 5 == 0 else []
        same_requests(receive(sent, dist.group.WORLD, monkeypatch=monkeypatch), sent or copy.copy(sent))


def test_lists_of_every_length(ranks: Ranks, installed: None) -> None:
    """In one broadcast, in two, by lazycast: what lies around the limits arrives whole, and writable."""
    module = __import__(next(iter(requests._replaced)), fromlist=["broadcast_pyobj"])
    for nbytes in (0, 1, *(limit + d for limit in (requests._FIRST_NBYTES, requests._SMALL_NBYTES) for d in AROUND)):
        body = np.random.default_rng(nbytes).integers(0, 255, nbytes, np.uint8)
        sent = [body.copy(), nbytes] if ranks.rank == 0 else []
        array, number = module.broadcast_pyobj(sent, ranks.rank, dist.group.WORLD, src=0)
        assert number == nbytes
        assert np.array_equal(array, body), nbytes
        array += 1  # nobody else's
        ranks.meet()
        assert np.array_equal(array, body + np.uint8(1)), nbytes


def test_what_arrives_is_private(ranks: Ranks, installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    (found,) = receive([request(1)], dist.group.WORLD, monkeypatch=monkeypatch)
    items = found.mm_inputs["mm_items"] if inputs.bundles() else found.mm_inputs.mm_items
    for item in items:
        item.feature.fill_(ranks.rank)
    ranks.meet()
    assert all(bool((item.feature == ranks.rank).all()) for item in items)


def test_groups_whose_source_is_not_rank_0(ranks: Ranks, installed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if ranks.size < 4:
        pytest.skip("two groups of two need four ranks")
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    mine = ranks.rank // 2
    sent = [request(mine)]
    same_requests(receive(sent, groups[mine], monkeypatch=monkeypatch), [request(mine)])


def test_what_does_not_pickle_raises_on_every_rank(ranks: Ranks, installed: None) -> None:
    module = __import__(next(iter(requests._replaced)), fromlist=["broadcast_pyobj"])
    with pytest.raises(EncodeError if ranks.rank == 0 else RemoteError, match="lock"):
        module.broadcast_pyobj([threading.Lock()], ranks.rank, dist.group.WORLD, src=0)
    assert module.broadcast_pyobj([1, "two"], ranks.rank, dist.group.WORLD, src=0) == [1, "two"]


def casts(group: Any = None) -> int:
    """How many lists have travelled by lazycast here."""
    return sum(one.stats().casts for of, one in requests._open.values() if group in (None, of))


def test_small_lists_travel_as_sglang_sends_them(
    ranks: Ranks, installed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = dist.group.WORLD
    sent = [request(1), AbortReq(rid="x")]
    small = [AbortReq(rid=f"request {number}") for number in range(9)]
    for data in ([], small, sent, [], small):
        found = receive(data, world, monkeypatch=monkeypatch)
        same_requests(found, data or copy.copy(data))
        assert found is not data or ranks.rank == 0
    assert casts() == 1, "only what is large is worth a cast"


def test_the_source_waits_for_nobody(ranks: Ranks) -> None:
    # A cast, two broadcasts of the group, one, and one that says nothing.
    sent: list[list[Any]] = [[request(7)], [AbortReq(rid="x" * 30_000)], [AbortReq(rid="y")], [], [request(8)]]
    aside = dist.new_group()
    own = requests.RequestBroadcast()
    if ranks.rank == 0:
        for data in sent:
            assert own.broadcast(data) is data
    dist.barrier(aside)  # nobody has asked for any of it yet
    if ranks.rank:
        for data in sent:
            same_requests(own.broadcast([]), data)
    own.close()  # on the source once all of it has arrived


def test_closing_waits_no_longer_than_it_may_for_who_does_not_ask(ranks: Ranks) -> None:
    aside = dist.new_group()
    own = requests.RequestBroadcast()
    if ranks.rank == 0:
        for data in ([1], [2]):
            own.broadcast(data)
        for timeout_s in (0.0, None):  # what is given up once is not waited for again
            began_s = time.monotonic()
            with pytest.raises(RuntimeError) if timeout_s == 0 else contextlib.nullcontext():
                own.close(timeout_s=timeout_s)
            assert time.monotonic() - began_s < 10
    dist.barrier(aside)
    if ranks.rank:
        assert [own.broadcast([]), own.broadcast([])] == [[1], [2]]
        own.close()


def test_arrays_of_small_lists_are_private_and_writable(ranks: Ranks, installed: None) -> None:
    module = __import__(next(iter(requests._replaced)), fromlist=["broadcast_pyobj"])
    sent = [np.arange(3_000), torch.arange(7.0), {"name": b"bytes"}]
    array, tensor, name = module.broadcast_pyobj(sent, ranks.rank, dist.group.WORLD, src=0)
    assert (array.sum(), tensor.sum(), name) == (4_498_500, 21, {"name": b"bytes"})
    array[:] = tensor[:] = ranks.rank
    ranks.meet()
    assert (array == ranks.rank).all()
    assert bool((tensor == ranks.rank).all())
    assert casts() == 0


@pytest.mark.release("0.5.23")
def test_the_diffusion_server_is_hooked_before_it_imports_what_it_calls(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own loading of plugins, and its own chain over groups; its scheduler needs packages that are not here."""
    from sglang.multimodal_gen.runtime.distributed import utils
    from sglang.multimodal_gen.runtime.platforms import plugins

    theirs = utils.broadcast_pyobj
    monkeypatch.setenv(REQUESTS, "1")
    monkeypatch.setattr(plugins, "entry_points", only_ours)
    plugins._reset_lifecycle_for_tests()
    try:
        plugins.load_plugins()
        assert utils.broadcast_pyobj is theirs, "a plugin only registers"
        plugins.apply_plugin_hooks()
        for sent in ([], [torch.full((70_000,), 3.0)], ["small"]):
            found: Any = sent if ranks.rank == 0 else None
            for _ in range(2):  # as of one group after the other
                found = utils.broadcast_pyobj(found, ranks.rank, dist.group.WORLD, src=0)
            same(found, sent)
        assert casts() == 2
        ranks.meet()
    finally:
        utils.broadcast_pyobj = theirs
        plugins.HookRegistry.reset()
        plugins._reset_lifecycle_for_tests()
        uninstall_requests()


def only_ours(group: str) -> list[Any]:
    """What is installed: here lazycast lies beside the environment, and is not."""
    from importlib.metadata import EntryPoint

    ours = EntryPoint("lazycast", "lazycast.adapters.sglang.plugin:diffusion_plugin", group)
    return [ours] if group == "sglang.multimodal_gen.plugins" else []


@pytest.mark.parametrize("on", [True, False])
@pytest.mark.release("0.5.23")
def test_the_plugin_does_it_only_if_it_is_asked_to(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.setenv(REQUESTS, "1" if on else "0")
    try:
        plugin()
        assert bool(requests._replaced) is on
    finally:
        uninstall_requests()
        HookRegistry.reset()
