"""What the pages say about values, placements, trust and figures."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lazycast
from lazycast import (
    Each,
    EncodeError,
    LazyBroadcast,
    Memo,
    PayloadMismatchError,
    Shard,
    Staged,
    TrustError,
    launch,
    register_materializer,
)
from lazycast.watch.timing import Tally

from .claims import Check, Claims, caught, judge, ranks, rooted

claim = Claims()
GUARANTEES, CONCEPTS, PLACEMENTS = "docs/guarantees.md", "docs/concepts.md", "docs/placements.md"
LARGE = 100_000  # bytes: more than what is copied in any case


@claim(GUARANTEES, "A value is its rank's own: what one rank writes, no other sees.")
def own_values() -> None:
    def body(lazy: Any) -> Any:
        value = lazy.broadcast(rooted(lazy, np.zeros(LARGE)))
        value[:] = lazy.rank
        lazy.broadcast(rooted(lazy, None))
        return value.min(), value.max()

    assert ranks(body, placement="shard") == [(n, n) for n in range(3)]


@claim(GUARANTEES, "Writable arrays arrive writable, read-only ones read-only.")
def writable_or_not() -> None:
    def body(lazy: Any) -> Any:
        both = [np.zeros(LARGE), np.zeros(LARGE)]
        both[1].flags.writeable = False
        return [array.flags.writeable for array in lazy.broadcast(rooted(lazy, both))]

    assert ranks(body) == [[True, False]] * 3


@claim(CONCEPTS, '`values="readonly"` gives arrays that refuse writes.')
def readonly() -> None:
    def body(lazy: Any) -> Any:
        return lazy.broadcast(rooted(lazy, np.zeros(LARGE))).flags.writeable

    assert ranks(body, values="readonly")[1:] == [False, False]


@claim(GUARANTEES, "A value outlives `close()`, the object and the cast.")
def outlives() -> None:
    values = ranks(lambda lazy: lazy.broadcast(rooted(lazy, np.arange(LARGE))))
    assert all(value.sum() == sum(range(LARGE)) for value in values)


@claim(GUARANTEES, "A payload is left as it was: a cast locks nothing of it against resizing")
def left_as_it_was() -> None:
    def body(lazy: Any) -> Any:
        payload = bytearray(LARGE)
        lazy.broadcast(rooted(lazy, payload))
        payload += b"more"
        return len(payload)

    assert ranks(body)[0] == LARGE + 4


@claim(GUARANTEES, "Shared memory has no name")
def no_name() -> None:
    def body(lazy: Any) -> Any:
        value = lazy.broadcast(rooted(lazy, np.zeros(LARGE)))
        mapped = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:lazycast" in line]
        return value.size, bool(mapped), all(line.endswith("(deleted)") for line in mapped)

    assert ranks(body) == [(LARGE, True, True)] * 3


@claim(CONCEPTS, "A group of one pickles nothing.")
def alone() -> None:
    payload = threading.Lock()
    with LazyBroadcast() as lazy:
        assert lazy.broadcast(payload) is payload


@claim(CONCEPTS, "On the root, a materializer gets the payload itself; without one, the cast returns it.")
def payload_itself() -> None:
    def body(lazy: Any) -> Any:
        payload = {"a": 1}
        return lazy.broadcast(rooted(lazy, payload)) is payload

    assert ranks(body) == [True, False, False]


def clear(request: dict[str, int]) -> int:
    return request.pop("a")


@claim(CONCEPTS, "The root's own materializer starts after the payload has been encoded, so it may change its input.")
def may_change_its_input() -> None:
    assert ranks(lambda lazy: lazy.broadcast(rooted(lazy, {"a": 9})), clear, placement="every") == [9, 9, 9]


def counts(lazy: Any, casts: int = 6) -> int:
    for n in range(casts):
        lazy.broadcast(rooted(lazy, [n]))
    made: int = lazy.stats().materialize.count
    return made


@claim(PLACEMENTS, "**Owners take turns**, cast by cast.")
def turns() -> None:
    assert ranks(counts, sum, placement="shard") == [2, 2, 2]


@claim(PLACEMENTS, "leaves the work to some ranks.")
def some_owners() -> None:
    assert ranks(counts, sum, placement=Shard(owners={1, 2})) == [0, 3, 3]


@claim(PLACEMENTS, '| `"every"` | every rank, when the payload arrives, asked for or not |')
def every() -> None:
    assert ranks(counts, sum, placement="every") == [6, 6, 6]


@claim(PLACEMENTS, '| `"root"` | the root | the value |')
def root() -> None:
    assert ranks(counts, sum, placement="root") == [6, 0, 0]


@claim(PLACEMENTS, '| `"demand"` | a rank when it asks. No agreement | the payload |')
def demand() -> None:
    def body(lazy: Any) -> Any:
        if lazy.rank == 1:
            lazy.discard("k")
        else:
            lazy.broadcast(rooted(lazy, [1]), key="k")
        lazy.broadcast(rooted(lazy, [1]))
        return lazy.stats().materialize.count

    assert ranks(body, sum, placement="demand") == [2, 1, 2]


@claim(PLACEMENTS, '"auto"` calls it `"every"`.')
def nothing_to_place() -> None:
    def body(lazy: Any) -> Any:
        lazy.broadcast(rooted(lazy, 1))
        return lazy.stats().placement

    assert ranks(body)[0] == "every"


@claim(
    PLACEMENTS,
    "A value that cannot be shared** (a part does not pickle, or shared memory is full) is made by every rank",
)
def not_shared() -> None:
    def body(lazy: Any) -> Any:
        value = lazy.broadcast(rooted(lazy, 1))
        return type(value).__name__, lazy.stats().unshared > 0, lazy.stats().materialize.count

    said = ranks(body, lambda _: __import__("threading").Lock(), placement="shard")
    assert [name for name, _, _ in said] == ["lock"] * 3
    assert [made for _, _, made in said] == [1, 1, 1]
    assert any(counted for _, counted, _ in said)


@claim(PLACEMENTS, "`Staged(prepare, finish)` is itself a materializer: `finish(payload, prepare(payload))`.")
def staged() -> None:
    both = Staged(sum, lambda payload, hint: (payload, hint))
    assert both([1, 2]) == ([1, 2], 3)
    assert ranks(lambda lazy: lazy.broadcast(rooted(lazy, [1, 2])), both) == [([1, 2], 3)] * 3


@claim(PLACEMENTS, "The value is `join([fn(item) for item in split(payload)])`")
def each() -> None:
    own = Each(str.upper, split=str.split, join=" ".join)
    assert ranks(lambda lazy: lazy.broadcast(rooted(lazy, "a b c d")), own, placement="shard") == ["A B C D"] * 3


@claim(PLACEMENTS, "what was cast before with the same materializer is not sent or made again: every rank has it.")
def remembered() -> None:
    def body(lazy: Any) -> Any:
        for _ in range(4):
            lazy.broadcast(rooted(lazy, "same"))
        return lazy.stats().memo_hits, lazy.stats().materialize.count

    said = ranks(body, str.upper, memo=Memo(1 << 20), placement="shard")
    assert [hits for hits, _ in said] == [3, 3, 3]
    assert sum(made for _, made in said) == 1


@claim(
    PLACEMENTS, 'It needs `agree=True`, payloads that are sent (not `replicated`), and a placement other than `"root"`'
)
def memo_needs() -> None:
    wrong: list[dict[str, Any]] = [
        {"agree": False},
        {"replicated": True},
        {"placement": "root"},
        {"placement": "demand"},
    ]
    for options in wrong:
        assert isinstance(caught(lambda options=options: LazyBroadcast(memo=Memo(1 << 20), **options)), ValueError)


@claim(PLACEMENTS, "or is missing, fails the cast with `PayloadMismatchError`: on every rank with `agree`")
def mismatch() -> None:
    def body(lazy: Any) -> Any:
        failed = caught(lambda: lazy.broadcast([1, 2 + (lazy.rank == 2)]))
        return type(failed), getattr(failed, "rank", None), lazy.broadcast("same")

    assert ranks(body, replicated=True, placement="every") == [(PayloadMismatchError, 2, "same")] * 3


class Own:
    """No plain data."""


@claim(GUARANTEES, 'With `trust="data"`, nothing that arrives is unpickled, imported or run.')
def plain_data() -> None:
    register_materializer("claims.total", sum)

    def body(lazy: Any) -> Any:
        refused = caught(lambda: lazy.broadcast(rooted(lazy, Own())))
        return type(refused).__name__, lazy.broadcast(rooted(lazy, [1, 2]), materialize=sum if lazy.is_root else None)

    assert ranks(body, trust="data", placement="every") == [("EncodeError", 3), ("RemoteError", 3), ("RemoteError", 3)]
    assert issubclass(EncodeError, lazycast.LazycastError)


@claim("docs/errors.md", "the materializer may not travel, or what arrived is not allowed")
@claim("docs/security.md", "each `TrustError` names one.")
def names_allowed() -> None:
    def body(lazy: Any) -> Any:
        refused = caught(lambda: lazy.broadcast(rooted(lazy, Own())))
        return type(refused), f"{__name__}.Own" in str(refused) or f"{__name__}:Own" in str(refused)

    assert all(kind is TrustError and named for kind, named in ranks(body, trust=set()))


@claim(
    "docs/backends.md",
    "starts ranks on this machine and returns what they returned, in rank order.",
)
def in_rank_order() -> None:
    assert ranks(lambda lazy: lazy.rank, size=4) == [0, 1, 2, 3]
    assert launch(os.getpid, ranks=1, backend="threads") == [os.getpid()]


@claim("docs/metrics.md", "a quantile is within 10 % between 1 µs and 1000 s.")
def quantiles() -> None:
    for value_s in (2e-6, 3.3e-4, 0.047, 1.9, 640.0):
        tally = Tally()
        for _ in range(11):
            tally.add(value_s)
        assert tally.timing().p50_s == pytest.approx(value_s, rel=0.1)


@claim("docs/metrics.md", "What did not happen has no line.")
def table_of_stats() -> None:
    def body(lazy: Any) -> str:
        lazy.broadcast(rooted(lazy, 1))
        return str(lazy.stats())

    for text in ranks(body, size=2):
        assert "total " in text
        assert not [line for line in text.splitlines() if line.startswith(("materialize ", "blocked "))]


@claim(
    "docs/metrics.md", "It never waits: a rank reports two seconds after a broadcast has arrived, and when it closes."
)
def group() -> None:
    def body(lazy: Any) -> Any:
        lazy.broadcast(rooted(lazy, 1))
        text = str(lazy.stats(group=True)) if lazy.is_root else None
        lazy.broadcast(rooted(lazy, 2))
        return text and len(text) < 3000

    assert ranks(body)[0] is True


@claim("docs/api/index.md", "Everything that `from lazycast import ...` gives")
def outside_of_a_materializer() -> None:
    assert lazycast.cancelled() is False


@pytest.mark.parametrize(("page", "words", "check"), claim)
def test_a_page_says_what_is_so(page: str, words: str, check: Check) -> None:
    judge(page, words, check)
