"""Ranks over torch on hosts of their own, one of which meets with something while they connect.

Run as `python connecting.py SCENARIO torch`. See `scenarios` for how ranks are told who they are, and say what has
happened.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any

from scenarios import RANK, VICTIM, backend, outcome, say

from lazycast import LazyBroadcast
from lazycast.backends import _torch_addresses
from lazycast.backends._torch_dialling import Dialling
from tests.faults.matrix import resources


def dies_at(step: str, after: bool) -> None:
    """Have this process killed before or after one step of its `Dialling`."""
    real: Callable[..., Any] = getattr(Dialling, step)

    def killed(*args: Any) -> Any:
        if after:
            real(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(Dialling, step, killed)


def moves_away() -> None:
    """This rank says that it listens where nobody does."""
    real = Dialling._listen

    def listen(self: Dialling, store_host: str | None) -> None:
        real(self, store_host)
        with socket.create_server(("127.0.0.1", 0)) as closed:
            self.card.addresses[:] = [closed.getsockname()]

    Dialling._listen = listen  # type: ignore[method-assign]


def is_nowhere() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "no-such0"


def has_no_gloo() -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "no-such0,lo"


def lacks_descriptors() -> None:
    def refuse(*_: object) -> list[str]:
        raise OSError(24, "Too many open files")

    _torch_addresses.candidates = refuse


def lacks_both() -> None:
    has_no_gloo()
    lacks_descriptors()


SCENARIOS: dict[str, Callable[[], None]] = {
    **{
        f"{step}-{moment}": lambda step=step, moment=moment: dies_at(step, moment == "after")
        for step in ("__init__", "call", "finish")
        for moment in ("before", "after")
    },
    **{fn.__name__: fn for fn in (moves_away, is_nowhere, has_no_gloo, lacks_descriptors, lacks_both)},
}


def main() -> None:
    os.environ["LAZYCAST_HOST"] = str(RANK)
    engine = backend(sys.argv[2])
    before = resources.held()
    if RANK == VICTIM:
        SCENARIOS[sys.argv[1]]()
    made: list[LazyBroadcast[Any, Any]] = []

    def construct() -> None:
        made.append(LazyBroadcast(backend=engine, timeout_s=30))

    outcome(construct)
    for lazy in made:
        outcome(lambda lazy=lazy: lazy.broadcast("x" if lazy.is_root else None, timeout_s=30))
        say("kind", link=lazy._lane.near.relay._link.kind)
        lazy.close(timeout_s=20)
    made.clear()
    say("left", more=resources.settled(before))
    say("done")


if __name__ == "__main__":
    main()
