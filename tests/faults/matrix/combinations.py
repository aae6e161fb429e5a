"""Which faults befall which rank at which step, on which backend: plain data, no processes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

#: What befalls the victim. "exit" is a SIGTERM whose handler raises SystemExit, so that the interpreter ends in order.
FAULTS = {
    "kill": "kill -9",
    "term": "SIGTERM, default action",
    "freeze": "SIGSTOP, later SIGCONT",
    "exit": "SIGTERM, handler raises SystemExit",
    "raise": "an exception leaves the `with` block",
    "close": "close()",
}
DEADLY, ORDERLY = ("kill", "term"), ("exit", "raise", "close")

STEPS = {
    "constructing": "the victim is half way through construction",
    "encoding": "the root's payload, or the owner's value, is being pickled",
    "transit": "96 MiB have begun to arrive on the other host",
    "materializing": "the victim's materializer is at work",
    "agreeing": "the victim has reported, another rank has not",
    "held": "all hold a value of 1 MiB and nothing is under way but asks",
    "closing": "the victim is in close(), which waits for a pending call",
}


@dataclass(frozen=True)
class Layout:
    """Ranks and the hosts they believe to be on (`LAZYCAST_HOST`); who plays which part."""

    title: str
    hosts: str  # a letter per rank
    roles: dict[str, int]

    @property
    def size(self) -> int:
        return len(self.hosts)


LAYOUTS = {
    "one": Layout("one host of four ranks", "aaaa", {"root": 0, "owner": 2, "plain": 3}),
    "two": Layout("two hosts of two ranks", "aabb", {"root": 0, "plain": 1, "leader": 2, "behind the leader": 3}),
    # The tree is three wide, so rank 1 passes on to rank 4.
    "five": Layout("five hosts of one rank", "abcde", {"relay": 1, "behind the relay": 4}),
}

#: How each backend is started; "mpi" is `mpirun --with-ft ulfm`, since plain `mpirun` ends the whole job.
BACKENDS = ("local", "torch", "mpi")


@dataclass(frozen=True)
class Combination:
    """One run."""

    backend: str
    layout: str
    role: str
    step: str
    fault: str

    @property
    def id(self) -> str:
        return "-".join((self.backend, self.layout, self.role, self.step, self.fault)).replace(" ", "_")

    @property
    def size(self) -> int:
        return LAYOUTS[self.layout].size

    @property
    def victim(self) -> int:
        """The rank that the fault befalls; -1 if it is none of them."""
        return LAYOUTS[self.layout].roles.get(self.role, -1)

    @property
    def survivors(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.victim]

    def spec(self) -> dict[str, Any]:
        """What the ranks are told."""
        layout = LAYOUTS[self.layout]
        return {**asdict(self), "victim": self.victim, "size": layout.size, "hosts": layout.hosts}


def applies(it: Combination) -> bool:
    """Whether a combination can exist, and says something that no other one says."""
    if it.step in ("closing", "constructing") and it.fault in ("close", "raise"):
        return False  # one cannot close what is being closed, or is not there
    if it.step == "transit" and it.layout == "one":
        return False  # on a host one packet brings the header and names the memory: there is nothing in between
    if it.layout == "one" and it.backend != "local" and it.step != "constructing":
        return False  # on a host all messages go through its own sockets, whatever connects it to others
    if it.layout == "five":  # what passing on to other hosts adds
        return it.fault in ("kill", "freeze") and it.step not in ("held", "closing")
    if it.backend == "mpi":
        # Started anew for each, at seconds apiece: the faults that MPI itself must take, where MPI carries something.
        return it.layout == "two" and it.fault in ("kill", "freeze", "close") and it.role in ("root", "leader")
    return True


def every() -> Iterator[Combination]:
    """All combinations, in the order of the page."""
    for backend in BACKENDS:
        for layout, plan in LAYOUTS.items():
            for role in plan.roles:
                for step in STEPS:
                    for fault in FAULTS:
                        it = Combination(backend, layout, role, step, fault)
                        if applies(it):
                            yield it


def few() -> Iterator[Combination]:
    """Of `some`, enough to meet each backend, layout, role, step and fault, and a death at each step."""
    left = [(it, {*asdict(it).items(), (it.step, str(it.fault in DEADLY))}) for it in some()]
    met: set[tuple[str, str]] = set()
    while True:
        it, facets = max(left, key=lambda pair: len(pair[1] - met))  # the first of those that add most
        if not facets - met:
            return
        met |= facets
        yield it


def some() -> Iterator[Combination]:
    """Enough to meet each fault, role, step and backend, and each pair of a fault and a step, at least once."""
    local = [it for it in every() if it.backend == "local"]
    turn = 0
    for step in STEPS:
        for fault in FAULTS:
            these = [it for it in local if (it.step, it.fault) == (step, fault)]
            if these:
                turn += 5  # so that the roles change
                yield these[turn % len(these)]
    for role, step, fault in (
        ("leader", "constructing", "kill"),
        ("root", "transit", "kill"),
        ("leader", "transit", "freeze"),
        ("leader", "agreeing", "close"),
        ("plain", "materializing", "term"),
    ):
        yield Combination("torch", "two", role, step, fault)
    yield Combination("torch", "five", "relay", "transit", "kill")
    for role, step, fault in (("leader", "transit", "kill"), ("root", "held", "kill"), ("leader", "held", "close")):
        yield Combination("mpi", "two", role, step, fault)
