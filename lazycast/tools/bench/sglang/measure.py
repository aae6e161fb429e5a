"""What each rank of a run does. `run_rank` is the function that is launched.

How a time is taken: all ranks meet in a barrier that costs no processor time; each makes one call, and notes how long
it took: these are the times per call. They meet again, and make some calls in a row: from the first begin to the last
end is the throughput, and what all ranks have used of the processors the cost. Hashes are compared among ways and
ranks.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lazycast.start import discovery
from lazycast.tools.bench import machine
from lazycast.tools.bench.progress import Reporter
from lazycast.tools.bench.sglang import inputs, ways, without_gpu
from lazycast.tools.bench.sglang.plan import Plan
from lazycast.tools.bench.sglang.ways import INPUTS, REQUESTS, Ways, fresh, identity
from lazycast.tools.bench.sync import Sync

_SPLITTING = "SGLANG_ENABLE_MM_SPLITTING"
_MOST_SPLIT = 4  # images: without the adapter it takes seconds for more
_NOTHING = "no request"  # what an idle server broadcasts all the time
_TEXT = "text"


@dataclass(frozen=True)
class Cell:
    """What a way is measured with."""

    kind: str  # "inputs", "splitting", "requests"
    images: int
    has_text: bool = False  # whether there is a request where there are no images

    @property
    def text(self) -> str:
        """What people call it."""
        nothing = _TEXT if self.has_text else _NOTHING
        count = f"{self.images} image{'s' if self.images > 1 else ''}" if self.images else nothing
        return count if self.kind == "inputs" else f"{count}, {self.kind}"


@dataclass
class Timed:
    """One way in one cell, on this rank: seconds."""

    call_s: list[float] = field(default_factory=list)
    spans: list[tuple[int, int, int, float]] = field(default_factory=list)  # begin, end (ns), calls, processor time


def cells(plan: Plan) -> list[Cell]:
    """Return the cells of a plan, as far as this release has them."""
    found = [Cell("inputs", images) for images in plan.images]
    if plan.splitting and inputs.bundles():
        found += [Cell("splitting", images) for images in plan.images if 1 < images <= _MOST_SPLIT]
    if plan.requests:
        found += [Cell("requests", 0), Cell("requests", 0, has_text=True)]
        found += [Cell("requests", images) for images in plan.images]
    return found


def run_rank(plan: Plan, folder: Path) -> dict[str, Any]:
    """Take part in the measurements on this number of ranks; return this rank's."""
    backend = discovery.resolve("auto")
    sync = Sync(backend.rank, backend.size, folder)
    reporter = Reporter(folder, backend.rank == 0)
    reporter.say(f"{backend.size} ranks import SGLang")
    without_gpu.prepare()
    all_ways = Ways()
    found = []
    todo = cells(plan)
    for number, cell in enumerate(todo):
        reporter.begin(number, len(todo), f"{backend.size} ranks, {cell.text}")
        os.environ[_SPLITTING] = str(int(cell.kind == "splitting"))
        timed = _measure(plan, cell, all_ways, sync, lambda done: reporter.round(done, plan.rounds))
        found.append({"cell": cell, "ways": timed})
    reporter.end(len(todo))
    sync.gather()
    all_ways.close()
    sync.close()
    return {"cells": found, "versions": {**machine.versions("torch"), "sglang": without_gpu.release_text()}}


def _measure(plan: Plan, cell: Cell, all_ways: Ways, sync: Sync, tell: Callable[[int], None]) -> dict[str, Timed]:
    raw = inputs.images(cell.images, seed=cell.images) if cell.images else _without_images(cell)
    names = list(REQUESTS if cell.kind == "requests" else INPUTS)
    timed = {name: Timed() for name in names}
    for turn in range(plan.rounds + 1):
        tell(turn)
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            into = timed[name] if turn else Timed()  # the first round warms up
            made = _once(all_ways.calls[name], cell, raw, plan.burst, into, sync)
            if not turn and cell.kind != "requests":
                said = identity(made).encode()
                alike = set(sync.gather(said)) == {said}
                expected = identity(all_ways.calls["itself"](fresh(raw))).encode()
                sync.agree(None if alike and said == expected else f"{name}: hashes differ")
    return timed


def _without_images(cell: Cell) -> list[Any]:
    return [inputs.text_request()] if cell.has_text else []


def _once(call: ways.Call, cell: Cell, raw: Any, burst: int, into: Timed, sync: Sync) -> Any:
    def request() -> Any:
        if cell.kind != "requests":
            return fresh(raw)
        return [fresh(raw)] if cell.images else raw

    given, row = request(), [request() for _ in range(burst)]
    sync.gather()
    began_s = time.perf_counter()
    made = call(given)
    into.call_s.append(time.perf_counter() - began_s)
    sync.gather()
    cpu_s, begin_ns = time.process_time(), time.monotonic_ns()
    for given in row:
        call(given)
    end_ns = time.monotonic_ns()
    sync.gather()
    into.spans.append((begin_ns, end_ns, burst, time.process_time() - cpu_s))
    return made


def combine(ranks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put together what the ranks have measured: a dict for each cell, as JSON has it."""
    combined = []
    for number, mine in enumerate(ranks[0]["cells"]):
        cell: Cell = mine["cell"]
        found = {name: _figures([rank["cells"][number]["ways"][name] for rank in ranks]) for name in mine["ways"]}
        combined.append(
            {"ranks": len(ranks), "kind": cell.kind, "images": cell.images, "text": cell.text, "ways": found}
        )
    return combined


def _figures(timed: list[Timed]) -> dict[str, Any]:
    bursts = list(zip(*(one.spans for one in timed), strict=True))
    took_s = [(max(s[1] for s in spans) - min(s[0] for s in spans)) / 1e9 for spans in bursts]
    calls = timed[0].spans[0][2]
    return {
        "call_s": [statistics.median(one.call_s) for one in timed],
        "last_s": statistics.median(max(seconds) for seconds in zip(*(one.call_s for one in timed), strict=True)),
        "qps": calls / statistics.median(took_s),
        "cpu_s": statistics.median(sum(s[3] for s in spans) for spans in bursts) / calls,
    }
