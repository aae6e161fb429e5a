"""Writes the page of the matrix: what each surviving rank saw, and after how many milliseconds."""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

from tests.faults.matrix.combinations import BACKENDS, DEADLY, FAULTS, LAYOUTS, STEPS, Combination
from tests.faults.matrix.rank import CONSTRUCT_S, TIMEOUT_S
from tests.faults.matrix.verdict import Sight

LETTERS = {
    "PeerLostError": "L",
    "CastTimeoutError": "T",
    "ClosedError": "C",
    "BackendError": "B",
}
Results = Mapping[Combination, Sequence[Sight]]

INTRODUCTION = """# Faults

What each surviving rank sees when something befalls another one, and after how many milliseconds. This page is
written by `python -m tests.faults.matrix --out docs/faults.md`, which provokes each fault with real processes and
checks that

* every pending and later call of every survivor ends, with the error named here, which names the victim;
* what a survivor holds keeps its bytes, and after `close()` it has no descriptor, thread, child process or mapping more
  than before construction; no file or socket is left;
* a new group of those that are left works, and so does a frozen rank once it thaws.

{machine}

## What befalls a rank

{faults}

**When:**

{steps}

## How to read the tables

A cell says what the survivors saw first, in rank order: **L** `PeerLostError` naming the victim, **C** `ClosedError`
naming it, **T** `CastTimeoutError` naming it among those that are missing, **B** `BackendError` (construction fails);
then milliseconds. They count from the fault, or, where a survivor had no call pending, from its next call. Calls had
{limit:g} s where the fault was to freeze a rank, so about {limit_ms:.0f} is what was promised there (constructions have
{construct:g} s); when the rank thaws, the next cast arrives everywhere. An empty cell: it cannot be, says nothing that
another cell does not, or was not run.
"""

NETWORK = """## Two hosts in network namespaces, connected by gloo

The wire is cut with `ip link set down`, and restored when all ranks have had their time-out; the next cast then arrives
on all ranks, as TCP sends again what was lost.

| what | when | what the survivors saw |
| --- | --- | --- |
"""

PLAIN_MPI = """## Plain `mpirun`

A rank that dies ends the whole job: `mpirun` ends the others within moments and returns an error; no process, socket or
file of the job is left. There is nothing to catch. The MPI tables above are from `mpirun --with-ft ulfm`.
"""


@dataclass
class Record:
    """What has been run, in a file beside the page: so that the page can be made in parts."""

    results: dict[Combination, list[Sight]] = field(default_factory=dict)
    network: dict[Combination, list[Sight]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Record:
        record = cls()
        if path.exists():
            for name, rows in json.loads(path.read_text()).items():
                into = getattr(record, name)
                into.update({Combination(*it): [Sight(*sight) for sight in sights] for it, sights in rows})
        return record

    def save(self, path: Path) -> None:
        rows = {name: _rows_of(getattr(self, name)) for name in ("results", "network")}
        text = ",\n".join(
            f'"{name}": [\n' + ",\n".join(json.dumps(row) for row in found) + "\n]" for name, found in rows.items()
        )
        path.write_text("{" + text + "}\n")


def _rows_of(results: Results) -> list[object]:
    return [[list(astuple(it)), [[s.rank, s.kind, round(s.ms, 1)] for s in sights]] for it, sights in results.items()]


def write(path: Path, results: Results, network: Results) -> None:
    """Write the page."""
    told = [s.ms for it, sights in [*results.items(), *network.items()] if it.fault in DEADLY for s in sights] or [0.0]
    machine = (
        f"Measured {datetime.date.today().isoformat()} on {os.cpu_count()} cores, Linux {platform.release()}, Python "
        f"{platform.python_version()}: {len(results) + len(network)} combinations. "
        f"After a death, the last survivor knew of it within {max(told):.0f} ms; in half of the cases within "
        f"{sorted(told)[len(told) // 2]:.1f} ms."
    )
    text = INTRODUCTION.format(
        machine=machine,
        faults="\n".join(f"* **{name}**: {what}" for name, what in FAULTS.items()),
        steps="\n".join(f"* **{name}**: {what}" for name, what in STEPS.items()),
        limit=TIMEOUT_S,
        limit_ms=TIMEOUT_S * 1e3,
        construct=CONSTRUCT_S,
    )
    parts = [text]
    for backend in BACKENDS:
        for layout, plan in LAYOUTS.items():
            rows = list(_rows(backend, layout, results))
            if rows:
                title = "MPI, `--with-ft ulfm`" if backend == "mpi" else backend
                head = f"| rank | when | {' | '.join(FAULTS)} |\n|{' --- |' * (len(FAULTS) + 2)}\n"
                parts.append(f"## {title}: {plan.title}\n\n{head}{chr(10).join(rows)}\n")
    if network:
        lines = [f"| {_what(it)} | {it.step} | {cell(sights)} |" for it, sights in network.items()]
        parts.append(NETWORK + "\n".join(lines) + "\n")
    parts.append(PLAIN_MPI)
    path.write_text("\n".join(parts))


def _what(it: Combination) -> str:
    return "the wire is cut" if it.fault == "cut" else f"kill -9 of the {it.role} (rank {it.victim})"


def _rows(backend: str, layout: str, results: Results) -> Iterable[str]:
    for role, rank in LAYOUTS[layout].roles.items():
        for step in STEPS:
            cells = [cell(results.get(Combination(backend, layout, role, step, fault), ())) for fault in FAULTS]
            if any(cells):
                yield f"| {role} ({rank}) | {step} | {' | '.join(cells)} |"


def cell(sights: Sequence[Sight]) -> str:
    """Return what the survivors saw: `L 1.2, 3.4; C 5`."""
    said: list[str] = []
    for index, sight in enumerate(sights):
        ms = f"{sight.ms:.1f}" if sight.ms < 10 else f"{sight.ms:.0f}"
        if index and sights[index - 1].kind == sight.kind:
            said[-1] += f", {ms}"
        else:
            said.append(f"{LETTERS[sight.kind]} {ms}")
    return "; ".join(said)
