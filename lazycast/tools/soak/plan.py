"""What a job does: its rounds, their casts, the faults. All ranks, and who started them, draw it from the same seed.

Guarantees: the plan depends on nothing but the seed, the job's number, the backend and the number of ranks. When a
signal hits a rank is a matter of time: a job that is repeated makes the same casts, not the same races.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from lazycast.options import PLACEMENTS
from lazycast.tools.soak import payloads

#: What jobs there are, in the order they come in.
JOBS: Final = ("mixed", "death", "paused", "closing", "leaving", "long")

#: How a rank asks.
WAYS: Final = ("async", "blocking", "await", "threads")

#: Faults that any object can take. Of `late`, `time-out` and `cancel`, one rank is hit, of the others all or several.
FAULTS: Final = (
    "raise", "unencodable", "refused", "cancel", "cancel on root", "discard", "late", "time-out", "slow", "callback",
    "twice", "mismatch",
)  # fmt: skip


@dataclass(frozen=True)
class CastPlan:
    """One cast. `rank` is whom the fault hits; -1: all of them."""

    number: int
    seed: int
    key: str | int | bytes | None
    kind: str
    nbytes: int
    materializer: str | None
    fault: str | None = None
    rank: int = -1
    delay_s: float = 0.0
    kept: bool = False
    follows: int | None = None  # the cast with the same key, made just before


@dataclass(frozen=True)
class Burst:
    """Casts that a rank asks for at once, or one by one; then all of them have ended on this rank."""

    how: str  # one of WAYS
    casts: tuple[CastPlan, ...]
    quiet: bool = False  # afterwards all values are dropped, but for those kept, and what is held is counted


@dataclass(frozen=True)
class RoundPlan:
    """One object."""

    number: int
    seed: int
    options: dict[str, Any]
    executor: bool
    tight: bool  # the arena may be too small: casts may fail for lack of room
    bursts: tuple[Burst, ...]
    ending: str = "close"  # "close" | "close early" | "death" | "leave"
    rank: int = -1  # who closes early or dies

    @property
    def root(self) -> int:
        return int(self.options["root"])

    @property
    def keeps(self) -> bool:
        """Whether values are kept to the end, over many casts."""
        return sum(len(burst.casts) for burst in self.bursts) > 1000

    @property
    def shared(self) -> bool:
        """Whether the ranks share memory."""
        return bool(self.options["shared_memory"] == "auto")


@dataclass(frozen=True)
class Pause:
    """A rank that is stopped for a while. Counted from when all ranks have begun a round."""

    round: int
    after_s: float
    rank: int
    for_s: float


@dataclass(frozen=True)
class JobPlan:
    """One job."""

    seed: int
    number: int
    backend: str
    ranks: int
    kind: str
    rounds: tuple[RoundPlan, ...]
    pauses: tuple[Pause, ...] = ()
    kill_after_s: float = 0.0  # of a round that ends with a death, counted as the pauses are


@dataclass
class _Draft:
    """A round that is being planned."""

    rng: random.Random
    backend: str
    ranks: int
    options: dict[str, Any]
    most_nbytes: int
    gentle: bool = False  # only faults that a round with a death or an early end can take
    number: int = 0
    casts: list[CastPlan] = field(default_factory=list)


def job(seed: int, number: int, backend: str, ranks: int) -> JobPlan:
    """Return the plan of a job."""
    rng = random.Random(f"{seed}/{number}/{backend}/{ranks}")
    kind = JOBS[number % len(JOBS)]
    rounds: list[RoundPlan] = []

    def add(casts: int, ending: str = "close", **how: Any) -> None:
        rounds.append(_round(rng, len(rounds), backend, ranks, casts, ending, **how))

    if kind == "long":
        add(3000, small=True)
    elif kind == "death":
        add(60)
        add(60)
        add(4000, "death", gentle=True)
    elif kind == "closing":
        for _ in range(3):
            add(90, "close early", gentle=True)
            add(40)
    elif kind == "leaving":
        add(60)
        add(60)
        add(20, "leave", gentle=True)
    else:
        for _ in range(4):
            add(110)
    pauses = tuple(_pauses(rng, len(rounds), ranks)) if kind == "paused" else ()
    return JobPlan(
        seed, number, backend, ranks, kind, tuple(rounds), pauses, rng.choice((0.0, 0.3, 1.0)) * rng.random()
    )


def _pauses(rng: random.Random, rounds: int, ranks: int) -> Iterator[Pause]:
    for number in range(rounds):
        for _ in range(rng.randint(1, 3)):
            yield Pause(number, rng.uniform(0.0, 0.6), rng.randrange(ranks), rng.uniform(0.05, 0.8))


def _options(rng: random.Random, ranks: int, *, small: bool, tight: bool) -> dict[str, Any]:
    placement = rng.choice((*PLACEMENTS, "auto", "shard"))
    replicated = rng.random() < 0.15
    options: dict[str, Any] = {
        "root": rng.randrange(ranks),
        "placement": placement,
        "agree": rng.random() < 0.65,
        "values": rng.choice(("private", "private", "readonly", "copy")),
        "trust": rng.choice(("pickle", "pickle", "data")),
        "replicated": replicated,
        "shared_memory": False if rng.random() < 0.2 else "auto",
        "max_inflight": rng.choice((2, 5, 16, 64)),
        "max_inflight_nbytes": 1 << 20 if small else rng.choice((4 << 20, 64 << 20)),
        "arena_nbytes": 16 << 20 if small else (2 << 20) if tight else 1 << 30,
    }
    if placement in ("shard", "auto") and rng.random() < 0.3:
        options["owners"] = sorted(rng.sample(range(ranks), rng.randint(1, ranks)))
    return options


def _round(
    rng: random.Random,
    number: int,
    backend: str,
    ranks: int,
    casts: int,
    ending: str,
    *,
    gentle: bool = False,
    small: bool = False,
) -> RoundPlan:
    tight = not small and not gentle and rng.random() < 0.2
    options = _options(rng, ranks, small=small, tight=tight)
    if ending == "close early":  # who closes asks for a whole burst in its own order, which must not hold it up
        options.update(max_inflight=64, max_inflight_nbytes=1 << 30)
    most_nbytes = 128 << 10 if small else 3 << 20 if tight else 48 << 20
    draft = _Draft(rng, backend, ranks, options, most_nbytes, gentle)
    bursts = tuple(_bursts(draft, casts))
    return RoundPlan(
        number,
        rng.getrandbits(32),
        options,
        rng.random() < 0.3,
        tight,
        bursts,
        ending,
        rng.randrange(ranks) if ending in ("close early", "death") else -1,
    )


def _bursts(draft: _Draft, casts: int) -> Iterator[Burst]:
    rng = draft.rng
    since_quiet = 0
    while draft.number < casts:
        how = rng.choice((*WAYS, "async", "async"))
        most = 6 if how == "blocking" else 30
        wanted = min(rng.randint(1, most), casts - draft.number)
        budget_nbytes = max(draft.most_nbytes, 4 << 20)  # or a burst of giants would take all memory
        planned: list[CastPlan] = []
        while len(planned) < wanted:
            plan = _cast(draft, how, min(draft.most_nbytes, budget_nbytes))
            budget_nbytes = max(64, budget_nbytes - plan.nbytes)
            planned.append(plan)
            if plan.fault == "twice":
                planned.append(_second(draft, plan))
        since_quiet += len(planned)
        quiet = since_quiet >= 250 or draft.number >= casts
        since_quiet = 0 if quiet else since_quiet
        yield Burst(how, tuple(planned), quiet)


def _second(draft: _Draft, first: CastPlan) -> CastPlan:
    draft.number += 1
    rng, number = draft.rng, draft.number
    return CastPlan(number, rng.getrandbits(32), first.key, "text", 50, None, "twice", first.rank, follows=first.number)


def _key(rng: random.Random, number: int) -> str | int | bytes:
    return rng.choice((number, f"request-{number}", number.to_bytes(4, "big") * rng.choice((1, 50))))


def _cast(draft: _Draft, how: str, most_nbytes: int) -> CastPlan:
    rng, options = draft.rng, draft.options
    draft.number += 1
    keyed = how == "threads" or rng.random() < 0.75
    fault = rng.choice(FAULTS) if rng.random() < 0.22 else None
    if fault is not None and not _possible(fault, draft, how, keyed):
        fault = None
    materializer = _materializer(rng, options, fault)
    nbytes = payloads.size(rng, most_nbytes if fault in (None, "late", "callback") else min(most_nbytes, 100_000))
    return CastPlan(
        draft.number,
        rng.getrandbits(32),
        _key(rng, draft.number) if keyed else None,
        rng.choice(payloads.kinds(draft.backend, options["trust"])),
        nbytes,
        materializer,
        fault,
        _victim(rng, fault, draft),
        rng.uniform(0.05, 0.25)
        if fault in ("time-out", "slow")
        else rng.uniform(0.0, 0.15)
        if fault == "late"
        else 0.0,
        kept=fault is None and nbytes <= 1 << 20 and materializer != "opaque" and rng.random() < 0.05,
    )


def _possible(fault: str, draft: _Draft, how: str, keyed: bool) -> bool:
    options = draft.options
    if draft.gentle and fault not in ("raise", "late", "refused", "unencodable", "callback"):
        return False
    if fault == "mismatch":
        return bool(options["replicated"])
    if fault == "unencodable":
        return not options["replicated"]  # then nothing is encoded
    if fault == "twice":
        return keyed and how == "async"
    if fault == "discard":
        return keyed
    if fault in ("cancel", "cancel on root", "callback"):
        return how != "blocking"
    return True


def _victim(rng: random.Random, fault: str | None, draft: _Draft) -> int:
    root = draft.options["root"]
    if fault in ("cancel", "discard", "mismatch"):
        return rng.choice([rank for rank in range(draft.ranks) if rank != root])
    if fault in ("late", "time-out"):
        return rng.randrange(draft.ranks)
    if fault == "raise":
        return -1 if rng.random() < 0.5 else rng.randrange(draft.ranks)
    return -1


def _materializer(rng: random.Random, options: dict[str, Any], fault: str | None) -> str | None:
    if fault == "raise":
        return "fail"
    if fault == "slow":
        return "pause"
    if fault in ("unencodable", "refused"):
        return None
    names = [None, None, "summarize", "wrap", "grow", "change", "staged"]
    if options["trust"] == "pickle":
        names.append("code")
    if options["placement"] != "root":
        names.append("opaque")
    return rng.choice(names)
