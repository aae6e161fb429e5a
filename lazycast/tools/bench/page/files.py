"""Read the runs in a folder. A file that cannot be shown is told of, with the reason, and never stops the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from lazycast.tools.bench.page.records import RequestsRun, SglangRun, TimesRun, Workload

T = TypeVar("T", TimesRun, RequestsRun, SglangRun)


@dataclass(frozen=True)
class Read(Generic[T]):
    """One file.

    Attributes:
        name: of the file, without its folder.
        run: what it holds, validated. raw: the same as it was.
        workloads: of requests, by name; else empty.
    """

    name: str
    run: T
    raw: dict[str, Any]
    workloads: dict[str, Workload] = field(default_factory=dict)


@dataclass(frozen=True)
class Folder:
    """What a folder holds; each list by backend, number of ranks and date.

    Attributes:
        unread: what could not be read, and why, by the name of the file.
    """

    times: list[Read[TimesRun]]
    requests: list[Read[RequestsRun]]
    sglang: list[Read[SglangRun]]
    unread: dict[str, str]

    def without(self, unwanted: Callable[[Read[Any]], bool]) -> Folder:
        """Return the same without some runs."""
        return Folder(
            [one for one in self.times if not unwanted(one)],
            [one for one in self.requests if not unwanted(one)],
            [one for one in self.sglang if not unwanted(one)],
            self.unread,
        )

    def all(self) -> Iterator[Read[Any]]:
        """Yield every run."""
        yield from self.times
        yield from self.requests
        yield from self.sglang


def read(folder: Path) -> Folder:
    """Read every `*.json` in a folder.

    Raises: OSError if the folder itself cannot be read.
    """
    found = Folder([], [], [], {})
    for path in sorted(entry for entry in folder.iterdir() if entry.suffix == ".json"):
        try:
            _sort_in(path.name, path.read_bytes(), found)
        except OSError as exc:
            found.unread[path.name] = exc.strerror or type(exc).__name__
        except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
            found.unread[path.name] = f"not a run of this benchmark: {exc}"
        except _EmptyError as exc:
            found.unread[path.name] = str(exc)
    by_ranks = lambda one: (one.run.plan.backend, one.run.plan.ranks, one.run.date)  # noqa: E731
    found.times.sort(key=by_ranks)
    found.requests.sort(key=by_ranks)
    return found


class _EmptyError(Exception):
    """There is nothing to show."""


def _sort_in(name: str, content: bytes, found: Folder) -> None:
    if not content.strip():
        raise _EmptyError("the file is empty")
    raw = msgspec.json.decode(content, type=dict[str, Any])
    benchmark = raw.get("benchmark", "bench")  # the first of the benchmarks says nothing
    if benchmark == "bench":
        times = msgspec.convert(raw, TimesRun)
        if not times.results:
            raise _EmptyError("the run has no results")
        found.times.append(Read(name, times, raw))
    elif benchmark == "qps":
        requests = msgspec.convert(raw, RequestsRun)
        workloads = [Workload.of(workload) for workload in requests.workloads]
        if not any(workload.ways for workload in workloads):
            raise _EmptyError("the run has no results")
        found.requests.append(Read(name, requests, raw, {w.name: w for w in workloads}))
    elif benchmark == "sglang":
        sglang = msgspec.convert(raw, SglangRun)
        if not sglang.cells:
            raise _EmptyError("the run has no results")
        found.sglang.append(Read(name, sglang, raw))
    elif benchmark not in ("sglang-loop", "sglang-images", "making", "scaling"):  # which have pages of their own
        raise _EmptyError(f"a benchmark that this version does not know: {str(benchmark)[:40]!r}")
