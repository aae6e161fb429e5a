"""What a rank counts, and what the root knows of the others."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from functools import partial

from lazycast.errors import MaterializeError
from lazycast.testing.kit import TIMEOUT_S, Rank, behaviour, check, raises, same
from lazycast.watch.group_stats import GroupStats
from lazycast.watch.stats import PHASES, Stats

_CASTS = 20


def _digest(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _refuse(payload: object) -> object:
    raise ValueError("no")


def _counts(stats: Stats, phases: tuple[str, ...]) -> dict[str, int]:
    return {phase: getattr(stats, phase).count for phase in phases}


@behaviour()
def every_phase_of_every_cast_is_counted(rank: Rank) -> None:
    with rank.lazy(_digest, placement="every") as lazy:
        for n in range(_CASTS):
            lazy.broadcast(bytes(1000 * n))
        stats = lazy.stats()
        same((stats.casts, stats.asked, stats.resolved, stats.pending), (_CASTS, _CASTS, _CASTS, 0), "calls")
        same(stats.placements, {"every": _CASTS}, "placements")
        check(0 < stats.qps < 1e6 and stats.age_s > 0, f"{stats.qps} a second after {stats.age_s} s")
        expected = {"materialize": _CASTS, "total": _CASTS}
        if rank.size > 1 and lazy.is_root:
            expected |= dict.fromkeys(("queue", "held", "encode", "agree"), _CASTS)
        elif rank.size > 1:
            expected |= dict.fromkeys(("decode", "agree"), _CASTS)
            same(stats.wait.count + stats.unread.count, _CASTS, "casts that waited, or were waited for")
            check(stats.transfer.count in (0, _CASTS), "only some transfers were timed")
            same(stats.materializer_hits + stats.materializer_loads, _CASTS, "materializers looked up")
            same(stats.materializer_loads, 1, "materializers loaded")
        same(_counts(stats, tuple(expected)), expected, "timed")
        for phase in PHASES:
            timing = getattr(stats, phase)
            check(0 <= timing.p50_s <= timing.p99_s <= timing.max_s < TIMEOUT_S, f"{phase}: {timing}")
            check(timing.max_s <= timing.total_s + 1e-9, f"{phase}: {timing}")
        if lazy.is_root:  # elsewhere the work may be done before the call
            check(stats.materialize.total_s < stats.total.total_s, "calls took less than their work")
        rank.meet()


def _eventually(lazy: Callable[[], GroupStats], done: Callable[[GroupStats], bool]) -> GroupStats:
    until_s = time.monotonic() + TIMEOUT_S
    while not done(group := lazy()):
        check(time.monotonic() < until_s, f"the root did not hear of it: {group}")
        time.sleep(0.02)
    return group


@behaviour()
def the_root_hears_what_all_have_counted(rank: Rank) -> None:
    with rank.lazy(_digest, placement="every") as lazy:
        for n in range(_CASTS):
            lazy.broadcast(bytes(n))
        raises(MaterializeError, "no", partial(lazy.broadcast, b"", materialize=_refuse))
        if not lazy.is_root:
            raises(ValueError, "only the root, rank 0", partial(lazy.stats, group=True))
        else:
            group = _eventually(
                lambda: lazy.stats(group=True),
                lambda group: not group.unheard and all(s.failed for s in group.ranks.values()),
            )
            same(list(group.ranks), list(range(rank.size)), "ranks heard of")
            for said in group.ranks.values():
                same((said.resolved, said.casts, said.placements["every"]), (_CASTS,) + (_CASTS + 1,) * 2, "counted")
            same(group.failed, {"MaterializeError": rank.size}, "failed")
            total = group.timing("total")
            same(total.count, _CASTS * rank.size, "calls of all")
            check(total.p50_s <= total.p99_s <= total.max_s, f"{total}")
            check(group.qps >= 0 and group.age_s[0] == 0, f"{group.qps} a second")
        rank.meet()


@behaviour(min_size=2)
def the_last_word_of_a_rank_that_closes_is_kept(rank: Rank) -> None:
    lazy = rank.lazy(placement="every", agree=False)
    for n in range(3):
        same(lazy.broadcast(n), n)
    for r in range(rank.last, 0, -1):  # those that others' words pass by close after them
        if rank.rank == r:
            lazy.close()
        rank.meet()
    if lazy.is_root:
        group = _eventually(lambda: lazy.stats(group=True), lambda group: not group.unheard)
        same({r: s.resolved for r, s in group.ranks.items()}, dict.fromkeys(range(rank.size), 3), "resolved")
    rank.meet()
    lazy.close()
