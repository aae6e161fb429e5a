"""The part of the matrix that needs a network: two hosts in namespaces, of two ranks each, over torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

from tests.faults.matrix import start
from tests.faults.matrix.combinations import Combination
from tests.faults.matrix.start import Seen, Then, Zygote
from tests.namespaces import End, two_hosts

ROLES = {"root": 0, "leader": 2, "behind the leader": 3}

#: (who, at which step, what). "cut" takes the wire away and brings it back when all ranks have seen that.
CASES = [
    Combination("torch", "two", role, step, "kill") for role in ROLES for step in ("transit", "agreeing", "held")
] + [Combination("torch", "two", "wire", step, "cut") for step in ("transit", "held")]


class Network:
    """Two hosts with a process each that forks ranks."""

    def __init__(self, ends: list[End]) -> None:
        self.ends = ends
        self._zygotes = [
            Zygote("torch.distributed", within=end.within, GLOO_SOCKET_IFNAME=end.interface) for end in ends
        ]
        for zygote in self._zygotes:  # no host's ranks wait for another host's process that still imports torch
            zygote.codes()

    def run(self, it: Combination, *, patience: int = 1) -> Seen:
        cut = it.fault == "cut"
        with start.folder_for({**it.spec(), "patience": patience}) as folder:
            pids = [pid for host, zygote in enumerate(self._zygotes) for pid in zygote.fork(folder, self._ranks(host))]
            if cut:
                self._cut(it, folder)
            start.watch(folder, pids, Then(range(4), lambda: self._restore(folder)) if cut else None)
            codes = [code for zygote in self._zygotes for code in zygote.codes()]
            seen = start.collect(folder, it.size, dict(enumerate(codes)))
            if cut:
                seen.said[it.victim] = [{"event": "fault", "at_s": float((folder / "cut").read_text())}]
            return seen

    @staticmethod
    def _ranks(host: int) -> list[int]:
        return [2 * host, 2 * host + 1]

    def _cut(self, it: Combination, folder: Path) -> None:
        """Take the wire away when the ranks have come as far as the step says."""
        awaited = ["reached"] if it.step == "transit" else [f"holds.{rank}" for rank in range(4)]
        until_s = time.monotonic() + start.LIMIT_S
        while not all((folder / name).exists() for name in awaited) and time.monotonic() < until_s:
            time.sleep(0.001)
        self.ends[0].set_link("down")
        (folder / "cut").write_text(repr(time.monotonic()))
        (folder / "struck").touch()

    def _restore(self, folder: Path) -> None:
        self.ends[0].set_link("up")
        (folder / "thawed").touch()

    def close(self) -> None:
        for zygote in self._zygotes:
            zygote.close()


@contextlib.contextmanager
def network() -> Iterator[Network]:
    with two_hosts() as ends:
        net = Network(ends)
        try:
            yield net
        finally:
            net.close()
