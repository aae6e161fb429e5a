"""Casts among all ranks: whether every rank gets what was cast, and how fast, beside what one copy takes here.

How times are taken: the root's call, with agreement, ends when every rank has its value, wherever the ranks are; the
others wait in their calls. Copies of as many bytes (`memcpy`, warm) are taken in turn with the casts.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.errors import CastTimeoutError, MaterializeError
from lazycast.net.backend import Backend
from lazycast.net.host import headroom
from lazycast.options import Helpers
from lazycast.testing.kit import same
from lazycast.testing.values import payloads
from lazycast.tools.doctor.finding import Finding, ranks_text, size_text

_LARGE_NBYTES, _LEAST_NBYTES, _SMALL_NBYTES = 64 << 20, 1 << 20, 1 << 10
_ROUNDS, _WARM, _SMALL_ROUNDS = 9, 2, 200
#: What rounds of one size may take together; three are taken in any case (seconds).
_BUDGET_S = 3.0
#: Longer than a rank needs from one call into the next (seconds).
_SETTLE_S = 1e-3
#: Beyond these, something is not as it should be. On two cores, four ranks take 1.4 times a memcpy, and 1 ms.
_SLOW_RATIO, _SLOW_SMALL_S = 4.0, 0.02


class Speed(msgspec.Struct, frozen=True):
    """Medians in seconds."""

    nbytes: int
    cast_s: float
    memcpy_s: float
    small_nbytes: int
    small_s: float

    @property
    def ratio(self) -> float:
        return self.cast_s / self.memcpy_s


class Outcome(msgspec.Struct, frozen=True):
    """Of one rank: what it has compared, and how what it got differed, by name; on the root also the speed."""

    compared: list[str]
    differing: dict[str, str]
    speed: Speed | None


def run(backend: Backend, lazy: LazyBroadcast[Any, Any], timeout_s: float) -> Outcome:
    """Take part in the self-test with an object, and one more for each placement. Collective."""
    compared, differing = [], {}
    logger, on_purpose = logging.getLogger("lazycast"), _OnPurpose()
    logger.addFilter(on_purpose)
    try:
        for name, problem in (*_values(lazy), *_placements(backend, timeout_s), *_failure(lazy)):
            compared.append(name)
            if problem is not None:
                differing[name] = problem
        return Outcome(compared, differing, _measure(lazy))  # which takes longer than the log of a failed call
    finally:
        logger.removeFilter(on_purpose)


class _OnPurpose(logging.Filter):
    """Leaves out the log of the call that the self-test makes fail; any other failure is told."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "cannot make anything of 'bad'" not in record.getMessage()


def _difference(found: Any, expected: Any) -> str | None:
    try:
        same(found, expected)
    except AssertionError as exc:
        return str(exc)
    return None


def _values(lazy: LazyBroadcast[Any, Any]) -> Iterator[tuple[str, str | None]]:
    for name, expected in payloads().items():
        yield name, _difference(lazy.broadcast(expected if lazy.is_root else None), expected)
    with_tensor = lazy.broadcast("torch" in sys.modules if lazy.is_root else None)
    if with_tensor:
        import torch

        tensor = torch.arange(300_000).to(torch.bfloat16)
        found = lazy.broadcast(tensor if lazy.is_root else None)
        good = isinstance(found, torch.Tensor) and found.dtype == tensor.dtype and torch.equal(found, tensor)
        yield "tensor", None if good else "another tensor"


def double(array: np.ndarray) -> np.ndarray:
    """The materializer of the self-test."""
    return array * 2


def refuse(payload: object) -> object:
    """A materializer that fails, as a bad request makes one fail."""
    raise ValueError(f"cannot make anything of {payload!r}")


def _placements(backend: Backend, timeout_s: float) -> Iterator[tuple[str, str | None]]:
    for placement in ("every", "shard", "root"):
        options: dict[str, Any] = {"name": f"doctor-{placement}", "placement": placement, "timeout_s": timeout_s}
        with LazyBroadcast(double, backend=backend, **options) as lazy:
            problem = None
            for turn in range(lazy.size):  # so that each rank is the owner once
                payload = np.arange(70_001, dtype=np.int64) + turn
                found = lazy.broadcast(payload if lazy.is_root else None)
                problem = problem or _difference(found, payload * 2)
        yield f"placement {placement}", problem
    yield "a helper", _helped(backend, timeout_s)


def _helped(backend: Backend, timeout_s: float) -> str | None:
    """A process that is no rank starts, and makes a value; return what is wrong with it."""
    payload = np.arange(70_001, dtype=np.int64)
    with LazyBroadcast(
        double, backend=backend, name="doctor-helpers", placement=Helpers(1), timeout_s=timeout_s
    ) as lazy:
        try:
            found = lazy.broadcast(payload if lazy.is_root else None)
        except (MaterializeError, CastTimeoutError) as exc:  # on every rank
            return f"{type(exc).__name__}: {exc.message}"
    return _difference(found, payload * 2)


