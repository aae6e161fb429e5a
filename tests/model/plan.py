"""What every rank does, drawn from a seed alone: each rank knows the plan of all without a word from the others.

A plan is some worlds, one after the other. A world is some objects that live at the same time, on all ranks and on
sub-groups, and some bursts; where every rank is a root, an object stands for one thing for each. In a burst a rank
makes its calls on all these objects, mixed in an order of its own; at its end all futures are settled. Keys are few, so
they are used again and again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from lazycast.options import PLACEMENTS

#: Of other types and the same text, so that they must not be taken for one another.
KEYS: Final = ("a", b"a", "7", 7, -1)
#: How a cast ends if nobody does anything to it.
KINDS: Final = ("value", "fail", "unencodable", "missing")
#: How a rank asks: it waits in the call; it collects the future at the end of the burst; it gives up, at once or, for
#: odd numbers, at the end of the burst; or it takes what has come, whatever that is.
BLOCK, COLLECT, CANCEL, DISCARD, TAKE = "block", "collect", "cancel", "discard", "take"
#: More than the casts of a burst on one object: back-pressure is not what this is about, and it could hold up ranks
#: that wait for each other in different objects.
_MAX_INFLIGHT = 64
_BURST = 24
_THREADS = 3

Key = str | int | bytes


@dataclass(frozen=True)
class Cast:
    """One cast. `asks` says what each rank of the group does about it, by its rank in the group."""

    number: int
    key: Key | None
    kind: str
    materializer: str | None
    nbytes: int
    priority: int
    asks: tuple[str, ...]


@dataclass(frozen=True)
class Thing:
    """The casts of one root of a `LazyBroadcast`. `members` are ranks of the job in order; `root` counts within them.

    `name` is the thing's own, `of` that of the object.
    """

    name: str
    of: str
    members: tuple[int, ...]
    root: int
    options: dict[str, Any]

    @property
    def any_root(self) -> bool:
        """Whether the object's other ranks are roots too."""
        return self.options.get("roots") == "any"


@dataclass(frozen=True)
class Burst:
    """The casts of each thing, by its index. With `threads` each rank has several that ask.

    With `mixed` somebody takes what comes of all roots of an object, whichever is first.
    """

    number: int
    threads: bool
    casts: tuple[tuple[Cast, ...], ...]
    mixed: bool = False

    @property
    def taken(self) -> bool:
        """Whether somebody takes what comes, whatever it is: then nobody casts for the next burst before that is done.

        A cast that its root has given up may go out after later ones with other keys.
        """
        return any(TAKE in cast.asks for casts in self.casts for cast in casts)


@dataclass(frozen=True)
class World:
    """See the module's text. `seed` draws it again."""

    seed: str
    interrupts: bool
    things: tuple[Thing, ...]
    bursts: tuple[Burst, ...]

    @property
    def casts(self) -> int:
        return sum(len(casts) for burst in self.bursts for casts in burst.casts)


@dataclass
class _Count:
    """Casts that are made, by object."""

    of: list[int] = field(default_factory=list)


def worlds(seed: str, ranks: int, casts: int, *, interrupts: bool) -> Iterator[World]:
    """Yield worlds until they have so many casts. A seed "17/3" is the fourth world of seed 17, alone."""
    _, _, only = seed.partition("/")
    if only:
        yield _world(seed, ranks, interrupts)
        return
    made = number = 0
    while made < casts:
        world = _world(f"{seed}/{number}", ranks, interrupts)
        made, number = made + world.casts, number + 1
        yield world


def _world(seed: str, ranks: int, interrupts: bool) -> World:
    rng = random.Random(f"{seed}/{ranks}")
    everybody = tuple(range(ranks))
    groups = [everybody] + [tuple(sorted(rng.sample(everybody, rng.randint(1, ranks - 1)))) for _ in range(2)]
    things = tuple(thing for number, members in enumerate(groups) for thing in _object(rng, f"{number}", members))
    count = _Count([0] * len(things))
    bursts = tuple(_burst(rng, number, things, count) for number in range(rng.randint(4, 8)))
    return World(seed, interrupts, things, bursts)


