"""Real schedulers give the same tokens with lazycast as without, and their ranks' queues are the same all the time."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import WAYS, Started

from lazycast.tools.bench.sglang_loop.fleet import Fleet
from lazycast.tools.bench.sglang_loop.prompts import Prompts


def requests(prompts: Prompts) -> list[list[Any]]:
    """Return requests, those of one list at the same time."""
    return [
        [prompts.images("large", [1, 2])],
        [prompts.text("text", 1), prompts.images("one", [3]), prompts.images("small", [4], side=16)],
        [prompts.images("damaged", [5, 6], damaged=True), prompts.images("beside it", [7, 8])],
        [prompts.images("large again", [1, 2]), prompts.images("one again", [3])],
        [prompts.images(f"many {n}", [10 + n, 20 + n], side=24) for n in range(6)],
    ]


def ask(fleet: Fleet, prompts: Prompts) -> dict[str, Any]:
    """Return what has come of each request."""
    came: dict[str, Any] = {}
    for some in requests(prompts):
        for request in some:
            fleet.send(prompts.share(request))
        for rid, answer in fleet.wait([request.rid for request in some]).items():
            reason = answer.reason or {}
            came[rid] = answer.ids, answer.tokens, reason["type"], reason.get("status_code"), answer.cached
    return came


@pytest.mark.parametrize("loop", ["overlap", "normal"])
def test_all_ways_give_the_same(started: Started, prompts: Prompts, loop: str) -> None:
    switches = ["--disable-overlap-schedule"] if loop == "normal" else []
    came, inputs, aside, casts = {}, {}, {}, {}
    for way in WAYS:
        # SGLang alone ends with an image that cannot be hashed: the others have to do better.
        fleet, watch = started(way, *switches)
        if way == "alone":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(f"{__name__}.requests", without_damage)
                came[way] = ask(fleet, prompts)
        else:
            came[way] = ask(fleet, prompts)
            code = came[way].pop("damaged")
            assert code[2:4] == ("abort", 500)
        inputs[way], aside[way], casts[way] = watch.inputs(), watch.aside(), watch.casts()
        inputs[way].pop("damaged", None)
        fleet.check()
    assert came["blocking"] == came["alone"]
    assert came["deferred"] == came["alone"]
    assert inputs["blocking"] == inputs["deferred"] == inputs["alone"]
    assert came["alone"]["large again"][4] > came["alone"]["large"][4], "nothing was found again in the cache"
    assert aside["alone"] == aside["blocking"] == set()
    worth = {rid for rid in came["alone"] if rid not in ("text", "small")}
    assert aside["deferred"] == worth
    assert casts["deferred"] >= len(worth)


def without_damage(prompts: Prompts, whole: Any = requests) -> list[list[Any]]:
    return [[request for request in some if request.rid != "damaged"] for some in whole(prompts)]
