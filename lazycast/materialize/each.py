"""A materializer that works item by item, so that several processes can work on one payload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from lazycast.here import cancelled, here

P = TypeVar("P")
T = TypeVar("T")
R = TypeVar("R")
V = TypeVar("V")


@dataclass(frozen=True)
class Each(Generic[P, T, R, V]):
    """A materializer that works item by item: `join([fn(item) for item in split(payload)])`.

    Under `placement="shard"` the ranks of a host, and under `Helpers` the helpers, share the items between them, and
    the results travel through shared memory, each once. Elsewhere, under `placement="auto"` and with
    `replicated=True`, whoever materializes runs all of it, in order.

    Args:
        fn: `callable(item) -> result`. Results must pickle where items are shared.
        split: `callable(payload) -> items`, a sequence; None where the payload is one. It runs in each process that
            works on the items, so it should be cheap: let it find the items, and `fn` do the work. With `memo` it runs
            on a worker of the root instead, once, and each item must pickle.
        join: `callable(results) -> value`, of a list in the order of the items. Every rank runs it.
    Raises: TypeError for what is not callable.
    Threads: all three run on the threads of whoever materializes, several at a time.
    """

    fn: Callable[[T], R]
    split: Callable[[P], Sequence[T]] | None = None
    join: Callable[[list[R]], V] = list  # type: ignore[assignment]  # V is then a list

    def __post_init__(self) -> None:
        for name in ("fn", "split", "join"):
            part = getattr(self, name)
            if not callable(part) and not (name == "split" and part is None):
                raise TypeError(f"Each: {name} must be callable, got {type(part).__name__}")

    def __call__(self, payload: P) -> V | None:
        """Run all of it in order. Returns None, after the item at hand, once nobody waits for the value any more."""
        some = Some(self)(payload)
        return None if some is None else self.join(some[1])


@dataclass(frozen=True)
class Some:
    """Makes one of `parts` parts of the results: that of each item whose index is `part` modulo `parts`.

    Returns how many items there are and the results; None once nobody waits for them any more.

    Attributes:
        begins: called with the number of each item, before that.
        numbers: where the payload is a list of some items of another one: which number each of them has there.
    """

    each: Each[Any, Any, Any, Any]
    part: int = 0
    parts: int = 1
    begins: Callable[[int], object] | None = None
    numbers: Sequence[int] | None = None

    def __call__(self, payload: Any) -> tuple[int, list[Any]] | None:
        each, numbers = self.each, self.numbers
        items = items_of(each, payload) if numbers is None else payload
        if numbers is not None and (type(items) is not list or len(items) != len(numbers)):
            raise ValueError(f"Each: the payload is not the list of {len(numbers)} items that its cast says it is")
        made = []
        for index in range(self.part, len(items), self.parts):
            if cancelled():
                return None
            number = index if numbers is None else numbers[index]
            if self.begins is not None:
                self.begins(number)
            try:
                made.append(each.fn(items[index]))
            except BaseException:  # also KeyboardInterrupt: whoever reports it says where
                here.item = number
                raise
        here.item = None
        return len(items), made


def items_of(each: Each[Any, Any, Any, Any], payload: Any) -> Sequence[Any]:
    """Return the items of a payload. Raises: TypeError for what is no sequence; whatever `split` raises."""
    items: Any = payload if each.split is None else each.split(payload)
    kind = type(items)
    sized = hasattr(kind, "__len__") and hasattr(kind, "__getitem__")
    if sized and not isinstance(items, (Mapping, AbstractSet, str, bytes, bytearray)):
        return cast(Sequence[Any], items)
    said = "split must return" if each.split is not None else "without split the payload must be"
    raise TypeError(f"Each: {said} a sequence of items, such as a list, got {kind.__name__}; an iterator may not end")


def place_of_failure() -> str:
    """Say at which item the materializer that this thread has called has raised, if at one. It is said once."""
    item, here.item = here.item, None
    return "" if item is None else f" at item {item}"


def in_order(parts: Sequence[tuple[int, list[Any]]]) -> list[Any]:
    """Return the results of all parts in the order of the items.

    Raises: ValueError if the parts do not come from the same number of items, or one lacks some of its own.
    """
    counts = {count for count, made in parts if count or made} or {0}
    if len(counts) > 1:
        said = " and ".join(map(str, sorted(counts)))
        raise ValueError(f"Each: split has found {said} items in one payload; it must find the same everywhere")
    count = next(iter(counts))
    for number, (_, made) in enumerate(parts):  # before anything is taken for so many
        if type(made) is not list or len(made) != len(range(number, count, len(parts))):
            raise ValueError(f"Each: part {number} of {len(parts)} has not brought its results of {count} items")
    results: list[Any] = [None] * count
    for number, (_, made) in enumerate(parts):
        results[number :: len(parts)] = made
    return results
