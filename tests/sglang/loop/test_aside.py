"""What happens to requests that are aside, on real schedulers. A gate keeps them there."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from asking import LIMIT_S, flush, put_aside, said_of, send, until, works
from conftest import Started, Usual
from sglang.srt.constants import HEALTH_CHECK_RID_PREFIX
from sglang.srt.managers import io_struct as messages
from watched import DAMAGED, Watch

from lazycast.tools.bench.sglang_loop.fleet import Fleet, SchedulerEndedError
from lazycast.tools.bench.sglang_loop.prompts import Prompts

#: It ends a hang alone: on a busy machine a hundred prompts with images take two minutes.
MANY_S = 300.0


def goes_on(fleet: Fleet, watch: Watch, prompts: Prompts) -> None:
    watch.close_gate()
    put_aside(fleet, watch, prompts, "a-1", "a-2", "b-1", "c-1", "c-2")
    # Text overtakes it, and is answered whole.
    (text,) = send(fleet, prompts, prompts.text("text", 1, tokens=20))
    assert fleet.wait([text], LIMIT_S)[text].tokens == 20
    assert all(fleet.answer(rid).reason is None for rid in ("a-1", "a-2", "b-1", "c-1", "c-2"))
    # One, those with a beginning, and then all.
    fleet.send(prompts.abort("b-1"))
    assert fleet.wait(["b-1"], LIMIT_S)["b-1"].reason["type"] == "abort"
    fleet.send(prompts.abort("a-"))
    answers = fleet.wait(["a-1", "a-2"], LIMIT_S)
    assert [answer.reason["type"] for answer in answers.values()] == ["abort", "abort"]
    assert fleet.answer("c-1").reason is None
    fleet.send(prompts.abort("", every=True))
    fleet.wait(["c-1", "c-2"], LIMIT_S)
    watch.open_gate()
    works(fleet, prompts, "next", 5)
    assert watch.inputs().keys() == {"text", "next"}, "what was aborted came into the queue"


def test_the_scheduler_goes_on_and_what_is_aside_can_be_aborted(usual: Usual, prompts: Prompts) -> None:
    goes_on(*usual, prompts)


def test_the_other_loop_goes_on(started: Started, prompts: Prompts) -> None:
    goes_on(*started("deferred", "--disable-overlap-schedule", gated=True), prompts)


def admits(fleet: Fleet, watch: Watch, prompts: Prompts) -> None:
    # While there is something to decode, since a scheduler with nothing to do receives in every iteration.
    (text,) = send(fleet, prompts, prompts.text("long text", 1, tokens=300))
    watch.close_gate()
    put_aside(fleet, watch, prompts, "one", "two", "three")
    watch.open_gate()
    answers = fleet.wait(["one", "two", "three"], LIMIT_S)
    assert {answer.tokens for answer in answers.values()} == {8}
    assert fleet.wait([text], LIMIT_S)[text].tokens == 300


def test_it_is_admitted_when_it_is_ready(usual: Usual, prompts: Prompts) -> None:
    admits(*usual, prompts)


def segments(request: Any) -> list[Path]:
    """Return the shared memory that the features of a request lie in, once it has been sent."""
    return [Path("/dev/shm", item.feature.shm_name) for item in request.mm_inputs.mm_items]


def test_features_are_opened_where_inputs_are_made(usual: Usual, prompts: Prompts) -> None:
    fleet, watch = usual
    watch.close_gate()
    requests = [prompts.images(rid, [n, n + 60]) for n, rid in enumerate(("goes on", "is aborted"))]
    rids = send(fleet, prompts, *requests)
    until(fleet, lambda: all(set(rids) <= watch.aside(rank) for rank in range(2)), f"{rids} aside")
    assert all(path.exists() for request in requests for path in segments(request)), "the receiver has opened them"
    fleet.send(prompts.abort("is aborted"))
    fleet.wait(["is aborted"], LIMIT_S)
    until(fleet, lambda: not any(path.exists() for path in segments(requests[1])), "the features are gone")
    assert all(path.exists() for path in segments(requests[0]))
    watch.open_gate()
    assert fleet.wait(["goes on"], LIMIT_S)["goes on"].reason == {"type": "length", "length": 8}
    until(fleet, lambda: not any(path.exists() for path in segments(requests[0])), "the features are gone")


def test_features_that_are_gone_end_their_request_alone(usual: Usual, prompts: Prompts) -> None:
    fleet, watch = usual
    lost = prompts.share(prompts.images("lost", [1, 2]))
    segments(lost)[1].unlink()
    fleet.send(lost)
    reason = fleet.wait(["lost"], LIMIT_S)["lost"].reason
    assert (reason["type"], reason["status_code"]) == ("abort", 500)
    assert "could not be opened: FileNotFoundError" in reason["message"]
    assert "lost" in watch.aside()
    until(fleet, lambda: not segments(lost)[0].exists(), "the other is gone")
    works(fleet, prompts, "after what was lost", 5)


SWITCHES = {
    "not received in every iteration": ["--scheduler-recv-interval", "7"],  # then what the entry rank says is dropped
    "chunked prefill": ["--chunked-prefill-size", "128"],
    "few at a time": ["--max-running-requests", "2"],
}


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_so_it_is_by_schedulers_that_are(started: Started, prompts: Prompts, switches: list[str]) -> None:
    admits(*started("deferred", *switches, gated=True), prompts)


@pytest.mark.timeout(2 * MANY_S)
def test_many_at_once(usual: Usual, prompts: Prompts) -> None:
    """More than a cast's root may be ahead of the others."""
    fleet, watch = usual
    requests = [prompts.images(f"request-{n:03}.", [n], side=22, tokens=2) for n in range(100)]
    fleet.freeze()
    rids = send(fleet, prompts, *requests)
    fleet.thaw()
    answers = fleet.wait(rids, MANY_S)
    assert {answer.tokens for answer in answers.values()} == {2}
    assert watch.aside() == set(rids)
    assert watch.inputs(0) == watch.inputs(1)


