"""Drives a server for a while with requests of one size at one load, beside texts that decode all the time."""

from __future__ import annotations

import collections
import concurrent.futures
import itertools
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lazycast.tools.bench.sglang_loop.fleet import Fleet
from lazycast.tools.bench.sglang_loop.gpu import Board
from lazycast.tools.bench.sglang_loop.plan import Load, LoopPlan, Size
from lazycast.tools.bench.sglang_loop.prompts import Prompts
from lazycast.tools.bench.sglang_loop.stalls import Stalls

_TEXT_TOKENS = 400
_DRAIN_S = 60.0
_TICK_S = os.sysconf("SC_CLK_TCK")
_seeds = itertools.count(1)


@dataclass
class Measured:
    """One way in one round: seconds, but for the rate."""

    qps: float = 0.0
    latency_s: list[float] = field(default_factory=list)
    first_s: list[float] = field(default_factory=list)  # to the first token
    gap_s: list[float] = field(default_factory=list)  # between two outputs of a text
    held_s: list[float] = field(default_factory=list)  # calls in which the entry rank had requests with images
    held_each_s: float = 0.0  # all of them, for each request
    idle: float = 0.0  # the share of the time in which the device had nothing to do
    cpu_s: float = 0.0  # of all ranks, for each request


class Driver:
    """Sends requests to one server and takes the time. Not shared between threads."""

    def __init__(self, fleet: Fleet, prompts: Prompts, board: Board, stalls: Stalls, *, hashed: bool) -> None:
        self._fleet, self._prompts, self._board, self._stalls, self._hashed = fleet, prompts, board, stalls, hashed
        self._threads = concurrent.futures.ThreadPoolExecutor(2)  # as many as SGLang's tokenizer has
        self._hashing: collections.deque[tuple[concurrent.futures.Future[None], Any]] = collections.deque()
        self._began_s: dict[str, float] = {}  # requests with images that have no end yet
        self._texts: list[str] = []

    def run(self, size: Size, load: Load, plan: LoopPlan) -> Measured:
        """Measure for `plan.seconds`, after a quarter of that. Nothing is under way when it returns."""
        found = Measured()
        chance = random.Random(1)
        for _ in range(plan.texts):
            self._send_text()
        start_s = time.monotonic() + plan.seconds / 4
        end_s = start_s + plan.seconds
        next_s = time.monotonic()
        marks: tuple[int, float, float] | None = None
        while (now_s := time.monotonic()) < end_s or marks is None:
            if marks is None and now_s >= start_s:
                marks = self._stalls.count(0), float(self._board.busy_s[0]), self._cpu_s()
                start_s, end_s = now_s, now_s + plan.seconds
            if load.outstanding:
                if len(self._began_s) < load.outstanding:
                    self._send_images(size, plan.tokens, time.monotonic())
            else:
                while next_s <= time.monotonic():
                    self._send_images(size, plan.tokens, next_s)  # also if this process is late
                    next_s += chance.expovariate(load.per_s)
            self._receive(0 if len(self._began_s) < load.outstanding else 0.001, start_s, found)
        count, busy_s, cpu_s = marks
        took_s = time.monotonic() - start_s
        found.held_s = self._stalls.since(0, count)
        found.idle = 1 - (float(self._board.busy_s[0]) - busy_s) / took_s
        ended = max(1, len(found.latency_s))
        found.qps = len(found.latency_s) / took_s
        found.held_each_s = sum(found.held_s) / ended
        found.cpu_s = (self._cpu_s() - cpu_s) / ended
        self._drain()
        return found

    def close(self) -> None:
        """End the threads."""
        self._threads.shutdown()

    def _send_text(self) -> None:
        rid = f"text-{next(_seeds)}."
        self._texts.append(rid)
        self._fleet.send(self._prompts.text(rid, next(_seeds), tokens=_TEXT_TOKENS))

    def _send_images(self, size: Size, tokens: int, began_s: float) -> None:
        rid = f"images-{next(_seeds)}."
        seeds = [next(_seeds) for _ in range(size.images)]
        request = self._prompts.images(rid, seeds, side=size.side, tokens=tokens)
        self._began_s[rid] = began_s
        if self._hashed:
            self._hashing.append((self._threads.submit(self._prompts.hash, request), request))
        else:
            self._fleet.send(self._prompts.share(request))

    def _receive(self, timeout_s: float, start_s: float, found: Measured) -> None:
        while self._hashing and self._hashing[0][0].done():
            done, request = self._hashing.popleft()
            done.result()
            self._fleet.send(self._prompts.share(request))
        self._fleet.receive(timeout_s)
        self._fleet.check()
        for rid in [rid for rid in self._began_s if self._fleet.answer(rid).reason is not None]:
            answer, began_s = self._fleet.answer(rid), self._began_s.pop(rid)
            if answer.reason is None or answer.reason["type"] != "length":
                raise RuntimeError(f"{rid} ended with {answer.reason}:\n{self._fleet.log()}")
            if answer.at_s[-1] >= start_s:
                found.latency_s.append(answer.at_s[-1] - began_s)
                found.first_s.append(answer.at_s[0] - began_s)
            self._fleet.forget(rid)
        for rid in list(self._texts):
            answer = self._fleet.answer(rid)
            at_s = answer.at_s
            found.gap_s += [b - a for a, b in itertools.pairwise(at_s) if b >= start_s]
            answer.at_s = at_s[-1:]
            if answer.reason is not None:
                self._texts.remove(rid)
                self._fleet.forget(rid)
                self._send_text()

    def _drain(self) -> None:
        for done, _ in self._hashing:
            done.result()
        sent = [rid for rid in self._began_s if rid not in {request.rid for _, request in self._hashing}]
        self._hashing.clear()
        self._fleet.send(self._prompts.abort("", every=True))
        for rid in self._fleet.wait([*sent, *self._texts], _DRAIN_S):
            self._fleet.forget(rid)
        self._began_s.clear()
        self._texts.clear()

    def _cpu_s(self) -> float:
        """Return the processor time that all ranks have used."""
        total = 0
        for pid in self._fleet.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICK_S
