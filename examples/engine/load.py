"""A load generator: clients that come whether or not the engine keeps up (an open loop), as a Poisson process does."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from .front import Front, RequestFailedError
from .inputs import OverloadedError
from .photos import album
from .requests import Request

_BAD = b"\xff\xd8 this is no photo"
_SHORT_PATIENCE_S = 0.005


@dataclass(frozen=True)
class Mix:
    """What comes: requests a second, for how long (seconds), and which shares of them are what.

    Those of the first `warm_up_s` are served like others, but their times are left out: memory is touched for the
    first time then, and placements are tried.
    """

    qps: float
    seconds: float
    warm_up_s: float = 0.0
    photos: float = 0.7
    aborts: float = 0.1
    bad: float = 0.05
    seed: int = 1


@dataclass(frozen=True)
class Arrival:
    """A client. `leaves_after` that many tokens it hangs up; with 0, at once; None: it stays."""

    at_s: float
    request: Request
    leaves_after: int | None
    bad: bool


def arrivals(mix: Mix, jpegs: Sequence[bytes]) -> list[Arrival]:
    """Draw who comes when: the same for the same mix."""
    dice, at_s = random.Random(mix.seed), 0.0
    drawn: list[Arrival] = []
    while (at_s := at_s + dice.expovariate(mix.qps)) < mix.warm_up_s + mix.seconds:
        number = len(drawn)
        payload = leaves_after = None
        max_tokens = dice.randint(4, 24)
        if dice.random() < mix.photos:
            payload = {"jpegs": dice.choices(jpegs, k=dice.randint(1, 4))}
        bad = payload is not None and dice.random() < mix.bad / mix.photos
        if bad and payload is not None:
            payload["jpegs"][-1] = _BAD
        elif dice.random() < mix.aborts:
            leaves_after = dice.randint(0, 3)
        drawn.append(
            Arrival(at_s, Request(f"req-{number}", f"prompt {number}", max_tokens, payload), leaves_after, bad)
        )
    return drawn


@dataclass
class Record:
    """What a client saw: times in seconds, the first one since it should have come."""

    status: str = ""
    message: str = ""
    counts: bool = True  # it did not come while the engine warmed up
    first_token_s: float | None = None
    gaps_s: list[float] = field(default_factory=list)


@dataclass
class Load:
    """What all clients saw, and how long it took from the end of warming up until the last had left (seconds)."""

    records: dict[str, Record]
    took_s: float


async def run(front: Front, clients: Sequence[Arrival], warm_up_s: float) -> Load:
    """Let all clients come, each at its time, and return when all have left."""
    began_s = time.perf_counter()
    tasks = []
    for arrival in clients:
        await asyncio.sleep(max(0.0, began_s + arrival.at_s - time.perf_counter()))
        tasks.append(asyncio.create_task(_client(front, arrival, began_s + arrival.at_s)))
    records = await asyncio.gather(*tasks)
    took_s = time.perf_counter() - began_s - warm_up_s
    for arrival, record in zip(clients, records, strict=True):
        record.counts = arrival.at_s >= warm_up_s
    return Load({arrival.request.rid: record for arrival, record in zip(clients, records, strict=True)}, took_s)


async def _client(front: Front, arrival: Arrival, came_s: float) -> Record:
    record = Record()
    patience_s = _SHORT_PATIENCE_S if arrival.leaves_after == 0 else None
    try:
        await asyncio.wait_for(_listen(front, arrival, came_s, record), patience_s)
    except OverloadedError as exc:
        record.status, record.message = "rejected", str(exc)
    except RequestFailedError as exc:
        record.status, record.message = "failed", str(exc)
    except asyncio.TimeoutError:
        record.status = "aborted"
    return record


async def _listen(front: Front, arrival: Arrival, came_s: float, record: Record) -> None:
    last_s, count = None, 0
    async with contextlib.aclosing(front.generate(arrival.request)) as tokens:  # type: ignore[type-var]
        async for _ in tokens:
            now_s = time.perf_counter()
            if last_s is None:
                record.first_token_s = now_s - came_s
            else:
                record.gaps_s.append(now_s - last_s)
            last_s, count = now_s, count + 1
            if count == arrival.leaves_after:
                record.status = "aborted"
                return
    record.status = "finished"


def photos_for(mix: Mix) -> list[bytes]:
    """Return the JPEG files that requests are made of."""
    return album(8, mix.seed)
