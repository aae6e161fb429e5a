"""One object on one rank: its casts in bursts, how each ended, what is kept, and the end of the object.

Guarantees: every cast of the plan is asked for or discarded, once, whatever happened to the others; each has an ending
that the oracle knows, or is written down; a call that outlives its time limit ends the rank.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from lazycast.api import LazyBroadcast
from lazycast.backend import Backend
from lazycast.errors import LazycastError, MaterializeError
from lazycast.future import CastFuture
from lazycast.missing import MISSING
from lazycast.soak import census, materializers, oracle, payloads
from lazycast.soak.diary import Diary, Orders
from lazycast.soak.materializers import Planned
from lazycast.soak.plan import Burst, CastPlan, RoundPlan

_THREADS = 3
_KEPT_AT_MOST = 24
#: Of the engine's objects that a cast has, how many may be alive when none is under way.
_ALIVE_AT_MOST = 8
_ROOT_TIME_OUT_S = 0.002
#: How long others may take to let go of a value they have dropped (seconds).
_LET_GO_S = 10.0


class Hang(Exception):
    """A call has outlived its time limit: there is nothing more that this rank can do."""


@dataclass
class Asked:
    """A cast that this rank has asked for."""

    plan: CastPlan
    since_s: float
    future: CastFuture[Any] | None = None
    error: BaseException | None = None
    calls_back: list[None] = field(default_factory=list)


class Round:
    """See the module's text."""

    def __init__(
        self, orders: Orders, plan: RoundPlan, backend: Backend, diary: Diary, meet: Callable[[], None]
    ) -> None:
        self._orders, self._plan, self._backend, self._diary, self._meet = orders, plan, backend, diary, meet
        self._me = backend.rank
        self._trust = str(plan.options["trust"])
        self._kept: list[tuple[CastPlan, Any]] = []
        self._ended = False
        self.casts = 0
        self.injected: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        self.lazy: LazyBroadcast[Any, Any]

    def run(self) -> None:
        """Do all of it. Raises Hang."""
        with ExitStack() as stack:
            executor = None
            if self._plan.executor:
                executor = stack.enter_context(concurrent.futures.ThreadPoolExecutor(2))
            name = f"round-{self._plan.number}"
            limit_s = self._orders.limit_s
            self.lazy = LazyBroadcast(
                backend=self._backend, name=name, timeout_s=limit_s, warn_after_s=limit_s, executor=executor,
                **self._plan.options,
            )  # fmt: skip
            self._diary.write("begin", round=self._plan.number)
            self._live()
            if self._plan.ending != "leave":
                self._end()
                self._check_kept("after close")
        self._kept.clear()

    def _live(self) -> None:
        bursts, ending = self._plan.bursts, self._plan.ending
        if ending == "death":
            self._watch_for_death()
        for index, burst in enumerate(bursts):
            self._diary.write("burst", round=self._plan.number)
            if ending == "close early" and index == len(bursts) // 2 and self._me == self._plan.rank:
                self._close_early(burst)
            else:
                self._run(burst)
            if self._ended:
                return
            if burst.quiet and ending == "close":
                self._quiet(f"after cast {burst.casts[-1].number}")
        if ending == "death":
            self._wait_for_death()
        elif ending == "leave":
            self._leave()

    # Asking

    def _run(self, burst: Burst) -> None:
        if burst.how == "blocking":
            for cast in burst.casts:
                self._finish(self._ask(cast, blocking=True))
            return
        order = self._order(burst.casts)
        if burst.how == "threads":
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
                parts = threads.map(
                    lambda part: [self._ask(c) for c in part], [order[n::_THREADS] for n in range(_THREADS)]
                )
                asked = [one for part in parts for one in part]
        else:
            asked = [self._ask(cast) for cast in order]
        if burst.how == "await":
            asyncio.run(self._await(asked))
        for one in asked:
            self._finish(one)

    def _order(self, casts: tuple[CastPlan, ...]) -> list[CastPlan]:
        """Keyed casts in an order of this rank's own, but for two with one key; the others in the root's."""
        followers = {cast.follows: cast for cast in casts if cast.follows is not None}
        keyed = [cast for cast in casts if cast.key is not None and cast.follows is None]
        random.Random(f"{self._plan.seed}/{self._me}").shuffle(keyed)
        shuffled = iter(keyed)
        order: list[CastPlan] = []
        for cast in casts:
            if cast.follows is None:
                order.append(cast if cast.key is None else next(shuffled))
                if order[-1].number in followers:
                    order.append(followers[order[-1].number])
        return order

    def _payload(self, cast: CastPlan) -> Any:
        plan, root = self._plan, self._me == self._plan.root
        if cast.fault == "refused" and root and cast.seed % 2:
            return MISSING
        if cast.fault == "unencodable" and root:
            return {"lock": threading.Lock(), "rest": oracle.payload(cast)}
        if cast.fault == "mismatch" and self._me == cast.rank:
            return ["another", oracle.payload(cast)]
        return oracle.payload(cast) if root or plan.options["replicated"] else None

    def _how(self, cast: CastPlan) -> dict[str, Any]:
        """The arguments of a call beside the payload."""
        root = self._me == self._plan.root
        how: dict[str, Any] = {"key": cast.key}
        if root:
            fn: Any = materializers.named(cast.materializer, cast.seed, self._trust)
            how["materialize"] = 3 if cast.fault == "refused" and not cast.seed % 2 else fn
        if cast.fault == "slow":
            how["timeout_s"] = cast.delay_s / 2
        elif cast.fault == "time-out" and self._me == cast.rank:
            how["timeout_s"] = _ROOT_TIME_OUT_S if root else cast.delay_s
        return how

    def _ask(self, cast: CastPlan, *, blocking: bool = False) -> Asked:
        self.casts += 1
        if self._planted("stuck", cast):
            threading.Event().wait()
        me, fault = self._me, cast.fault
        if fault is not None and (me == cast.rank or (cast.rank < 0 and me == self._plan.root)):
            self.injected[fault] += 1
        payload = self._payload(cast)
        if (fault == "late" and me == cast.rank) or (fault == "time-out" and me == self._plan.root != cast.rank):
            time.sleep(cast.delay_s * (1 if fault == "late" else 2))
        asked = Asked(cast, time.monotonic())
        try:
            if fault == "discard" and me == cast.rank:
                assert cast.key is not None
                self.lazy.discard(cast.key)
            elif blocking:
                self._done(asked, self.lazy.broadcast(payload, **self._how(cast)))
            else:
                asked.future = self.lazy.broadcast_async(payload, **self._how(cast))
                self._after_ask(asked)
        except (LazycastError, TypeError) as exc:
            asked.error = exc
        return asked

    def _after_ask(self, asked: Asked) -> None:
        cast, future = asked.plan, asked.future
        assert future is not None
        if cast.fault == "callback":
            future.add_done_callback(lambda _: asked.calls_back.append(None))
            future.add_done_callback(_raise_planned)
        hit = (cast.fault == "cancel" and self._me == cast.rank) or (
            cast.fault == "cancel on root" and self._me == self._plan.root
        )
        if hit and future.cancel() != future.cancelled():
            self._wrong(cast, "cancel() does not say whether the future is cancelled")

    # Ends

    async def _await(self, asked: list[Asked]) -> None:
        async def one(asked: Asked) -> None:
            assert asked.future is not None
            # Whatever it raises: `_finish` looks at the future itself.
            with contextlib.suppress(LazycastError, asyncio.CancelledError, concurrent.futures.CancelledError):
                await asked.future

        waiting = [asyncio.ensure_future(one(a)) for a in asked if a.future is not None]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=self._orders.limit_s + self._orders.slack_s)
            if late:
                self._hang(f"{len(late)} awaited futures were not settled")

    def _finish(self, asked: Asked) -> None:
        """Find out how a cast ended, and judge it."""
        cast = asked.plan
        future: concurrent.futures.Future[Any] | None = asked.future
        if asked.error is not None or future is None:
            if asked.error is not None:
                self._judge(asked, _name(asked.error), asked.error)
            elif cast.fault == "discard" and self._me == cast.rank:
                self._judge(asked, "discarded", None)
            return
        if self._planted("hang", cast):
            future = concurrent.futures.Future()
        try:
            value = future.result(self._orders.limit_s + self._orders.slack_s)
        except concurrent.futures.CancelledError:
            self._judge(asked, "cancelled", None)
        except (LazycastError, TypeError) as exc:
            self._judge(asked, _name(exc), exc)
        except concurrent.futures.TimeoutError:
            self._hang(f"cast {cast.number} ({cast.fault}, key {cast.key!r}) was not settled")
        else:
            self._done(asked, value)
        if cast.fault == "callback":
            self._count_callbacks(asked)

    def _count_callbacks(self, asked: Asked) -> None:
        deadline_s = time.monotonic() + self._orders.slack_s
        while not asked.calls_back and time.monotonic() < deadline_s:
            time.sleep(0.001)
        if len(asked.calls_back) != 1:
            self._wrong(asked.plan, f"its callback was called {len(asked.calls_back)} times")

    def _done(self, asked: Asked, value: Any) -> None:
        """A cast has given a value."""
        cast = asked.plan
        if self._planted("wrong value", cast):
            value = [value]
        self._judge(asked, "value", None)
        if "value" not in oracle.endings(cast, self._plan, self._me):
            return
        made = oracle.expected(cast, self._trust)
        problem = payloads.same(value, made) or oracle.wrong_rights(value, made, self._plan, cast, self._me)
        if problem is not None:
            self._wrong(cast, problem)
        elif cast.kept and len(self._kept) < _KEPT_AT_MOST:
            self._kept.append((cast, value))
        elif self._plan.options["values"] != "readonly":
            oracle.overwrite(value)

    def _planted(self, what: str, cast: CastPlan) -> bool:
        """Whether to do something wrong here, to see that it is found."""
        last = self._me == self._backend.size - 1
        return self._orders.plant == what and last and cast.fault is None and 20 < cast.number < 30

    def _judge(self, asked: Asked, ending: str, exc: BaseException | None) -> None:
        cast, plan = asked.plan, self._plan
        self.endings[ending.partition(":")[0]] += 1
        allowed = oracle.endings(cast, plan, self._me)
        if plan.ending == "close" and oracle.compared(cast, plan):
            self._diary.write("ending", round=plan.number, cast=cast.number, ending=ending)
        if ending not in allowed:
            text = oracle.unplanned(ending, allowed) + (f": {exc}" if exc is not None else "")
            if ending.startswith("CastTimeoutError"):
                self._hang(f"cast {cast.number} ({cast.fault}, key {cast.key!r}): {text}")
            self._wrong(cast, text)
        took_s = time.monotonic() - asked.since_s
        if took_s > self._orders.limit_s + self._orders.slack_s:
            self._hang(f"cast {cast.number} took {took_s:.1f} s")
        if isinstance(exc, MaterializeError) and exc.rank == self._me and not isinstance(exc.__cause__, Planned):
            self._wrong(cast, f"the cause of its error is {exc.__cause__!r}")
        if "EncodeError" in ending and cast.fault is None and "no room for" not in str(exc) and "limit" not in str(exc):
            self._wrong(cast, f"not for lack of room: {exc}")
        if ending.startswith(("PeerLostError", "ClosedError")) and ending in allowed:
            self._over(ending)

    def _over(self, ending: str) -> None:
        if not self._ended and ending.startswith("PeerLostError"):
            self._diary.write("lost", by="a call")
        self._ended = True

    def _wrong(self, cast: CastPlan, what: str) -> None:
        self._diary.wrong(f"{self._where()}, cast {cast.number} ({cast.materializer}, {cast.fault})", what)

    def _hang(self, what: str) -> None:
        self._diary.hang(self._where(), f"{what}\n{self.lazy.dump()}")
        raise Hang(what)

    def _where(self) -> str:
        return f"rank {self._me}, round {self._plan.number}"

    # Quiet points, and the end

    def _quiet(self, when: str) -> None:
        """All ranks have dropped their values, but for those they keep: nothing else is held."""
        self._check_kept(when)
        if not self._plan.keeps:
            self._kept.clear()
        self._meet()  # then nobody holds other values
        # Of a value that is kept there may be two slots: its payload's, and its own.
        allowed = 2 * _KEPT_AT_MOST if self._plan.keeps else 0
        problems = self._settled(allowed)
        deadline_s = time.monotonic() + _LET_GO_S
        while problems and time.monotonic() < deadline_s:
            time.sleep(0.01)
            problems = self._settled(allowed)
        for problem in problems:
            self._diary.leak(self._where(), f"{when}: {problem}")
        self._diary.write("quiet", round=self._plan.number, rss_nbytes=census.rss_nbytes())
        self._meet()  # or the next burst would be counted here

    def _settled(self, allowed_slots: int) -> list[str]:
        """Return what is under way or held though all casts have ended."""
        gc.collect()
        stats, objects = self.lazy.stats(), census.objects()
        counts = {
            "slots held": (stats.shared_slots, allowed_slots),
            "calls pending": (stats.pending, 0),
            "casts unasked": (stats.unasked, 0),
            "descriptors of shared memory": (census.memories(), 2 * self._backend.size),
            **{f"instances of {name}": (objects[name], _ALIVE_AT_MOST) for name in ("Ask", "Arrival", "CastFuture")},
        }
        return [f"{count} {what}, {most} at most" for what, (count, most) in counts.items() if count > most]

    def _check_kept(self, when: str) -> None:
        for cast, value in self._kept:
            problem = payloads.same(value, oracle.expected(cast, self._trust))
            if problem is not None:
                self._wrong(cast, f"kept, {when}: {problem}")

    def _end(self) -> None:
        if self._plan.ending == "close early":
            self._meet()  # who closes before all have seen it would be named as well
        elif self._plan.ending == "death":
            self._expect(f"PeerLostError:{self._plan.rank}", "after the loss")
        self._close(None)
        self._expect(f"ClosedError:{self._me}", "after close")

    def _close(self, timeout_s: float | None) -> None:
        began_s = time.monotonic()
        self.lazy.close(timeout_s=timeout_s)
        took_s = time.monotonic() - began_s
        if took_s > (timeout_s or 0.0) + self._orders.slack_s:
            self._diary.hang(self._where(), f"close() took {took_s:.1f} s")

    def _expect(self, ending: str, when: str) -> None:
        """Make a call that can only fail, at once."""
        began_s = time.monotonic()
        try:
            value = self.lazy.broadcast("later", key="later")
        except LazycastError as exc:
            if _name(exc) != ending:
                self._diary.wrong(self._where(), f"{when}: {_name(exc)} instead of {ending}: {exc}")
        else:
            self._diary.wrong(self._where(), f"{when}: the value {value!r} instead of {ending}")
        took_s = time.monotonic() - began_s
        if took_s > self._orders.slack_s:
            self._diary.hang(self._where(), f"{when}: it took {took_s:.1f} s to fail")

    def _close_early(self, burst: Burst) -> None:
        """Leave the others alone with casts under way."""
        self.injected["close early"] += 1
        asked = [self._ask(cast) for cast in self._order(burst.casts)]
        self._close(burst.casts[0].seed % 4 / 4)
        for one in asked:
            if one.future is not None and not one.future.done():
                self._hang(f"cast {one.plan.number} is pending after close()")
            self._finish(one)
        self._ended = True

    def _leave(self) -> None:
        """Have calls pending when the interpreter exits."""
        self.injected["leave"] += 1
        pause = materializers.named("pause", 0, self._trust)
        for number in range(4):
            key = f"left-{number}" if self._me == self._plan.root else f"never-{number}"
            self.lazy.broadcast_async({"payload": number, "seconds": 0.3}, materialize=pause, key=key)

    def _watch_for_death(self) -> None:
        """Note the moment at which this rank is told."""
        if self._me != self._plan.root:  # whose calls need no one else to begin
            future = self.lazy.broadcast_async(key="never")
            future.add_done_callback(lambda _: self._diary.write("lost", by="a callback"))

    def _wait_for_death(self) -> None:
        number = 0
        deadline_s = time.monotonic() + self._orders.limit_s
        while not self._ended and time.monotonic() < deadline_s:
            number += 1
            cast = CastPlan(10**6 + number, number, f"more-{number}", "numbers", 100, None)
            self._finish(self._ask(cast, blocking=True))
        if not self._ended:
            self._hang(f"rank {self._plan.rank} is dead, or should be; this rank has not been told")


def _name(exc: BaseException) -> str:
    rank = getattr(exc, "rank", None)
    return type(exc).__name__ + (f":{rank}" if rank is not None else "")


def _raise_planned(_future: object) -> None:
    raise Planned("in a callback")
