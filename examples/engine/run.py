"""One rank's whole life: each way of getting photos to the ranks in turn, under the same load, and the comparison."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import json
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import inputs, killer, load, report
from .engine import Engine, Inbox
from .front import Front
from .model import Model
from .ranks import KINDS, Ranks
from .requests import Outcome, Woken


@dataclass(frozen=True)
class Plan:
    """What is to be run."""

    ways: tuple[str, ...]
    mix: load.Mix
    busy_s: float
    step_s: float
    max_batch: int
    max_open: int
    max_inflight: int
    json: Path | None = None
    helpers: int = 0
    kill_every_s: float | None = None


@dataclass
class Account:
    """What a rank says of itself at the end of one way."""

    digest: str
    counts: dict[str, int]
    iterations: int
    threads_left: list[str]
    killed: int
    outcomes: dict[str, Outcome]


def rank(kind: str, plan: Plan) -> None:
    """Run everything on this rank. Collective. Raises AssertionError if ranks, or ways, differ in what they made."""
    ranks = KINDS[kind]()
    jpegs = load.photos_for(plan.mix) if ranks.rank == 0 else []
    rows: list[report.Row] = []
    tokens: dict[str, dict[str, Outcome]] = {}
    for way in plan.ways:
        try:
            account, seen = _run(way, ranks, plan, jpegs)
        except NotImplementedError as exc:  # of every rank
            rows.append(report.Row(way, error=str(exc)))
            continue
        accounts = ranks.gather(account)
        _compare(way, accounts)
        tokens[way] = account.outcomes
        if seen is not None:
            rows.append(report.row(way, seen, ranks.size, [dataclasses.asdict(a) for a in accounts]))
    _compare_ways(tokens)
    if ranks.rank == 0:
        print(report.table(rows, plan.mix, ranks.size, kind), flush=True)
        if plan.json is not None:
            plan.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    ranks.close()


def _run(way: str, ranks: Ranks, plan: Plan, jpegs: list[bytes]) -> tuple[Account, load.Load | None]:
    """Serve one load in one way. Returns what this rank made, and on rank 0 what the clients saw."""
    threads_before = set(threading.enumerate())
    inbox: Inbox = queue.Queue()
    wake = functools.partial(inbox.put, Woken())
    photos = inputs.make(way, ranks, wake, max_inflight=plan.max_inflight, helpers=plan.helpers)
    kills = killer.Killer(photos, plan.kill_every_s) if ranks.rank == 0 and plan.kill_every_s else None
    clients = _Clients(plan, jpegs, photos, inbox) if ranks.rank == 0 else None
    model = Model(ranks, busy_s=plan.busy_s, step_s=plan.step_s)
    deliver: Callable[[Any], None] = clients.front.deliver if clients is not None else lambda replies: None
    engine = Engine(ranks, model, photos, inbox, deliver, max_batch=plan.max_batch)
    try:
        if clients is not None:
            clients.start()
        with kills.at_work() if kills is not None else contextlib.nullcontext():
            engine.run()
    except BaseException as exc:
        if clients is not None:
            clients.front.fail(f"the engine has broken down: {exc}")
        raise
    finally:
        photos.close()
        engine.close()
    seen = clients.join() if clients is not None else None
    outcomes = engine.books.outcomes
    digest = hashlib.sha256(repr(sorted((rid, dataclasses.astuple(o)) for rid, o in outcomes.items())).encode())
    left = [thread.name for thread in _still_alive(threads_before)]
    counts = dict(Counter(outcome.status for outcome in outcomes.values()))
    killed = kills.times if kills is not None else 0
    return Account(digest.hexdigest()[:16], counts, engine.iterations, left, killed, outcomes), seen


def _still_alive(before: set[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that have come since and do not end within a second."""
    deadline_s = time.monotonic() + 1.0
    while (left := [t for t in threading.enumerate() if t not in before]) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    return left


class _Clients:
    """The event loop with the front and the load, in a thread of its own beside rank 0's scheduler."""

    def __init__(self, plan: Plan, jpegs: list[bytes], photos: inputs.Inputs, inbox: Inbox) -> None:
        self._loop = asyncio.new_event_loop()
        self.front = Front(photos, inbox, self._loop, max_open=plan.max_open)
        self._arrivals, self._warm_up_s = load.arrivals(plan.mix, jpegs), plan.mix.warm_up_s
        self._seen: load.Load | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._serve, name="clients")

    def start(self) -> None:
        self._thread.start()

    def join(self) -> load.Load:
        """Wait until all clients have left; after the engine has ended."""
        self._thread.join()
        self._loop.close()  # not before: the engine may have had something to deliver to clients who had left
        if self._error is not None:
            raise self._error
        assert self._seen is not None
        return self._seen

    def _serve(self) -> None:
        try:
            self._seen = self._loop.run_until_complete(load.run(self.front, self._arrivals, self._warm_up_s))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        except BaseException as exc:
            self._error = exc
        finally:
            self.front.close()  # the engine drains and ends, here and, by the schedule, on every rank


def _compare(way: str, accounts: list[Account]) -> None:
    digests = [account.digest for account in accounts]
    if len(set(digests)) != 1:
        raise AssertionError(f"{way}: ranks differ in what they have made: {digests}")
    left = {rank: account.threads_left for rank, account in enumerate(accounts) if account.threads_left}
    if left:
        raise AssertionError(f"{way}: threads were left on ranks {left}")


def _compare_ways(made: dict[str, dict[str, Outcome]]) -> None:
    """Requests that finished in two ways must have the same pixels and tokens in both."""
    known: dict[str, tuple[str, Outcome]] = {}
    for way, outcomes in made.items():
        for rid, outcome in outcomes.items():
            if outcome.status != "finished":
                continue
            other, first = known.setdefault(rid, (way, outcome))
            if (first.pixels_crc, first.tokens) != (outcome.pixels_crc, outcome.tokens):
                raise AssertionError(f"{rid}: {way} has made other tokens than {other}")