def test_a_time_out_ends_it_on_all_ranks(started: Started, prompts: Prompts) -> None:
    fleet, watch = started("deferred", gated=True, SGLANG_REQ_WAITING_TIMEOUT="1.0")
    watch.close_gate()
    put_aside(fleet, watch, prompts, "late")
    reason = fleet.wait(["late"], LIMIT_S)["late"].reason
    assert (reason["status_code"], reason["message"]) == (503, "Request waiting timeout reached.")
    watch.open_gate()
    works(fleet, prompts, "next", 5)


def test_flushing_pausing_and_looking_after_its_health(usual: Usual, prompts: Prompts) -> None:
    fleet, watch = usual
    watch.close_gate()
    put_aside(fleet, watch, prompts, "aside")
    fleet.send(messages.FlushCacheReqInput())
    assert not said_of(fleet, messages.FlushCacheReqOutput).success, "it was not seen"
    # A server that does nothing but wait for inputs is alive, and shows it by a token.
    health = prompts.text(f"{HEALTH_CHECK_RID_PREFIX}-1", 1, tokens=1)
    fleet.send(health)
    fleet.wait([health.rid], LIMIT_S)
    # While it is paused, requests wait: those aside too, and they hold nothing that a flush would take.
    fleet.send(messages.PauseGenerationReqInput(mode="retract"))
    fleet.send(messages.FlushCacheReqInput())
    assert said_of(fleet, messages.FlushCacheReqOutput).success
    watch.open_gate()
    until(fleet, lambda: "aside" in watch.inputs(), "it is in the queue")
    assert fleet.answer("aside").reason is None, "the engine is paused"
    fleet.send(messages.ContinueGenerationReqInput())
    assert fleet.wait(["aside"], LIMIT_S)["aside"].tokens == 8
    flush(fleet)


