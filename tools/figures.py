"""Puts the figures of the published runs (docs/benchmarks/*.json) into the pages that quote them.

    python tools/figures.py            # writes the pages; a test fails when one differs

What stands between `<!-- figures: NAME -->` and `<!-- end -->` is made by the function of that name below. A way is
called slower or faster only where its spread (10th to 90th percentile) and lazycast's do not overlap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from lazycast.tools.bench import machine as machine_of
from lazycast.tools.bench.making.verdicts import spread, worst_p99
from lazycast.tools.bench.plan import KIB, MIB, size_text
from lazycast.tools.bench.report import seconds_text

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "docs" / "benchmarks"
PAGE_NAMES = ("comparison.md", "guarantees.md", "how-to/making.md", "scaling.md")
PAGES = [ROOT / "README.md", *(ROOT / "docs" / name for name in PAGE_NAMES)]
BLOCK = re.compile(r"(<!-- figures: (?P<name>[\w-]+) -->)(?P<gap>\n*).*?(?P<end>\n*<!-- end -->)", re.DOTALL)
SIZES = (KIB, MIB, 64 * MIB)
LEAST = 1.05  # two medians that are nearer are called equal, whatever their spreads

BUSY = " (busy machine: not compared)"

Row = tuple[str, str, str, str]  # run, kind of payload, way, what to call it

NAMES = {
    "broadcast_object_list": "`broadcast_object_list`",
    "dist.broadcast (ready buffer)": "torch `broadcast`, ready buffer",
    "mpi4py bcast": "mpi4py `bcast`",
    "mpi4py pkl5 bcast": "mpi4py `pkl5` `bcast`",
    "MPI Bcast (ready buffer)": "MPI `Bcast`, ready buffer",
    "accelerate broadcast_object_list": "accelerate `broadcast_object_list`",
    "vLLM MessageQueue": "vLLM `MessageQueue`",
    "vLLM MessageQueue (tensor arena)": "vLLM `MessageQueue`, tensor arena",
    "Ray put and get": "Ray `put`, actors `get`",
    "Dask scatter": "Dask `scatter(broadcast=True)`",
}
REQUESTS = {
    "lazycast-auto": 'lazycast, `placement="auto"`',
    "root-value": "rank 0 makes the value, `broadcast_object_list` sends it",
    "itself": "every rank has the request, and makes the value itself",
    "raw-all": "`broadcast_object_list` sends the request, every rank makes the value",
    "root-hint": "rank 0 makes the hash, and broadcasts only that",
}


def load(name: str) -> dict[str, Any]:
    """Read a published run."""
    found: dict[str, Any] = json.loads((RUNS / f"{name}.json").read_text())
    return found


def result(run: str, kind: str, nbytes: int, way: str, column: str = "holds") -> dict[str, Any]:
    """Find one result of a run. Raises: StopIteration if it was not measured."""
    wanted = (kind, nbytes, way, column)
    return next(r for r in load(run)["results"] if (r["kind"], r["nbytes"], r["way"], r["column"]) == wanted)


def differs(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two ways differ by more than their spreads."""
    low, high = sorted((one, other), key=lambda r: r["median_s"])
    return bool(high["p10_s"] > low["p90_s"] and high["median_s"] / low["median_s"] > LEAST)


def against(mine: dict[str, Any], its: dict[str, Any]) -> str:
    """Say how a way's time compares to lazycast's: "2.1x slower", "3.0x faster", or "≈" for no difference."""
    if not differs(mine, its):
        return "≈"
    ratio = its["median_s"] / mine["median_s"]
    return f"{ratio:.1f}x slower" if ratio > 1 else f"{1 / ratio:.1f}x faster"


def compared(run: str, way: str) -> bool:
    """Whether a way's times are held against lazycast's: not those of a run on a busy machine."""
    return way != "lazycast" and not busy(run)


def busy(run: str) -> bool:
    box = load(run)["machine"]
    return machine_of.busy(box["load_before"], box["cores"])


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def sizes_table(rows: Sequence[Row]) -> str:
    """Compare ways over sizes; each is held against the lazycast of its own run and kind of payload."""
    lines = []
    for run, kind, way, name in rows:
        cells = []
        for nbytes in SIZES:
            its, mine = result(run, kind, nbytes, way), result(run, kind, nbytes, "lazycast")
            cells.append(seconds_text(its["median_s"]) + (f" ({against(mine, its)})" if compared(run, way) else ""))
        lines.append([name, *cells])
    return table(["time until every rank has it", *map(size_text, SIZES)], lines)


def ours(run: str, kind: str, said: str) -> Row:
    return run, kind, "lazycast", f"**lazycast**, {said}{BUSY if busy(run) else ''}"


def theirs(run: str, kind: str, way: str, said: str = "") -> Row:
    return run, kind, way, NAMES[way] + said


