"""Compare ways to bring an object to all ranks, in one run on ranks started on this machine.

Each round takes every way in turn: lazycast, the peers that the backend has, where they are installed (torch:
broadcast_object_list, accelerate's, vLLM's queue; mpi: mpi4py's bcast, its pkl5; both: raw broadcasts into ready
buffers; local: Ray's object store, Dask's scatter), and one memcpy as the least a copy can cost. What every rank
received is compared with what was sent.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lazycast.tools.bench import plan as plans
from lazycast.tools.bench import plot, report, session
from lazycast.tools.bench.page import charts
from lazycast.tools.bench.payloads import SOURCES
from lazycast.tools.bench.ways import WAYS
from lazycast.tools.cli import (
    announce,
    arguments,
    bench_making,
    bench_overhead,
    bench_page,
    bench_qps,
    bench_sglang,
    bench_sglang_images,
    bench_sglang_loop,
    bench_small,
    extras,
)

HELP = "compare lazycast with other ways to broadcast an object, on this machine"

BACKENDS = ("torch", "mpi", "local")
_LIBRARIES = {"torch": "torch", "mpi": "mpi4py"}

#: What `--quick` measures of requests, if a report is asked for.
_QUICK_REQUESTS = ("itself", "root-value", "lazycast-auto")

#: What `--short` takes instead of the defaults.
_SHORT_CELL_S = 4.0
_CELL_S = 20.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    ways = [way.name for way in WAYS]
    many = "comma-separated; default: all"
    parser.add_argument("--backend", choices=BACKENDS, help="default: the first of these that is installed")
    parser.add_argument(
        "--ranks", type=arguments.RANKS, default=(4,), metavar="N,..", help="a run for each number; default: 4"
    )
    parser.add_argument("--quick", action="store_true", help="what matters most, within two minutes on two quiet cores")
    parser.add_argument("--short", action="store_true", help="sizes up to 64 MiB, and less time for each")
    parser.add_argument("--sizes", type=arguments.listed(plans.parse_size), metavar="S,..", help="such as 1KiB,64MiB")
    parser.add_argument(
        "--kinds",
        type=arguments.listed(arguments.one_of(SOURCES)),
        metavar="K,..",
        help=f"{', '.join(SOURCES)}; {many}",
    )
    parser.add_argument(
        "--ways", type=arguments.listed(arguments.one_of(ways)), metavar="W,..", help=f"{', '.join(ways)}; {many}"
    )
    parser.add_argument(
        "--cell-s",
        type=arguments.above_zero,
        metavar="S",
        help=f"time for each kind and size, once it has {plans.MIN_ROUNDS} rounds; default: {_CELL_S:g}, "
        f"or {_SHORT_CELL_S:g} with --short",
    )
    parser.add_argument("--rounds", type=arguments.whole(1), metavar="N", help="so many rounds at most")
    parser.add_argument("--no-figures", action="store_true", help="leave out idle ranks, broadcast_async and memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write a picture (PNG): time over size")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write all three there, as bench-BACKEND.*")
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="measure requests too, and make one HTML page of all runs there"
    )
    parser.add_argument("--no-requests", action="store_true", help="with --report: leave out the requests")
    parser.set_defaults(benchmark=None)
    others = parser.add_subparsers(
        metavar="[small | qps | making | overhead | sglang | sglang-loop | sglang-images | report]",
        title="other benchmarks, and the page of all",
    )
    modules = {
        "small": bench_small,
        "qps": bench_qps,
        "making": bench_making,
        "overhead": bench_overhead,
        "sglang": bench_sglang,
        "sglang-loop": bench_sglang_loop,
        "sglang-images": bench_sglang_images,
        "report": bench_page,
    }
    for name, module in modules.items():
        other = others.add_parser(name, help=module.HELP, description=module.__doc__)
        other.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_arguments(other)
        other.set_defaults(benchmark=module.run)


def run(args: argparse.Namespace) -> int:
    """Measure, print and write. Returns the exit code."""
    backend = args.backend or next(b for b in BACKENDS if b not in _LIBRARIES or find_spec(_LIBRARIES[b]))
    if args.benchmark is not None:
        code: int = args.benchmark(args, backend)
        return code
    problem = _missing(args)
    if problem is not None:
        print(f"lazycast bench: {problem}", file=sys.stderr)
        return 2
    several = len(args.ranks) > 1
    requests = bench_qps.of_report(args, backend, _QUICK_REQUESTS if args.quick else ())
    asked = requests if args.report and not args.no_requests else []
    seconds = sum(_plan(args, backend, ranks).about_s for ranks in args.ranks)
    announce.announce("lazycast bench", seconds + bench_qps.about_s(asked))
    for ranks in args.ranks:
        label = f"{ranks} ranks: " if several else ""
        measured = session.run(_plan(args, backend, ranks), command=args.command_line, label=label)
        report.print_run(measured)
        stem = arguments.stem("bench", backend, ranks if several else None)
        _write(measured, _paths(args, stem))
        if args.report:
            bench_qps.write_json(measured, args.report / f"{stem}.json")
    if not args.report:
        return 0
    bench_qps.measure(asked, args)
    return bench_page.write(args.report)


def _write(measured: dict[str, Any], paths: dict[str, Path]) -> None:
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    if "json" in paths:
        paths["json"].write_text(json.dumps(measured, indent=1) + "\n")
    if "plot" in paths and plot.missing() is None:
        plot.draw(measured, paths["plot"])
    elif "plot" in paths:
        print(f"lazycast bench: no picture: {plot.missing()}", file=sys.stderr)
        del paths["plot"]
    if "markdown" in paths:
        picture = paths.get("plot")
        beside = picture is not None and picture.parent == paths["markdown"].parent
        paths["markdown"].write_text(report.markdown(measured, plot=picture.name if picture and beside else None))


def _paths(args: argparse.Namespace, stem: str) -> dict[str, Path]:
    """Where to write what. What `--out` leaves open, the other options say."""
    endings = {"json": "json", "markdown": "md", "plot": "png"}
    paths = {what: args.out / f"{stem}.{ending}" for what, ending in endings.items() if args.out}
    return {**paths, **{what: getattr(args, what) for what in endings if getattr(args, what)}}


def _missing(args: argparse.Namespace) -> str | None:
    """Say before the run, not after it, that something asked for cannot be done."""
    if len(args.ranks) > 1 and (args.json or args.markdown or args.plot):
        return "--json, --markdown and --plot take one number of ranks; with several, use --out or --report"
    if find_spec("rich") is None:
        return "rich not found; run: pip install 'lazycast[cli]'"
    if args.report and not args.no_requests and extras.missing() is not None:
        return extras.missing()
    if args.report and charts.missing() is not None:
        return charts.missing()
    return plot.missing() if args.plot is not None else None


def _plan(args: argparse.Namespace, backend: str, ranks: int) -> plans.Plan:
    installed = tuple(kind for kind, source in SOURCES.items() if source.available())
    rounds = args.rounds or plans.MAX_ROUNDS
    plan = plans.Plan(
        backend=backend,
        ranks=ranks,
        kinds=args.kinds or (plans.QUICK_KINDS if args.quick else installed),
        sizes=args.sizes or (plans.QUICK_SIZES if args.quick else plans.SHORT_SIZES if args.short else plans.SIZES),
        ways=args.ways or (plans.QUICK_WAYS if args.quick else ()),
        cell_s=args.cell_s or (plans.QUICK_CELL_S if args.quick else _SHORT_CELL_S if args.short else _CELL_S),
        min_rounds=min(rounds, plans.MIN_ROUNDS),
        max_rounds=rounds,
    )
    return plan.without_figures() if args.no_figures or args.quick else plan