def test_an_image_that_cannot_be_hashed_ends_its_request_alone(usual: Usual, prompts: Prompts) -> None:
    fleet, watch = usual
    for turn in range(3):  # whichever rank hashes
        bad = prompts.images(f"bad {turn}", [1, 2])
        bad.mm_inputs.mm_items[1].feature[0, 0] = DAMAGED
        rids = send(fleet, prompts, prompts.images(f"good {turn}", [turn]), bad)
        good, reason = (fleet.wait(rids, LIMIT_S)[rid].reason for rid in rids)
        assert good["type"] == "length"
        assert (reason["type"], reason["status_code"]) == ("abort", 500)
        assert "this image is damaged" in reason["message"]
        assert bad.rid in watch.aside()


@pytest.mark.timeout(2 * MANY_S)
def test_requests_and_aborts_at_random(usual: Usual, prompts: Prompts) -> None:
    """Every request ends once, as it was asked to or because it was aborted; ranks never differ."""
    fleet, watch = usual
    chance = random.Random(7)
    rids: list[str] = []
    aborted: set[str] = set()
    for n in range(200):
        rid = f"chance-{n:03}."
        kind = chance.choice(["text", "small", "large", "hashed", "damaged"])
        if kind == "text":
            request = prompts.text(rid, n, tokens=chance.randint(1, 12))
        else:
            sides = {"small": 16, "large": 28, "hashed": 24, "damaged": 16}
            seeds = [chance.randint(0, 40) for _ in range(chance.randint(1, 3))]
            request = prompts.images(rid, seeds, side=sides[kind], tokens=4, damaged=kind == "damaged")
        if kind == "hashed":
            prompts.hash(request)
        rids += send(fleet, prompts, request)
        if chance.random() < 0.25:
            gone = chance.choice(rids[-8:])
            aborted.add(gone)
            fleet.send(prompts.abort(gone))
        if chance.random() < 0.3:
            fleet.receive(chance.random() * 0.1)
        if n % 40 == 39:
            fleet.wait(rids, MANY_S)
    answers = fleet.wait(rids, MANY_S)
    fleet.check()
    ended = {rid: answer.reason["type"] for rid, answer in answers.items() if answer.reason is not None}
    assert len(ended) == 200
    for rid, kind in ended.items():
        status = (answers[rid].reason or {}).get("status_code")
        assert kind == "length" or rid in aborted or status == 500, (rid, answers[rid])
    assert len(watch.aside()) > 20
    assert watch.inputs(0) == watch.inputs(1)


def casts_nothing_more(fleet: Fleet, watch: Watch, prompts: Prompts) -> None:
    before = None
    for n in range(3):
        request = prompts.images(f"hashed {n}", [n, n + 50])
        prompts.hash(request)
        fleet.wait(send(fleet, prompts, request))
        before = watch.casts() if before is None else before
    assert watch.aside() == set()
    assert watch.casts() == before
    fleet.wait(send(fleet, prompts, prompts.images("not hashed", [77])))
    fleet.wait(send(fleet, prompts, prompts.text("after it", 1)))
    assert watch.casts() == before + 1


def test_nothing_is_cast_for_what_has_its_hashes(usual: Usual, prompts: Prompts) -> None:
    casts_nothing_more(*usual, prompts)


def test_nor_by_schedulers_that_wait(started: Started, prompts: Prompts) -> None:
    casts_nothing_more(*started("blocking"), prompts)


def test_a_rank_that_is_killed_ends_the_server_soon(usual: Usual, prompts: Prompts) -> None:
    fleet, watch = usual
    watch.close_gate()
    put_aside(fleet, watch, prompts, "kept")
    os.kill(fleet.pids[1], signal.SIGKILL)
    end_s = time.monotonic() + LIMIT_S
    while os.waitid(os.P_PID, fleet.pids[0], os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        assert time.monotonic() < end_s, f"rank 0 is still there\n{fleet.log()}"
        time.sleep(0.05)
    with pytest.raises(SchedulerEndedError, match="has ended"):
        fleet.check()
    fleet.close()
