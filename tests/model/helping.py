"""What is cast where helpers make the values, drawn from a seed alone: each rank knows the plan without a word.

A world is one object and some bursts of casts. Payloads come from a small pool, some far more often than others, so
that with a memo many casts, and items of casts, have again what was made before; others fail, cannot be encoded, or
kill their helper.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from lazycast import Each

Materializer = Callable[[Any], Any]
_POOL = 24
_BURST = 60
_BURSTS = (3, 8)
_LARGEST = 19  # the logarithm of the largest payload's bytes

#: How a cast is to end, and how many of a thousand do. "once" kills the first helper that takes it, "always" each: few,
#: since a new interpreter takes as long as hundreds of casts.
KINDS: Final = {"value": 920, "fail": 50, "unencodable": 20, "once": 7, "always": 3}


class Planned(RuntimeError):
    """What a materializer raises because the plan says so."""


@dataclass(frozen=True)
class Cast:
    """One cast: `of` names payloads in the pool, `words` says how large they are. Those of a `listed` one are items."""

    number: int
    of: tuple[int, ...]
    words: tuple[int, ...]
    listed: bool
    kind: str
    priority: int
    discarded_by: int | None
    cancelled: bool
    captured: bool

    @property
    def plain(self) -> bool:
        """Whether nothing but a random death can come between it and its value."""
        return self.kind == "value" and not self.cancelled


@dataclass(frozen=True)
class World:
    """See the module's text. `memo_nbytes`: what each rank may remember; None: nothing."""

    seed: str
    root: int
    helpers: int
    memo_nbytes: int | None
    values: str
    bursts: tuple[tuple[Cast, ...], ...]

    @property
    def casts(self) -> int:
        return sum(map(len, self.bursts))


def worlds(seed: str, ranks: int, casts: int) -> Iterator[World]:
    """Yield worlds until they have so many casts. A seed "17/3" is the fourth world of seed 17, alone."""
    if "/" in seed:
        yield _world(seed, ranks, casts)
        return
    made = number = 0
    while made < casts:
        world = _world(f"{seed}/{number}", ranks, casts - made)
        made, number = made + world.casts, number + 1
        yield world


def _world(seed: str, ranks: int, most: int) -> World:
    rng = random.Random(f"{seed}/{ranks}")
    sizes = [max(1, int(2 ** rng.uniform(0, _LARGEST)) // 8) for _ in range(_POOL)]
    drawn = [[_cast(rng, ranks, sizes) for _ in range(rng.randint(1, _BURST))] for _ in range(rng.randint(*_BURSTS))]
    casts = iter(range(sum(map(len, drawn))))
    bursts = tuple(tuple(Cast(next(casts), *about) for about in burst) for burst in drawn)
    memo = rng.choice((None, 64 << 10, 1 << 20, 64 << 20))
    return World(
        seed, rng.randrange(ranks), rng.randint(1, 3), memo, rng.choice(("private", "readonly", "copy")), bursts
    )


def _cast(rng: random.Random, ranks: int, sizes: list[int]) -> tuple[Any, ...]:
    listed = rng.random() < 0.25
    many = rng.choice((1, 2, 3, 9)) if listed else 1
    of = tuple(min(int(rng.paretovariate(0.7)), _POOL) - 1 for _ in range(many))
    words = tuple(sizes[one] for one in of)
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    discarded_by = rng.randrange(ranks) if rng.random() < 0.04 else None
    return of, words, listed, kind, rng.choice((0, 0, 5)), discarded_by, rng.random() < 0.04, rng.random() < 0.3


def payload(world: World, cast: Cast, folder: Path) -> Any:
    """Make what the root passes; each call makes another object. Of a list the last item is of the cast's kind."""
    contents: list[dict[str, Any]] = [
        {"of": of, "data": np.full(words, of + 1, np.int64), "kind": "value"}
        for of, words in zip(cast.of, cast.words, strict=True)
    ]
    contents[-1]["kind"] = cast.kind
    if cast.kind in ("once", "always"):
        contents[-1] |= {
            "mark": str(folder / f"{world.seed.replace('/', '-')}.{cast.number}"),
            "kills": str(folder / "kills"),
        }
    return contents if cast.listed else contents[0]


def materializer(cast: Cast, make: Materializer) -> Materializer | None:
    """Return what makes the value of a cast, as a name or as code; None: what makes most of them."""
    fn = (lambda payload, of=make: of(payload)) if cast.captured else make  # type: ignore[misc]
    return Each(fn) if cast.listed else (fn if cast.captured else None)


def make(payload: dict[str, Any]) -> dict[str, Any]:
    """The materializer: twice the data, and who has made it. It may write to its payload."""
    if payload["kind"] == "fail":
        raise Planned(f"as planned: {payload['of']}")
    if payload["kind"] == "unencodable":
        return {"of": payload["of"], "data": (number for number in range(3))}
    if payload["kind"] in ("once", "always"):
        _die(payload)
    payload["data"] *= 2
    return {"of": payload["of"], "data": payload["data"], "by": os.getpid()}


def make_plain(payload: dict[str, Any]) -> dict[str, Any]:
    """The same for payloads that are not to be written to."""
    return make({**payload, "data": payload["data"].copy()})


def _die(payload: dict[str, Any]) -> None:
    mark = Path(payload["mark"])
    if payload["kind"] == "always" or not mark.exists():
        mark.touch()
        killing(Path(payload["kills"]), os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)


def killing(kills: Path, pid: int) -> None:
    """Note, before it is done, that a process is killed."""
    with kills.open("a") as file:
        file.write(f"{pid}\n")


def parts(cast: Cast, value: Any) -> list[Any]:
    """Return the results in a value."""
    return list(value) if cast.listed else [value]


def wrong(cast: Cast, value: Any) -> str | None:
    """Say what is wrong with a value, or None."""
    results = parts(cast, value)
    if len(results) != len(cast.of):
        return f"{len(results)} results in place of {len(cast.of)}"
    for of, words, result in zip(cast.of, cast.words, results, strict=True):
        wanted = np.full(words, 2 * (of + 1), np.int64)
        if list(result) != ["of", "data", "by"] or result["of"] != of or not np.array_equal(result["data"], wanted):
            return f"{result!r:.300} in place of {words} times {2 * (of + 1)}"
    return None