def _failure(lazy: LazyBroadcast[Any, Any]) -> Iterator[tuple[str, str | None]]:
    """A bad input is an error on every rank, and the next cast works."""
    problem = None
    try:
        lazy.broadcast("bad" if lazy.is_root else None, materialize=refuse)
    except MaterializeError as exc:
        if "cannot make anything of 'bad'" not in exc.message:
            problem = f"another error: {exc.message}"
    else:
        problem = "no error"
    yield "an error on every rank", problem or _difference(lazy.broadcast("next" if lazy.is_root else None), "next")


def _measure(lazy: LazyBroadcast[Any, Any]) -> Speed | None:
    if not lazy.is_root:
        while lazy.broadcast() is not None:  # the root ends it
            pass
        return None
    nbytes = _affordable(headroom.headroom())
    payload = np.random.default_rng(7).integers(0, 255, nbytes, np.uint8)
    copy = payload.copy()
    cast_s, memcpy_s, small_s = [], [], []
    deadline_s = time.monotonic() + _BUDGET_S
    for turn in range(_WARM + _ROUNDS):
        start_s = time.perf_counter()
        np.copyto(copy, payload)
        copied_s = time.perf_counter() - start_s
        took_s = _time(lazy, payload)
        if turn >= _WARM:
            cast_s.append(took_s)
            memcpy_s.append(copied_s)
        if len(cast_s) >= 3 and time.monotonic() > deadline_s:
            break
    deadline_s = time.monotonic() + _BUDGET_S
    small = {"rid": 1, "ids": b"x" * (_SMALL_NBYTES - 64), "text": "a prompt", "n": [1, 2, 3]}
    for _ in range(_SMALL_ROUNDS):
        small_s.append(_time(lazy, small))
        if len(small_s) >= 3 and time.monotonic() > deadline_s:
            break
    lazy.broadcast(None)
    medians = (statistics.median(cast_s), statistics.median(memcpy_s), statistics.median(small_s))
    return Speed(nbytes, medians[0], medians[1], _SMALL_NBYTES, medians[2])


def _time(lazy: LazyBroadcast[Any, Any], payload: Any) -> float:
    time.sleep(_SETTLE_S)
    start_s = time.perf_counter()
    lazy.broadcast(payload)
    return time.perf_counter() - start_s


def _affordable(left: int | None) -> int:
    """How large a payload there is room for, four times over: what is cast, its copy, and arenas."""
    nbytes = _LARGE_NBYTES
    while left is not None and nbytes > _LEAST_NBYTES and left < 4 * nbytes + headroom.RESERVE_NBYTES:
        nbytes //= 2
    return nbytes


def correctness(outcomes: dict[int, Outcome]) -> Finding:
    """Whether every rank got what was cast."""
    wrong = {rank: outcome.differing for rank, outcome in outcomes.items() if outcome.differing}
    kinds = len(next(iter(outcomes.values())).compared)
    if not wrong:
        found = f"{kinds} kinds of casts, compared on {ranks_text(outcomes)}: all as they should be"
        return Finding("self-test", "values", "ok", found)
    said = tuple(f"rank {rank}: {name}: {why}" for rank, names in wrong.items() for name, why in names.items())
    remedy = "this must not happen: please report it, with the output of lazycast doctor --json"
    found = f"{ranks_text(wrong)} got something else than was cast"
    return Finding("self-test", "values", "problem", found, remedy, said[:20])


def speed(found: Speed, *, one_host: bool, size: int) -> tuple[Finding, Finding]:
    """How fast a large and a small cast are. Slow is a note: it may be the machine, or what else runs on it."""
    rate = found.nbytes / found.cast_s / 2**30
    took = f"{size_text(found.nbytes)} in {found.cast_s * 1e3:.1f} ms"
    text = f"{took}, {found.ratio:.1f} x one memcpy ({rate:.1f} GiB/s)"
    busy = "run it again when the machine is idle; then look at the lines on cores and on who shares memory"
    if size > 1 and one_host and found.ratio > _SLOW_RATIO:
        large = Finding("self-test", "large cast", "note", text, busy)
    else:
        between = "" if one_host else "; between hosts the network sets the pace"
        large = Finding("self-test", "large cast", "ok", text + between)
    text = f"{size_text(found.small_nbytes)} in {found.small_s * 1e3:.2f} ms, median, until every rank has it"
    slow = found.small_s > _SLOW_SMALL_S
    return large, Finding("self-test", "small cast", "note" if slow else "ok", text, busy if slow else None)
