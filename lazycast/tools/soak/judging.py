"""How casts ended on one rank, against what the oracle allows; values that are kept.

Guarantees: every cast that is handed in has an ending that the oracle knows, or is written down; what outlives its time
limit raises `Hang`.
"""

from __future__ import annotations

import concurrent.futures
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lazycast.core.future import CastFuture
from lazycast.errors import LazycastError, MaterializeError
from lazycast.tools.soak import oracle, payloads
from lazycast.tools.soak.diary import Diary, Orders
from lazycast.tools.soak.materializers import Planned
from lazycast.tools.soak.plan import CastPlan, RoundPlan

#: Values that a rank holds at a time.
KEPT_AT_MOST = 24


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


def name_of(exc: BaseException) -> str:
    """Return an error as the oracle calls it."""
    rank = getattr(exc, "rank", None)
    return type(exc).__name__ + (f":{rank}" if rank is not None else "")


class Judge:
    """Judges the casts of one round on one rank. `dump` says what the object is at."""

    def __init__(self, orders: Orders, plan: RoundPlan, me: int, diary: Diary, dump: Callable[[], str]) -> None:
        self._orders, self._plan, self._me, self._diary, self._dump = orders, plan, me, diary, dump
        self._trust = str(plan.options["trust"])
        self.kept: list[tuple[CastPlan, Any]] = []
        self.endings: Counter[str] = Counter()
        self.ended = False  # the object is of no more use: a rank closed it or died, as planned

    def finish(self, asked: Asked) -> None:
        """Find out how a cast ended, and judge it."""
        cast = asked.plan
        future: concurrent.futures.Future[Any] | None = asked.future
        if asked.error is not None or future is None:
            if asked.error is not None:
                self._judge(asked, name_of(asked.error), asked.error)
            elif cast.fault == "discard" and self._me == cast.rank:
                self._judge(asked, "discarded", None)
            return
        if self.planted("hang", cast):
            future = concurrent.futures.Future()
        try:
            value = future.result(self._orders.limit_s + self._orders.slack_s)
        except concurrent.futures.CancelledError:
            self._judge(asked, "cancelled", None)
        except (LazycastError, TypeError) as exc:
            self._judge(asked, name_of(exc), exc)
        except concurrent.futures.TimeoutError:
            self.hang(f"cast {cast.number} ({cast.fault}, key {cast.key!r}) was not settled")
        else:
            self.done(asked, value)
        if cast.fault == "callback":
            self._count_callbacks(asked)

    def _count_callbacks(self, asked: Asked) -> None:
        deadline_s = time.monotonic() + self._orders.slack_s
        while not asked.calls_back and time.monotonic() < deadline_s:
            time.sleep(0.001)
        if len(asked.calls_back) != 1:
            self.wrong(asked.plan, f"its callback was called {len(asked.calls_back)} times")

    def done(self, asked: Asked, value: Any) -> None:
        """A cast has given a value."""
        cast = asked.plan
        if self.planted("wrong value", cast):
            value = [value]
        self._judge(asked, "value", None)
        if "value" not in oracle.endings(cast, self._plan, self._me):
            return
        made = oracle.expected(cast, self._trust)
        problem = payloads.same(value, made) or oracle.wrong_rights(value, made, self._plan, cast, self._me)
        if problem is not None:
            self.wrong(cast, problem)
        elif cast.kept and len(self.kept) < KEPT_AT_MOST:
            self.kept.append((cast, value))
        elif self._plan.options["values"] != "readonly":
            oracle.overwrite(value)

    def planted(self, what: str, cast: CastPlan) -> bool:
        """Whether to do something wrong here, to see that it is found."""
        last = self._me == self._orders.ranks - 1
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
                self.hang(f"cast {cast.number} ({cast.fault}, key {cast.key!r}): {text}")
            self.wrong(cast, text)
        took_s = time.monotonic() - asked.since_s
        if took_s > self._orders.limit_s + self._orders.slack_s:
            self.hang(f"cast {cast.number} took {took_s:.1f} s")
        if isinstance(exc, MaterializeError) and exc.rank == self._me and not isinstance(exc.__cause__, Planned):
            self.wrong(cast, f"the cause of its error is {exc.__cause__!r}")
        if "EncodeError" in ending and cast.fault is None and "no room for" not in str(exc) and "limit" not in str(exc):
            self.wrong(cast, f"not for lack of room: {exc}")
        if ending.startswith(("PeerLostError", "ClosedError")) and ending in allowed:
            self._over(ending)

    def _over(self, ending: str) -> None:
        if not self.ended and ending.startswith("PeerLostError"):
            self._diary.write("lost", by="a call")
        self.ended = True

    def check_kept(self, when: str) -> None:
        for cast, value in self.kept:
            problem = payloads.same(value, oracle.expected(cast, self._trust))
            if problem is not None:
                self.wrong(cast, f"kept, {when}: {problem}")

    def wrong(self, cast: CastPlan, what: str) -> None:
        self._diary.wrong(f"{self.where()}, cast {cast.number} ({cast.materializer}, {cast.fault})", what)

    def hang(self, what: str) -> None:
        self._diary.hang(self.where(), f"{what}\n{self._dump()}")
        raise Hang(what)

    def where(self) -> str:
        return f"rank {self._me}, round {self._plan.number}"
