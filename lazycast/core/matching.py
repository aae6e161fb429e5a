"""How what arrives on a rank that is not the root meets what is asked for.

Guarantees:

* Every call counts: the n-th call with a key gets the root's n-th cast with it, also if one of the two was refused,
  cancelled or timed out.
* An interrupt of the caller leaves nothing half done: a call that counts has its place in line, and what it sets off
  here is reported.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from lazycast.arguments import usable_key
from lazycast.codec.fingerprint import fingerprint
from lazycast.core import failures
from lazycast.core.arrival import Arrival, Own
from lazycast.core.asks import Asks
from lazycast.core.casts import SPENT, Casts
from lazycast.core.divergence import Pairings
from lazycast.core.engine import Engine, Taken
from lazycast.core.future import CastFuture
from lazycast.core.interrupts import Uninterrupted
from lazycast.core.mailbox import Mailbox
from lazycast.core.performer import Group, Result
from lazycast.core.reads import Reads
from lazycast.missing import MISSING
from lazycast.net.wire import Failure, Key, Origin
from lazycast.options import Options


class Matching:
    """See the module's text. Thread-safe.

    Args:
        reads: what the root is to be told of.
        tell_reads: tells it what is due.
        reads_in_turn: whether who takes casts tells of reads itself.
    """

    def __init__(
        self,
        engine: Engine,
        group: Group,
        options: Options,
        asks: Asks,
        casts: Casts,
        reads: Reads,
        tell_reads: Callable[[], float | None],
        *,
        reads_in_turn: bool,
    ) -> None:
        self._engine, self._group, self._options, self._asks, self._casts = engine, group, options, asks, casts
        self._lock, self._end = engine.lock, casts.end
        self._reads, self._tell_reads, self._reads_in_turn = reads, tell_reads, reads_in_turn
        self.mailbox: Mailbox[CastFuture[Any], Arrival] = Mailbox()
        self._pairings = Pairings()
        self._overdue: Failure | None = None  # a divergence that the others are told of with the next cast

    def call(
        self,
        payload: object,
        materialize: Callable[[Any], Any] | None,
        key: Key | None,
        timeout_s: float,
        refusal: Exception | None = None,
        *,
        here: bool = False,
        block: bool = True,
        priority: int = 0,
        counted: list[bool] | None = None,
    ) -> CastFuture[Any]:
        if self._engine.handed.waiting:
            self._engine.handed.do()
        refused = refusal
        mark: bytes | Exception | None = None
        if here and self._options.replicated and payload is not MISSING:
            try:  # the caller is about to wait, most often for a cast that has not come yet
                mark = fingerprint(payload)
            except Exception as exc:  # whatever the attributes of a payload do when they are looked at
                mark = exc
        with Uninterrupted():  # what has begun must count, and a part that begins here must be reported
            with self._lock:
                if self._engine.closing:
                    self._engine.refuse_if_closed()
                given = self._given_to(key) if self._engine.given_back and refused is None else None
                if given is not None:
                    if counted is not None:
                        counted.append(True)
                    return given
                if refused is None and key is not None and key in self._asks.pending:
                    refused = self._asks.key_in_use(key)
                now_s, operation = time.monotonic(), "broadcast" if here else "broadcast_async"
                ask = self._asks.make_call(key, timeout_s, now_s, operation, booked=refused is None)
                if refused is not None:
                    ask.taken = True
                elif self._options.replicated:
                    ask.payload, ask.mark = payload, mark
                if counted is not None:
                    counted.append(True)
                arrival, result = self._match(ask)
                hopeless = None
                if self._end.failure is not None and result is None and self._depends_on_end(arrival):
                    hopeless = self._end.failure
            if arrival is not None:
                self._after_match(ask, arrival, result)
            if hopeless is not None and refused is None:
                self._asks.settle(ask, Result(failure=hopeless))
        if refused is not None:
            try:
                raise refused
            finally:
                del refused, refusal  # it leads to its traceback, and that to this frame: it would lead back to it
        return ask

    def next_call(
        self, taken: list[Taken], wait_s: float, timeout_s: float, *, keyed: bool = False, looks: bool = False
    ) -> None:
        if self._options.replicated:
            text = "with replicated=True each rank passes its own payload, and next() has none: ask by key"
            raise ValueError(f"lazycast {self._options.name!r}: {text}")
        if self._engine.handed.waiting:
            self._engine.handed.do()
        deadline_s = time.monotonic() + wait_s
        while True:
            left_s = deadline_s - time.monotonic()
            with Uninterrupted():  # as for a call
                gate = self._take_first(taken, timeout_s, keyed=keyed, wait=left_s > 0, looks=looks)
            if gate is None:
                return
            if not gate.acquire(timeout=left_s):
                with Uninterrupted(), self._lock:
                    self._asks.gates.unwatch(gate)

    def _take_first(
        self, taken: list[Taken], timeout_s: float, *, keyed: bool, wait: bool, looks: bool
    ) -> threading.Lock | None:
        """Put what came first into `taken`. If there is nothing, return what opens when something has changed."""
        with self._lock:
            self._engine.refuse_if_closed()
            given_back = self._given_back(keyed=keyed) if self._engine.given_back else None
            if given_back is not None:
                self._engine.given_back.remove(given_back)
                taken.append(given_back)
                return None
            first, end = self._first(keyed=keyed), self._end.failure
            if first is None and end is not None and not (looks and end.kind == "closed"):
                label = f"lazycast {self._options.name!r}: next()"
                raise failures.to_exception(end, label=label, rank=self._group.rank)
            if first is None:
                return self._asks.gates.watch() if wait else None
            ask = self._asks.make_call(first.message.key, timeout_s, time.monotonic(), "next")
            ask.origin = None  # whatever comes is what this call was meant for
            arrival, result = self._match(ask)
            hopeless = end if result is None and self._depends_on_end(arrival) else None
        self._after_match(ask, arrival, result)
        if hopeless is not None:
            self._asks.settle(ask, Result(failure=hopeless))
        taken.append((ask.key, ask))
        return None

    def _given_to(self, key: Key | None) -> CastFuture[Any] | None:
        """With the lock held: the future that an interrupted `next` had of the cast that is a call's for `key`."""
        root = self._group.root
        given_back = (one for one in self._engine.given_back if one[1].root == root)
        mine = next((one for one in given_back if type(one[0]) is type(key) and one[0] == key), None)
        if mine is None:
            return None
        self._engine.given_back.remove(mine)
        return mine[1]

    def _given_back(self, *, keyed: bool) -> Taken | None:
        """With the lock held: what an interrupted `next` had of this root, if anything."""
        root = self._group.root
        mine = (one for one in self._engine.given_back if one[1].root == root and (one[0] is not None or not keyed))
        return next(mine, None)

    def when_come(self, wake: Callable[[], None]) -> bool:
        """See `Lane.when_come`."""
        with Uninterrupted(), self._lock:
            if self.came_s(keyed=False) is not None or self._engine.closing or self._end.failure is not None:
                return True
            self._asks.gates.wake(wake)
            return False

    def came_s(self, *, keyed: bool) -> float | None:
        """With the lock held: return when that came which `next` would take (monotonic seconds), if anything has."""
        if self._engine.given_back and self._given_back(keyed=keyed) is not None:
            return 0.0
        first = self._first(keyed=keyed)
        return None if first is None else first.arrived_s

    def _first(self, *, keyed: bool) -> Arrival | None:
        """With the lock held: return what came first of all that wait. What was dropped is passed over, and counts."""
        while (first := self.mailbox.first(keyed=keyed)) is not None and first.dropped:
            self._match(self._given_up_ask(first.message.key))
            self._engine.thread.wake()  # it tells of that
        return first

    def give_up_next(self, key: Key | None, counted: list[bool] | None = None) -> None:
        """This rank does not want the next cast with this key, or without one."""
        key, bad = usable_key(key)  # what was interrupted may not have been looked at
        if bad is not None:
            return
        with Uninterrupted():  # as for a call
            with self._lock:
                self._engine.refuse_if_closed()
                if counted is not None:
                    counted.append(True)
                given = self._given_to(key) if self._engine.given_back else None
                if given is None:
                    ask = self._given_up_ask(key)
                    arrival, result = self._match(ask)
            if given is not None:
                given.cancel()
            else:
                self._after_match(ask, arrival, result)

    def _given_up_ask(self, key: Key | None) -> CastFuture[Any]:
        """With the lock held: an ask that only consumes its arrival."""
        ask = self._asks.make_call(key, 1.0, time.monotonic(), "discard", booked=False)
        ask.taken = True
        return ask

    def _depends_on_end(self, arrival: Arrival | None) -> bool:
        """With the lock held: whether this cast can come to nothing if the group has ended."""
        if self._end.failure is None:
            return False
        if arrival is None:
            return True
        return self._end.failure.kind == "lost" or arrival.message.agree

    def _match(self, ask: CastFuture[Any]) -> tuple[Arrival | None, Result | None]:
        """With the lock held: find what has arrived for an ask, and its result if there is one already.

        The result is taken here, once: whoever looks without the lock may see it handed over, or not yet there.
        `_after_match` follows without the lock.
        """
        ended = self._end.failure is not None  # then what has not come will not: nothing to remember
        arrival = self.mailbox.take(ask.key) if ended else self.mailbox.ask(ask.key, ask)
        if arrival is None:
            return None, None
        self._join(ask, arrival)
        result = arrival.final
        if result is not None:
            arrival.final = SPENT
        return arrival, result

    def _join(self, ask: CastFuture[Any], arrival: Arrival, *, in_turn: bool = False) -> None:
        """With the lock held: an ask and its arrival have met; `in_turn`: on the thread that tells of reads itself."""
        arrival.ask = ask
        if ask.traced is not None:
            ask.traced.cast = arrival.message
        if arrival.objection is None and arrival.message.agree:
            arrival.objection = ask.late
        if ask.origin is not None and arrival.message.origin is not None:
            self._compare(ask.origin, arrival.message.origin, arrival)
        if not ask.taken:
            waited_s = arrival.arrived_s - ask.since_s
            self._engine.counters.noted.append(("wait", waited_s) if waited_s >= 0 else ("unread", -waited_s))
            if (tracer := self._engine.tracer) is not None:
                if waited_s >= 0:
                    tracer.took("wait", ask.since_s, arrival.arrived_s, arrival.message)
                else:
                    tracer.took("unread", arrival.arrived_s, ask.since_s, arrival.message)
            ask.arrival = arrival
            if arrival.message.fingerprint is not None:
                arrival.own, ask.payload = Own(ask.payload, mark=ask.mark), MISSING
        reports_later = arrival.message.agree and arrival.local is None and arrival.final is None
        if not reports_later and not arrival.told_read and arrival.message.failure is None:
            arrival.told_read = True
            sooner, due_s = self._reads.add(arrival.message.seq, arrival.message.nbytes), self._reads.due_s
            if sooner and not in_turn and due_s is not None and due_s > time.monotonic():  # else `_after_match` tells
                self._engine.thread.wake()

    def _compare(self, here: Origin, root: Origin, arrival: Arrival) -> None:
        """With the lock held, in debug mode: find out whether a call and a cast were meant for each other."""
        evidence = self._pairings.meet(root, here) if here.nth and root.nth else None
        if evidence is None:
            return
        rank, host = self._group.rank, self._group.hosts[self._group.rank]
        text = (
            f"rank {rank} ({host}) is out of step with the root: its call number {here.nth} without a key, at "
            f"{here.site}, met the root's call number {root.nth} without a key, at {root.site}; {evidence}"
        )
        arrival.objection = failure = Failure("diverged", rank, host, text)
        if arrival.local is not None or arrival.final is not None:  # this rank has said that it is well
            self._overdue = failure
        if arrival.local is not None and arrival.local.failure is None:
            arrival.local = Result(failure=failure)
        if arrival.final is not None and arrival.final.failure is None:
            arrival.final = Result(failure=failure)

    def _after_match(self, ask: CastFuture[Any], arrival: Arrival | None, result: Result | None) -> None:
        if arrival is None:
            return
        if result is not None:
            self._asks.settle(ask, result)
        else:
            self._casts.making.advance(arrival)
        due_s = self._reads.due_s
        if due_s is not None and due_s <= time.monotonic():
            self._tell_reads()

    # What arrives

    def arrive(self, arrival: Arrival) -> CastFuture[Any] | None:
        """With the lock held: a cast has come; return the call that it is for, if that has been made."""
        if self._overdue is not None and arrival.message.agree:
            arrival.objection, self._overdue = self._overdue, None
        ask = self.mailbox.arrive(arrival.message.key, arrival)
        if ask is not None:
            self._join(ask, arrival, in_turn=self._reads_in_turn)
        elif self._asks.gates.closed:
            self._asks.gates.open()
        return ask

    def unasked(self) -> list[Arrival]:
        """With the lock held: return the casts that nobody here has asked for, and that the root has not dropped."""
        return [arrival for arrival in self.mailbox.arrivals() if not arrival.dropped]

    def forget(self) -> None:
        """With the lock held: let go of all casts."""
        self.mailbox = Mailbox()
        self._engine.given_back.clear()
