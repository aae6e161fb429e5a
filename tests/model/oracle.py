"""How each call may end, given what the plan says and which calls were interrupted. Plain Python, no lazycast.

A value is compared with the model's on the rank that gets it: an ending that says "value" was the right one. What is
judged here is who may get which error, and that the ranks' endings of a cast go together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from .plan import CANCEL, DISCARD, Cast, Thing, World
from .rank import INTERRUPTED, Ending


def problems(world: World, endings: Sequence[Sequence[Ending]]) -> Iterator[str]:
    """Say what is wrong with the endings of a world, given by rank of the job."""
    seen: dict[tuple[int, int], dict[int, Ending]] = {}
    for rank, mine in enumerate(endings):
        for one in mine:
            member = world.things[one.thing].members.index(rank)
            seen.setdefault((one.thing, one.cast), {})[member] = one
    for burst in world.bursts:
        for index, casts in enumerate(burst.casts):
            for cast in casts:
                thing, ends = world.things[index], seen.get((index, cast.number), {})
                for text in _of_cast(world, thing, cast, ends):
                    shown = {rank: end.ending for rank, end in sorted(ends.items())}
                    yield f"world {world.seed}, burst {burst.number}, {thing}, {cast}: {text}; all of it: {shown}"


def _of_cast(world: World, thing: Thing, cast: Cast, ends: Mapping[int, Ending]) -> Iterator[str]:
    if set(ends) != set(range(len(thing.members))):
        yield f"only ranks {sorted(ends)} have said how it ended"
        return
    if not world.interrupts and any(end.ending == INTERRUPTED for end in ends.values()):
        yield "nobody has interrupted anything"
    for rank, end in ends.items():
        allowed = _allowed(thing, cast, rank, ends)
        if end.ending not in allowed:
            yield f"rank {rank} has {end.ending!r}, where {sorted(allowed)} is right"
    agreed = _agreed(thing)
    shared = {end.ending for end in ends.values() if end.ending == "value" or end.ending.startswith("MaterializeError")}
    if agreed and len(shared) > 1:
        yield "the ranks do not agree"


def _agreed(thing: Thing) -> bool:
    return bool(thing.options["agree"]) and thing.options["placement"] != "demand"


def _allowed(thing: Thing, cast: Cast, rank: int, ends: Mapping[int, Ending]) -> set[str]:
    """Return how a call may end on a rank, by its rank in the group."""
    mine, roots = ends[rank], ends[thing.root].ending
    allowed = {INTERRUPTED} if mine.ending == INTERRUPTED else set()
    if cast.asks[rank] == DISCARD:
        return allowed | {"discarded"}
    if mine.again:
        allowed.add(f"KeyInUseError:{rank}")
    if cast.asks[rank] == CANCEL:
        allowed.add("cancelled")
    if rank == thing.root or roots == INTERRUPTED:
        allowed |= _planned(thing, cast, rank, ends)
    if rank == thing.root:
        return allowed
    if roots == INTERRUPTED:  # before it was sent, or after it
        allowed |= {f"RemoteError:{thing.root}", "cancelled"}
    elif roots == "cancelled":  # without agreement a rank may have had it by then
        allowed.add("cancelled")
        if not _agreed(thing):
            allowed |= _planned(thing, cast, rank, ends)
    elif roots.startswith(("KeyInUseError", "TypeError", "EncodeError")):
        allowed.add(f"RemoteError:{thing.root}")
    else:
        allowed |= _planned(thing, cast, rank, ends)
    return allowed


def _planned(thing: Thing, cast: Cast, rank: int, ends: Mapping[int, Ending]) -> set[str]:
    """Return how it ends where nobody gives it up."""
    if cast.kind == "missing":
        return {"TypeError"} if rank == thing.root else {f"RemoteError:{thing.root}"}
    if cast.kind == "unencodable":
        return {f"EncodeError:{rank}"} if rank == thing.root else {f"RemoteError:{thing.root}"}
    if cast.kind == "fail":
        return {f"MaterializeError:{one}" for one in ends}  # whoever was first
    # An interrupt that comes in a materializer, which may run in the caller's thread, is that one's failure.
    hit = {one for one, end in ends.items() if end.ending == INTERRUPTED}
    return {"value"} | {f"MaterializeError:{one}" for one in hit}
