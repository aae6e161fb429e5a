"""How one rank asks for the casts of a burst: what it passes, in which order, when, and how it gives up.

Guarantees: every cast of a burst is asked for or discarded, once, and handed to the judge, whatever happened to the
others.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import random
import threading
import time
from collections import Counter
from typing import Any

from lazycast.api import LazyBroadcast
from lazycast.errors import LazycastError
from lazycast.missing import MISSING
from lazycast.tools.soak import materializers, oracle
from lazycast.tools.soak.diary import Orders
from lazycast.tools.soak.judging import Asked, Judge
from lazycast.tools.soak.materializers import Planned
from lazycast.tools.soak.plan import Burst, CastPlan, RoundPlan

_THREADS = 3
_ROOT_TIME_OUT_S = 0.002


class Asker:
    """Asks on one rank, in one round."""

    def __init__(self, orders: Orders, plan: RoundPlan, lazy: LazyBroadcast[Any, Any], judge: Judge) -> None:
        self._orders, self._plan, self._lazy, self._judge = orders, plan, lazy, judge
        self._me = lazy.rank
        self._trust = str(plan.options["trust"])
        self.casts = 0
        self.injected: Counter[str] = Counter()

    def run(self, burst: Burst) -> None:
        if burst.how == "blocking":
            for cast in burst.casts:
                self._judge.finish(self.ask(cast, blocking=True))
            return
        order = self.order(burst.casts)
        if burst.how == "threads":
            with concurrent.futures.ThreadPoolExecutor(_THREADS) as threads:
                parts = threads.map(
                    lambda part: [self.ask(c) for c in part], [order[n::_THREADS] for n in range(_THREADS)]
                )
                asked = [one for part in parts for one in part]
        else:
            asked = [self.ask(cast) for cast in order]
        if burst.how == "await":
            asyncio.run(self._await(asked))
        for one in asked:
            self._judge.finish(one)

    def order(self, casts: tuple[CastPlan, ...]) -> list[CastPlan]:
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

    def ask(self, cast: CastPlan, *, blocking: bool = False) -> Asked:
        self.casts += 1
        if self._judge.planted("stuck", cast):
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
                self._lazy.discard(cast.key)
            elif blocking:
                self._judge.done(asked, self._lazy.broadcast(payload, **self._how(cast)))
            else:
                asked.future = self._lazy.broadcast_async(payload, **self._how(cast))
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
            self._judge.wrong(cast, "cancel() does not say whether the future is cancelled")

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
                self._judge.hang(f"{len(late)} awaited futures were not settled")


def _raise_planned(_future: object) -> None:
    raise Planned("in a callback")