def published() -> str:
    rows = [ours("bench-torch", "array", "torch")]
    rows += [theirs("bench-torch", "array", way) for way in ("broadcast_object_list", "dist.broadcast (ready buffer)")]
    rows += [ours("bench-mpi", "array", "MPI")]
    rows += [theirs("bench-mpi", "array", w) for w in ("mpi4py bcast", "mpi4py pkl5 bcast", "MPI Bcast (ready buffer)")]
    return sizes_table(rows)


def peers() -> str:
    torch, local = "bench-torch", "bench-local-peers"
    rows = [ours(torch, "array", "torch")]
    rows += [theirs(torch, "array", way) for way in ("accelerate broadcast_object_list", "vLLM MessageQueue")]
    rows += [ours(torch, "tensor", "torch, a tensor")]
    rows += [theirs(torch, "tensor", "vLLM MessageQueue (tensor arena)", ", a tensor")]
    for kind, said in (("array", ""), ("images", ", JPEG `bytes`")):
        rows += [ours(local, kind, f"local{said}")]
        rows += [theirs(local, kind, way, said) for way in ("Ray put and get", "Dask scatter")]
    return sizes_table(rows)


def readme() -> str:
    lines = []
    for run, name, ways in (
        ("bench-torch", "torch", ("broadcast_object_list", "dist.broadcast (ready buffer)")),
        ("bench-mpi", "MPI", ("mpi4py bcast", "mpi4py pkl5 bcast", "MPI Bcast (ready buffer)")),
    ):
        for way in ("lazycast", *ways):
            cells = []
            for nbytes in SIZES:
                its, mine = result(run, "array", nbytes, way), result(run, "array", nbytes, "lazycast")
                said = f" ({against(mine, its)})" if compared(run, way) else ""
                cells.append(seconds_text(its["median_s"]) + said)
            lines.append([ours(run, "array", name)[-1] if way == "lazycast" else NAMES[way], *cells])
    return table(["a NumPy array of", "1 KiB", "1 MiB", "64 MiB"], lines)


def qps(workload: str) -> dict[str, dict[str, Any]]:
    (found,) = (w for w in load("qps-torch")["workloads"] if w["workload"] == workload)
    return {way["way"]: way for way in found["ways"] if way["unavailable"] is None}


def requests() -> str:
    photo, replicated = qps("photo"), qps("replicated")
    rows = [
        [name, *(f"{found[way]['qps']:.1f}" if way in found else "" for found in (photo, replicated))]
        for way, name in REQUESTS.items()
    ]
    return table(["requests a second", "photos", "15 MB that every rank has, hashed"], rows)


def photos() -> str:
    found = qps("photo")
    mine, root, itself = (found[way]["qps"] for way in ("lazycast-auto", "root-value", "itself"))
    return (
        f"{mine:.0f} photos a second with lazycast, {root:.0f} when rank 0 decodes and calls `broadcast_object_list`, "
        f"{itself:.0f} when every rank decodes"
    )


def sglang() -> str:
    cells = load("sglang-0.5.23")["cells"]

    def last(kind: str, images: int) -> dict[str, str]:
        (cell,) = (c for c in cells if (c["ranks"], c["kind"], c["images"]) == (4, kind, images))
        return {way: seconds_text(said["last_s"]) for way, said in cell["ways"].items() if said.get("last_s")}

    two = last("inputs", 2)
    return (
        f"SGLang 0.5.23, four ranks, one request with two images, until the last rank has its inputs: its own "
        f"broadcast {two['sglang']}, every rank by itself {two['itself']}, with lazycast {two['lazycast']}."
    )


def making() -> str:
    """Who makes values, where: what to choose for which materializer, and what was measured of it."""
    rows = load("making-torch")["rows"]

    def median(row: str, way: str) -> str:
        return seconds_text(spread(rows[row][way]).median)

    def tail(way: str) -> str:
        return seconds_text(spread(worst_p99(rows["scheduler"][way])).median)

    def photos_s(way: str) -> str:
        return f"{spread(rows['photos'][way]).median:.0f}"

    lines = [
        ["is cheap", 'nothing, or `"every"`', f"small cast: {median('hit', 'lazycast-small')}"],
        [
            "is expensive, and releases the lock (decoders in C)",
            'nothing: `"auto"` finds `"shard"`',
            (
                f"photos a second: {photos_s('lazycast-shard')}; with helpers {photos_s('lazycast-helpers')}; "
                f"`ProcessPoolExecutor` {photos_s('executor')}"
            ),
        ],
        [
            "holds the lock (pure Python)",
            "`Helpers(n)`",
            (
                f"p99 of a scheduler's step: {tail('lazycast-helpers')}; in a shard {tail('lazycast-shard')}; "
                f"the same load by strangers {tail('strangers')}; none {tail('quiet')}"
            ),
        ],
        [
            "makes large values in other processes",
            "`Helpers(n)`",
            (
                f"10 MB on top: {median('value', 'lazycast-helpers')}; `ProcessPoolExecutor` "
                f"{median('value', 'executor')}, `multiprocessing.Pool` {median('value', 'pool')}, "
                f"by hand {median('value', 'shared-pool')}"
            ),
        ],
        [
            "has many items in a request",
            "`Each(fn)`",
            (
                f"eight photos: by two ranks {median('album', 'lazycast-each-shard')}, two helpers "
                f"{median('album', 'lazycast-each')}, one rank {median('album', 'lazycast-shard')}"
            ),
        ],
        [
            "gets the same again",
            "`memo=Memo(nbytes)`",
            f"10 MB again: {median('hit', 'lazycast-memo')}",
        ],
        [
            "may crash, hang, or eat memory",
            "`Helpers(n, limit_s=, memory_nbytes=)`",
            f"a helper is killed: {median('killed', 'lazycast-helpers')} lost, replaced after "
            + median("killed", "replaced"),
        ],
    ]
    return table(["your materializer", "choose", f"measured{BUSY if busy('making-torch') else ''}"], lines)


