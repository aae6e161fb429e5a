"""Cast real photos to ranks started on this machine, and check that all ranks made the same pixels of them.

The root casts raw JPEG files: first all of them as one dict, then each by itself under its name as the key, asked for
in another order on each rank. Every rank decodes, resizes, normalises and hashes them, and reports.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lazycast import LazyBroadcast
from lazycast.errors import BackendUnavailableError, LazycastError
from lazycast.options import PLACEMENTS
from lazycast.start.launcher import launch
from lazycast.tools.bench import progress
from lazycast.tools.cli import extras, photos
from lazycast.version import __version__

HELP = "cast real photos to ranks on this machine and compare what each rank got"

_WIDE = 110  # columns that the table takes
BACKENDS = ("local", "threads", "torch", "mpi")


@dataclass(frozen=True)
class RankReport:
    """What one rank saw. The digests are of the pixels it holds, whoever made them."""

    rank: int
    pid: int
    casts: int
    nbytes_received: int
    materialized: int
    materialize_ms: float
    total_ms: float
    digest: str
    photos: dict[str, str]


@dataclass(frozen=True)
class Run:
    """One backend's ranks, or why there are none."""

    backend: str
    ranks: list[RankReport] = field(default_factory=list)
    unavailable: str | None = None
    error: str | None = None

    @property
    def differing(self) -> list[int]:
        """Ranks whose digest is not the root's."""
        return [report.rank for report in self.ranks if report.digest != self.ranks[0].digest]

    @property
    def equal(self) -> bool:
        return bool(self.ranks) and not self.differing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--backend", choices=(*BACKENDS, "all"), default="local", help="default: %(default)s")
    parser.add_argument("--ranks", type=_positive_int, default=4, metavar="N", help="default: %(default)s")
    parser.add_argument("--placement", choices=PLACEMENTS, default="auto", help="who decodes; default: %(default)s")
    parser.add_argument(
        "--timeout-s",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="give up on a backend after so many seconds; default: %(default)g",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _positive_int(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def run(args: argparse.Namespace) -> int:
    """Run the demo on the backends asked for. Returns the exit code."""
    problem = extras.missing()
    if problem is not None:
        print(f"lazycast demo: {problem}", file=sys.stderr)
        return 2
    # One backend that is unavailable, or fails, ends the command; of several it is a line in the table.
    runs = [_try(b, args) for b in BACKENDS] if args.backend == "all" else [_start(args.backend, args)]
    if args.json:
        _print_json(runs, args.placement)
    else:
        _print_table(runs)
    if any(r.error or r.differing for r in runs):
        return 1
    return 2 if any(r.unavailable for r in runs) else 0


def _start(backend: str, args: argparse.Namespace) -> Run:
    with tempfile.TemporaryDirectory(prefix="lazycast-demo-") as name, progress.shown(Path(name), f"{backend}: "):
        wanted = (args.placement, args.timeout_s, Path(name))
        reports = launch(cast_photos, ranks=args.ranks, backend=backend, args=wanted, timeout_s=args.timeout_s)
    return Run(backend, reports)


def _try(backend: str, args: argparse.Namespace) -> Run:
    try:
        return _start(backend, args)
    except BackendUnavailableError as exc:
        return Run(backend, unavailable=str(exc))
    except LazycastError as exc:
        return Run(backend, error=f"{type(exc).__name__}: {exc}")


def cast_photos(placement: str, timeout_s: float, folder: Path) -> RankReport:
    """On each rank: take part in the casts and report; the root tells of its progress in `folder`."""
    with LazyBroadcast(photos.develop, name="demo", placement=placement, timeout_s=timeout_s) as lazy:
        reporter = progress.Reporter(folder, lazy.is_root)
        reporter.begin(0, 2, "photos together")
        jpegs = photos.sample_photos() if lazy.is_root else {}  # the others never touch the files
        album = lazy.broadcast(jpegs)
        names = list(album)
        turn = lazy.rank % len(names)
        reporter.begin(1, 2, "photos one by one")
        order = names[turn:] + names[:turn]
        futures = {n: lazy.broadcast_async({n: jpegs[n]} if lazy.is_root else {}, key=n) for n in order}
        singles = {name: futures[name].result()[name] for name in names}
        stats = lazy.stats()
        reporter.end(2)
    digests = {name: _digest(name, album[name], singles[name]) for name in names}
    return RankReport(
        rank=lazy.rank,
        pid=os.getpid(),
        casts=stats.casts,
        nbytes_received=stats.nbytes_received,
        materialized=stats.materialize.count,
        materialize_ms=round(stats.materialize.total_s * 1e3, 3),
        total_ms=round(stats.total.total_s * 1e3, 3),
        digest=hashlib.sha256("".join(digests.values()).encode()).hexdigest(),
        photos=digests,
    )


def _digest(name: str, *copies: photos.Photo) -> str:
    """Hash the pixels as this rank holds them; each photo was cast twice, and hashed by who made it."""
    found = {photos.digest(photo.pixels) for photo in copies} | {photo.sha256 for photo in copies}
    if len(found) > 1:
        raise ValueError(f"{name} differs between two casts, or from the hash cast with it: {sorted(found)}")
    return found.pop()


def _print_json(runs: list[Run], placement: str) -> None:
    said = {
        "version": __version__,
        "placement": placement,
        "equal": all(r.equal for r in runs),
        "runs": [{**asdict(r), "equal": r.equal, "differing": r.differing} for r in runs],
    }
    print(json.dumps(said, indent=2))


def _print_table(runs: list[Run]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=f"lazycast {__version__}")
    table.add_column("backend")
    for title in ("rank", "pid", "casts", "made here", "bytes received", "materialize (ms)"):
        table.add_column(title, justify="right")
    table.add_column("digest", no_wrap=True)
    for r in runs:
        for report in r.ranks:
            style = "red" if report.rank in r.differing else None
            took = f"{report.materialize_ms:.1f}" if report.materialized else "-"
            numbers = (report.rank, report.pid, report.casts, report.materialized, f"{report.nbytes_received:,}", took)
            table.add_row(r.backend, *map(str, numbers), report.digest[:16], style=style)
        if not r.ranks:
            table.add_row(
                r.backend, "-", "-", "-", "-", "-", "-", "unavailable" if r.unavailable else "failed", style="red"
            )
        table.add_section()
    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, _WIDE)  # a file has no edge at which to break lines
    console.print(table)
    photo_names = next((list(r.ranks[0].photos) for r in runs if r.ranks), [])
    if photo_names:
        console.print(f"{len(photo_names)} photos, together and one by one: {', '.join(photo_names)}", highlight=False)
    for r in runs:
        if r.unavailable or r.error:
            console.print(f"[red]{r.backend}: {escape(r.unavailable or r.error or '')}", highlight=False)
        elif r.differing:
            console.print(f"[red]{r.backend}: differing from rank 0: {', '.join(map(str, r.differing))}")
    if any(r.error or r.differing for r in runs):
        verdict = "[red]not all equal"
    elif any(r.unavailable for r in runs):
        verdict = "[yellow]all equal where ranks could be started"
    else:
        verdict = "[green]all equal"
    console.print(verdict, highlight=False)
