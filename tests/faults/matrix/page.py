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

Results = Mapping[Combination, Sequence[Sight]]

INTRODUCTION = """# Faults

What the other ranks see when something happens to one, and after how long.
`python -m tests.faults.matrix --out docs/faults.md` provokes each fault with real processes and writes this page;
`docs/faults.json` has every figure. It checks that

* every pending and later call of every other rank ends with the error named here, which names the rank at fault;
* what the others hold keeps its bytes, and after `close()` they have no descriptor, thread, child process or mapping
  more than before construction; no file or socket is left;
* a new group of those that are left works, and so does a frozen rank once it runs again.

{machine}

**What happens to a rank:** {faults}.

**When:** {steps}.

A cell names the error that each of the other ranks got first, and the median and the longest time over all
combinations (milliseconds): from the fault, or, where no call was pending, from the next call. `CastTimeoutError`
comes when the call's time is over: here {limit:g} s, and {construct:g} s for constructions.
"""

NETWORK = """## Two hosts in network namespaces, over torch

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
        faults="; ".join(f"*{name}*, {what}" for name, what in FAULTS.items()),
        steps="; ".join(f"*{name}*, {what}" for name, what in STEPS.items()),
        limit=TIMEOUT_S,
        construct=CONSTRUCT_S,
    )
    parts = [text]
    for backend in BACKENDS:
        rows = list(_rows(backend, results))
        if rows:
            title = "MPI, `--with-ft ulfm`" if backend == "mpi" else backend
            head = f"| when | {' | '.join(FAULTS)} |\n|{' --- |' * (len(FAULTS) + 1)}\n"
            parts.append(f"## {title}\n\n{_layouts(backend, results)}\n\n{head}{chr(10).join(rows)}\n")
    if network:
        lines = [f"| {_what(it)} | {it.step} | {cell(sights)} |" for it, sights in network.items()]
        parts.append(NETWORK + "\n".join(lines) + "\n")
    parts.append(PLAIN_MPI)
    path.write_text("\n".join(parts))


def _what(it: Combination) -> str:
    return "the wire is cut" if it.fault == "cut" else f"kill -9 of the {it.role} (rank {it.victim})"


def _layouts(backend: str, results: Results) -> str:
    """Name the layouts of hosts and ranks that were run, and in each the roles of the rank at fault."""
    found = []
    for name, layout in LAYOUTS.items():
        roles = [
            role
            for role in layout.roles
            if any((r.backend, r.layout, r.role) == (backend, name, role) for r in results)
        ]
        if roles:
            found.append(f"{layout.title} (at fault: {', '.join(roles)})")
    return f"{'; '.join(found)}."


def _rows(backend: str, results: Results) -> Iterable[str]:
    for step in STEPS:
        cells = [
            summary([s for it, sights in results.items() if _is(it, backend, step, fault) for s in sights])
            for fault in FAULTS
        ]
        if any(cells):
            yield f"| {step} | {' | '.join(cells)} |"


def _is(it: Combination, backend: str, step: str, fault: str) -> bool:
    return (it.backend, it.step, it.fault) == (backend, step, fault)


def summary(sights: Sequence[Sight]) -> str:
    """Return what was seen in some combinations: `PeerLostError 5.4, 84`, an error with its median and longest time."""
    said = []
    for kind in sorted({sight.kind for sight in sights}):
        ms = sorted(sight.ms for sight in sights if sight.kind == kind)
        said.append(f"`{kind}` {_ms(ms[len(ms) // 2])}, {_ms(ms[-1])}")
    return "; ".join(said)


def _ms(ms: float) -> str:
    return f"{ms:.1f}" if ms < 10 else f"{ms:.0f}"


def cell(sights: Sequence[Sight]) -> str:
    """Return what the others saw, in rank order: `PeerLostError 1.2, 3.4; ClosedError 5`."""
    said: list[str] = []
    for index, sight in enumerate(sights):
        if index and sights[index - 1].kind == sight.kind:
            said[-1] += f", {_ms(sight.ms)}"
        else:
            said.append(f"`{sight.kind}` {_ms(sight.ms)}")
    return "; ".join(said)