def _object(rng: random.Random, name: str, members: tuple[int, ...]) -> list[Thing]:
    options: dict[str, Any] = {
        "placement": rng.choice((*PLACEMENTS, "auto")),
        "agree": rng.random() < 0.7,
        "values": rng.choice(("private", "private", "readonly", "copy")),
        "shared_memory": "auto" if rng.random() < 0.8 else False,
        "max_inflight": _MAX_INFLIGHT,
    }
    if options["placement"] in ("shard", "auto") and rng.random() < 0.3:
        options["owners"] = sorted(rng.sample(range(len(members)), rng.randint(1, len(members))))
    if len(members) > 1 and rng.random() < 0.4:
        options["roots"] = "any"
        return [Thing(f"{name}.{root}", name, members, root, options) for root in range(len(members))]
    root = rng.randrange(len(members))
    return [Thing(name, name, members, root, {**options, "root": root})]


def _burst(rng: random.Random, number: int, things: tuple[Thing, ...], count: _Count) -> Burst:
    # A rank that waits in a call waits for this object's root, which must not wait for it elsewhere at the same time.
    waits, taking = rng.randrange(len(things)), rng.random() < 0.4
    # Of several roots one rank alone takes what comes, and nobody else waits for anything meanwhile.
    mixed = taking and things[waits].any_root and rng.random() < 0.5
    alone = rng.randrange(len(things[waits].members))
    casts = []
    for index, thing in enumerate(things):
        mine = []
        # Who takes all that comes waits for this object's root, as in a call.
        takers = {rank for rank in range(len(thing.members)) if rank != thing.root and rng.random() < 0.5}
        takers = takers if index == waits and taking else set()
        if mixed:
            takers = {alone} if thing.of == things[waits].of and thing.root != alone else set()
        most = _BURST // len(thing.members) if thing.any_root else _BURST
        for _ in range(rng.randint(0, most)):
            mine.append(_cast(rng, count.of[index], thing, takers, blocking=index == waits and not mixed))
            count.of[index] += 1
        casts.append(tuple(mine))
    return Burst(number, rng.random() < 0.3, tuple(casts), mixed)


def _cast(rng: random.Random, number: int, thing: Thing, takers: set[int], *, blocking: bool) -> Cast:
    key = rng.choice(KEYS) if rng.random() < 0.75 else None
    kind = rng.choice(KINDS) if rng.random() < 0.12 else "value"
    if kind == "unencodable" and len(thing.members) == 1:
        kind = "value"  # a group of one pickles nothing
    materializer = "fail" if kind == "fail" else rng.choice((None, "double", "code", "staged"))
    asks = []
    for rank in range(len(thing.members)):
        draw = rng.random()
        if rank in takers:
            asks.append(TAKE)
        elif draw < 0.06 and key is not None and rank != thing.root:
            asks.append(DISCARD)
        elif draw < 0.12:
            asks.append(CANCEL)
        else:
            asks.append(BLOCK if blocking and draw < 0.6 else COLLECT)
    nbytes = int(2 ** rng.uniform(0, 18))
    return Cast(number, key, kind, materializer, nbytes, rng.choice((0, 0, -1, 7)), tuple(asks))


def order(world: World, burst: Burst, rank: int) -> list[list[tuple[int, Cast]]]:
    """Return what each thread of a rank asks for, in its order: (the object's index, the cast). The main one is first.

    Calls of one object and key keep the order they have in the plan, on every rank; so do those without one, which one
    thread makes. All others are mixed in an order of this rank's own.
    """
    rng = random.Random(f"{world.seed}/{burst.number}/{rank}")
    lines: dict[tuple[int, Key | None], list[tuple[int, Cast]]] = {}
    for index, casts in enumerate(burst.casts):
        if rank in world.things[index].members:
            for cast in casts:
                lines.setdefault((index, cast.key), []).append((index, cast))
    parts: list[list[list[tuple[int, Cast]]]] = [[] for _ in range(_THREADS if burst.threads else 1)]
    for (_, key), line in lines.items():
        parts[0 if key is None else rng.randrange(len(parts))].append(line)
    return [_mixed(rng, part) for part in parts]


def _mixed(rng: random.Random, lines: list[list[tuple[int, Cast]]]) -> list[tuple[int, Cast]]:
    turns = [n for n, line in enumerate(lines) for _ in line]
    rng.shuffle(turns)
    iterators = [iter(line) for line in lines]
    return [next(iterators[n]) for n in turns]
