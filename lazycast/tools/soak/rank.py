"""One process of a job: joins its group, runs the rounds, counts what is left after each, and leaves as planned."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path

from lazycast.api import LazyBroadcast
from lazycast.net.backend import Backend, Context
from lazycast.start.discovery import resolve
from lazycast.start.launch_worker import group, tie
from lazycast.tools.soak import census, materializers, payloads, plan
from lazycast.tools.soak.diary import Diary, Orders
from lazycast.tools.soak.judging import Hang
from lazycast.tools.soak.plan import RoundPlan
from lazycast.tools.soak.rounds import Round

#: By how much memory may grow over the rounds of a job: what an allocator keeps in small pieces is no leak.
_MEMORY_NBYTES = 40 << 20


_left: list[contextlib.ExitStack] = []


class Meeting:
    """Where the ranks of a job wait for each other, apart from the objects that are tried."""

    def __init__(self, backend: Backend, limit_s: float) -> None:
        self._context: Context = backend.open(timeout_s=limit_s)
        self._limit_s = limit_s
        self._count = 0

    def meet(self) -> None:
        """Wait until all ranks are here."""
        self._count += 1
        blobs = self._context.exchange(str(self._count).encode(), timeout_s=self._limit_s)
        if set(blobs) != {str(self._count).encode()}:
            raise RuntimeError(f"the ranks meet at different places: {blobs}")

    def close(self) -> None:
        self._context.close()


class Member:
    """This process as a rank of a job."""

    def __init__(self, orders: Orders, backend: Backend, diary: Diary) -> None:
        self._orders, self._backend, self._diary = orders, backend, diary
        self._plan = plan.job(orders.seed, orders.job, orders.backend, orders.ranks)
        self._meeting = Meeting(backend, 2 * orders.limit_s)
        self._planted: list[object] = []

    @property
    def leaves(self) -> bool:
        """Whether the interpreter is to exit with everything open."""
        return self._plan.rounds[-1].ending == "leave"

    @property
    def bereaved(self) -> bool:
        """Whether a rank has died."""
        return self._plan.rounds[-1].ending == "death"

    def run(self) -> None:
        """Run the rounds. Raises Hang."""
        self._warm_up()
        before = census.take()
        for about in self._plan.rounds:
            last = about.ending in ("death", "leave")
            if last:
                self._meeting.meet()
                self._meeting.close()
            self._round(about)
            if about.ending == "leave":
                return
            self._plant()
            if not last:
                self._meeting.meet()  # others may still answer farewells, or hold what this rank has shared
            for found in census.left(before, memory_nbytes=_MEMORY_NBYTES):
                self._diary.leak(f"rank {self._backend.rank}, after round {about.number}", found)
        if not self.bereaved:
            self._meeting.close()

    def _round(self, about: RoundPlan) -> None:
        round_ = Round(self._orders, about, self._backend, self._diary, self._meeting.meet)
        try:
            round_.run()
        finally:
            casts, injected, endings = round_.casts, dict(round_.injected), dict(round_.endings)
            self._diary.write("round", round=about.number, casts=casts, injected=injected, endings=endings)

    def _warm_up(self) -> None:
        """What libraries make once and keep is no leak."""
        for placement in ("every", "shard"):
            with LazyBroadcast(materializers.grow, backend=self._backend, name="warm", placement=placement) as lazy:
                lazy.broadcast(b"warm", timeout_s=2 * self._orders.limit_s)
                self._meeting.meet()
        for kind in payloads.kinds(self._orders.backend, "pickle"):
            payloads.digest(payloads.make(kind, 10_000, 1))

    def _plant(self) -> None:
        if self._orders.plant == "leak" and self._backend.rank == self._backend.size - 1 and not self._planted:
            gate = threading.Event()
            threading.Thread(target=gate.wait, name="planted", daemon=True).start()
            self._planted += [gate, os.memfd_create("lazycast")]


@contextlib.contextmanager
def _stacks(folder: Path, rank: int) -> Iterator[None]:
    """Write the stacks of all threads to a file when told to by SIGUSR1."""
    with (folder / f"stacks.{rank}").open("w") as file:
        faulthandler.register(signal.SIGUSR1, file, all_threads=True)
        yield


def main() -> None:
    """Run as `main` of a process whose arguments are the job's folder and the backend's name."""
    tie()
    folder, name = Path(sys.argv[1]), sys.argv[2]
    orders = Orders.read(folder)
    with contextlib.ExitStack() as stack:
        mine = group(name, folder)
        rank = stack.enter_context(mine)
        stack.enter_context(_stacks(folder, rank))
        logging.basicConfig(filename=folder / f"log.{rank}", level=logging.WARNING)
        materializers.this_rank = rank
        materializers.register()
        diary = Diary(folder, rank)
        member = Member(orders, resolve("auto"), diary)
        try:
            member.run()
        except Hang:
            diary.write("done", how="hang")
            os._exit(3)
        except BaseException:
            diary.wrong(f"rank {rank}", f"it raised\n{traceback.format_exc()}")
            diary.write("done", how="raised")
            os._exit(4)
        diary.write("done", how="as planned")
        if member.bereaved and name == "mpi":
            os._exit(0)  # MPI_Finalize may wait for the dead
        if member.bereaved or member.leaves:
            _left.append(stack.pop_all())  # nobody is there to say goodbye to, or it is the exit itself that is tried
