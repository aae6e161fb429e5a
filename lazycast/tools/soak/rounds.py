"""One object on one rank: its casts in bursts, what is held at quiet points, and the end of the object."""

from __future__ import annotations

import concurrent.futures
import gc
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from lazycast.api import LazyBroadcast
from lazycast.errors import LazycastError
from lazycast.net.backend import Backend
from lazycast.testing.kit import spelled
from lazycast.tools.soak import census, materializers
from lazycast.tools.soak.asking import Asker
from lazycast.tools.soak.diary import Diary, Orders
from lazycast.tools.soak.judging import KEPT_AT_MOST, Judge, name_of
from lazycast.tools.soak.plan import Burst, CastPlan, RoundPlan

#: Of the engine's objects that a cast has, how many may be alive when none is under way.
_ALIVE_AT_MOST = 8
#: How long others may take to let go of a value they have dropped (seconds).
_LET_GO_S = 10.0


class Round:
    """One object, on one rank. `meet` waits for the other ranks."""

    def __init__(
        self, orders: Orders, plan: RoundPlan, backend: Backend, diary: Diary, meet: Callable[[], None]
    ) -> None:
        self._orders, self._plan, self._backend, self._diary, self._meet = orders, plan, backend, diary, meet
        self._me = backend.rank
        self._lazy: LazyBroadcast[Any, Any]
        self._judge = Judge(orders, plan, self._me, diary, lambda: self._lazy.dump())
        self._asker: Asker

    @property
    def casts(self) -> int:
        """How many were asked for here."""
        return self._asker.casts

    @property
    def injected(self) -> Counter[str]:
        """The faults put in by this rank, by kind."""
        return self._asker.injected

    @property
    def endings(self) -> Counter[str]:
        """How the casts ended here, by kind."""
        return self._judge.endings

    def run(self) -> None:
        """Do all of it. Raises Hang."""
        with ExitStack() as stack:
            executor = None
            if self._plan.executor:
                executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(2))
            name = f"round-{self._plan.number}"
            limit_s = self._orders.limit_s
            options = {**self._plan.options, "warn_after_s": limit_s, "executor": executor}
            self._lazy = LazyBroadcast(backend=self._backend, name=name, timeout_s=limit_s, **spelled(options))
            self._asker = Asker(self._orders, self._plan, self._lazy, self._judge)
            self._diary.write("begin", round=self._plan.number)
            self._live()
            if self._plan.ending != "leave":
                self._end()
                self._judge.check_kept("after close")
        self._judge.kept.clear()

    def _live(self) -> None:
        bursts, ending = self._plan.bursts, self._plan.ending
        if ending == "death":
            self._watch_for_death()
        for index, burst in enumerate(bursts):
            self._diary.write("burst", round=self._plan.number)
            if ending == "close early" and index == len(bursts) // 2 and self._me == self._plan.rank:
                self._close_early(burst)
            else:
                self._asker.run(burst)
            if self._judge.ended:
                return
            if burst.quiet and ending == "close":
                self._quiet(f"after cast {burst.casts[-1].number}")
        if ending == "death":
            self._wait_for_death()
        elif ending == "leave":
            self._leave()

    # Quiet points, and the end

    def _quiet(self, when: str) -> None:
        """All ranks have dropped their values, but for those they keep: nothing else is held."""
        self._judge.check_kept(when)
        if not self._plan.keeps:
            self._judge.kept.clear()
        self._meet()  # then nobody holds other values
        # Of a value that is kept there may be two slots: its payload's, and its own.
        allowed = 2 * KEPT_AT_MOST if self._plan.keeps else 0
        problems = self._settled(allowed)
        deadline_s = time.monotonic() + _LET_GO_S
        while problems and time.monotonic() < deadline_s:
            time.sleep(0.01)
            problems = self._settled(allowed)
        for problem in problems:
            self._diary.leak(self._judge.where(), f"{when}: {problem}")
        if problems:
            self._diary.write("dump", text=self._lazy.dump())
        self._diary.write("quiet", round=self._plan.number, rss_nbytes=census.rss_nbytes())
        with census.collecting():  # what a slow materializer was asked for is let go of when it ends, maybe as a circle
            self._meet()  # or the next burst would be counted here

    def _settled(self, allowed_slots: int) -> list[str]:
        """Return what is under way or held though all casts have ended."""
        gc.collect()
        stats, objects = self._lazy.stats(), census.objects()
        counts = {
            "slots held": (stats.shared_slots, allowed_slots),
            "calls pending": (stats.pending, 0),
            "casts unasked": (stats.unasked, 0),
            "descriptors of shared memory": (census.memories(), 2 * self._backend.size),
            **{f"instances of {name}": (objects[name], _ALIVE_AT_MOST) for name in ("Arrival", "CastFuture")},
        }
        return [f"{count} {what}, {most} at most" for what, (count, most) in counts.items() if count > most]

    def _end(self) -> None:
        if self._plan.ending == "close early":
            self._meet()  # who closes before all have seen it would be named as well
        elif self._plan.ending == "death":
            self._expect(f"PeerLostError:{self._plan.rank}", "after the loss")
        self._close(None)
        self._expect(f"ClosedError:{self._me}", "after close")

    def _close(self, timeout_s: float | None) -> None:
        began_s = time.monotonic()
        self._lazy.close(timeout_s=timeout_s)
        took_s = time.monotonic() - began_s
        if took_s > (timeout_s or 0.0) + self._orders.slack_s:
            self._diary.hang(self._judge.where(), f"close() took {took_s:.1f} s")

    def _expect(self, ending: str, when: str) -> None:
        """Make a call that can only fail, at once."""
        began_s = time.monotonic()
        try:
            value = self._lazy.broadcast("later", key="later")
        except LazycastError as exc:
            if name_of(exc) != ending:
                self._diary.wrong(self._judge.where(), f"{when}: {name_of(exc)} instead of {ending}: {exc}")
        else:
            self._diary.wrong(self._judge.where(), f"{when}: the value {value!r} instead of {ending}")
        took_s = time.monotonic() - began_s
        if took_s > self._orders.slack_s:
            self._diary.hang(self._judge.where(), f"{when}: it took {took_s:.1f} s to fail")

    def _close_early(self, burst: Burst) -> None:
        """Leave the others alone with casts under way."""
        self._asker.injected["close early"] += 1
        asked = [self._asker.ask(cast) for cast in self._asker.order(burst.casts)]
        self._close(burst.casts[0].seed % 4 / 4)
        for one in asked:
            if one.future is not None and not one.future.done():
                self._judge.hang(f"cast {one.plan.number} is pending after close()")
            self._judge.finish(one)
        self._judge.ended = True

    def _leave(self) -> None:
        """Have calls pending when the interpreter exits."""
        self._asker.injected["leave"] += 1
        pause = materializers.named("pause", 0, str(self._plan.options["trust"]))
        for number in range(4):
            key = f"left-{number}" if self._me == self._plan.root else f"never-{number}"
            self._lazy.broadcast_async({"payload": number, "seconds": 0.3}, materialize=pause, key=key)

    def _watch_for_death(self) -> None:
        """Note the moment at which this rank is told."""
        if self._me != self._plan.root:  # whose calls need no one else to begin
            future = self._lazy.broadcast_async(key="never")
            future.add_done_callback(lambda _: self._diary.write("lost", by="a callback"))

    def _wait_for_death(self) -> None:
        number = 0
        deadline_s = time.monotonic() + self._orders.limit_s
        while not self._judge.ended and time.monotonic() < deadline_s:
            number += 1
            cast = CastPlan(10**6 + number, number, f"more-{number}", "numbers", 100, None)
            self._judge.finish(self._asker.ask(cast, blocking=True))
        if not self._judge.ended:
            self._judge.hang(f"rank {self._plan.rank} is dead, or should be; this rank has not been told")