def ms(time_s: float) -> str:
    return f"{time_s * 1000:.3g}"


def simulated() -> str:
    """Times in milliseconds and messages at the root over ranks, of the simulation."""
    rows = load("scaling")["simulated"]
    lines = []
    for size in sorted({row["ranks"] for row in rows}):
        mine, plain = (next(r for r in rows if (r["ranks"], r["combined"]) == (size, flag)) for flag in (True, False))
        times = [ms(mine[name]) for name in ("value_s", "verdict_s", "rank_news_s")]
        lines.append(
            [f"{size:,}", f"{mine['root_gets']:.0f}", *times, f"{plain['root_gets']:.0f}", ms(plain["verdict_s"])]
        )
    return table(
        ["ranks", "reports", "value", "verdict", "death", "reports, not combined", "verdict, not combined"], lines
    )


def measured() -> str:
    """Groups of real ranks on one machine, beside what the simulation makes of them; times in milliseconds."""
    lines = []
    for row in load("scaling")["compared"]["rows"]:
        real, said = row["real"], row["simulated"]
        assert real["reports"] == said["reports"], "the page says that the counts agree"
        cells = [f"{real['reports']:g}", *(ms(of[name]) for name in ("value_s", "verdict_s") for of in (real, said))]
        hosts = row["ranks"] // row["per_host"]
        of_hosts = f"{hosts}{'*' * (row['hosts_are'] == 'namespaces')}"
        lines.append([f"{row['ranks']}", of_hosts, *cells, ms(real["root_cpu_s"])])
    both = (name for what in ("value", "verdict") for name in (what, "simulated"))
    return table(["ranks", "hosts", "reports", *both, "root's CPU"], lines)


def calibration() -> str:
    """On what real ranks were measured, and what a message and a waking then cost the simulation."""
    run = load("scaling")
    box, found = run["machine"], run["compared"]
    said = {"send": "send_s", "receive": "receive_s", "wake": "latency_s"}
    costs = [f"{name} {seconds_text(found['speeds'][speed])}" for name, speed in said.items()]
    return (
        f"{run['date'][:10]}, {box['cores']} cores ({box['cpu']}), load {box['load_before']:.1f} before, "
        f"{found['casts']} casts each. Fitted: {', '.join(costs)}"
    )


def machine() -> str:
    run = load("bench-torch")
    box, plan = run["machine"], run["plan"]
    return f"{plan['ranks']} ranks on {box['cores']} cores ({box['cpu']}), {run['date'][:10]}, medians"


def idle() -> str:
    """The share of a core that lazycast's threads take on an idle rank, the worst of a run."""
    return f"{max(load('bench-torch')['figures']['idle_threads_fraction']):.2%}".replace("%", " %")


def small() -> str:
    torch, mpi = (result(run, "array", KIB, "lazycast")["median_s"] for run in ("bench-torch", "bench-mpi"))
    bcast = result("bench-mpi", "array", KIB, "mpi4py bcast")["median_s"]
    return (
        f"1 KiB takes {seconds_text(torch)} on torch and {seconds_text(mpi)} on MPI (four ranks, two cores), of "
        f"Python; mpi4py's `bcast` {seconds_text(bcast)}"
    )


MADE: dict[str, Callable[[], str]] = {
    made.__name__: made
    for made in (
        *(published, peers, readme, requests, photos, sglang, making, machine, idle, small),
        *(simulated, measured, calibration),
    )
}


def renewed(text: str) -> str:
    """Return a page with the figures of the published runs. Raises: KeyError for a name that nothing makes."""
    return BLOCK.sub(lambda m: f"{m[1]}{m['gap']}{MADE[m['name']]()}{m['end']}", text)


def main() -> None:
    for page in PAGES:
        page.write_text(renewed(page.read_text()))


if __name__ == "__main__":
    main()
