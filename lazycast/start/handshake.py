"""How the ranks of one object make sure, at construction, that they mean the same thing.

Every rank takes part with whatever it has, its own error included: a rank that raised before it had told the others
would leave them waiting. All of them then come to the same conclusion from the same table.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence

import msgspec

from lazycast import clock_id
from lazycast.codec import script
from lazycast.errors import ConfigMismatchError
from lazycast.materialize import cores
from lazycast.materialize.cores import Cores
from lazycast.net.wire import WIRE_VERSION, clean
from lazycast.options import shown
from lazycast.version import __version__


class Hello(msgspec.Struct, frozen=True):
    """What one rank says about itself."""

    rank: int
    host: str
    pid: int
    version: str
    wire: int
    options: dict[str, str]
    cores: Cores
    error: str | None = None
    clock: str = ""  # of `clock_id.ident`
    ident: str = ""  # of one construction; the object has its root's
    program: str = ""  # of `script.ident`

    def __post_init__(self) -> None:
        clean(self)


def hello(rank: int, options: dict[str, object], error: Exception | None) -> Hello:
    """Describe this process."""
    said = {name: shown(value) for name, value in options.items()}
    text = f"{type(error).__name__}: {shown(error, str, 2000)}" if error is not None else None
    mine = cores.of_this_process()
    return Hello(
        rank,
        socket.gethostname(),
        os.getpid(),
        __version__,
        WIRE_VERSION,
        said,
        mine,
        text,
        clock=clock_id.ident(),
        ident=secrets.token_hex(8),
        program=script.ident(),
    )


def encode(mine: Hello) -> bytes:
    """Return what to exchange."""
    return msgspec.json.encode(mine)


def decode(blob: bytes, rank: int) -> Hello:
    """Read what a rank exchanged; other versions of lazycast may say more or less than we know."""
    try:
        return msgspec.json.decode(blob, type=Hello)
    except msgspec.DecodeError as exc:
        raise ConfigMismatchError(f"rank {rank} runs another version of lazycast or something else: {exc}") from exc


def table(hellos: Sequence[Hello], columns: Sequence[str]) -> str:
    """Lay out who said what: one line a rank."""
    rows = [["rank", "host", "pid", "lazycast", *columns]]
    for h in hellos:
        rows.append([str(h.rank), h.host, str(h.pid), h.version, *(h.options.get(c, "-") for c in columns)])
        if h.error is not None:
            rows[-1].append(h.error)
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(4 + len(columns))]
    return "\n".join(
        "  " + "  ".join(cell.ljust(w) for cell, w in zip(row, [*widths, 0], strict=False)) for row in rows
    )


def disagreement(hellos: Sequence[Hello]) -> ConfigMismatchError | None:
    """Return the error that all ranks share, or None if they agree and nobody has an error of its own."""
    first = hellos[0]
    differing = [
        name
        for name in sorted({name for h in hellos for name in h.options})
        if len({h.options.get(name) for h in hellos}) > 1
    ]
    if any(h.wire != first.wire for h in hellos):
        return ConfigMismatchError(
            f"ranks speak different wire versions ({sorted({h.wire for h in hellos})}); install one version of "
            f"lazycast everywhere:\n{table(hellos, [])}"
        )
    failed = [h.rank for h in hellos if h.error is not None]
    if failed:
        columns = differing or ["root", "placement"]
        return ConfigMismatchError(
            f"construction failed on rank {', '.join(map(str, failed))}, so on every rank:\n{table(hellos, columns)}"
        )
    if not differing:
        return None
    hint = " (objects must be constructed in the same order on every rank)" if "name" in differing else ""
    return ConfigMismatchError(
        f"ranks disagree on {', '.join(differing)}{hint}; give the same on every rank:\n{table(hellos, differing)}"
    )
