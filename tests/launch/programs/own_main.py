"""One file, as users write them: its classes and functions are the ranks' own, whatever travels."""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from lazycast import LazyBroadcast, Staged, launch

LAUNCHED = "launch" in sys.argv
#: Whether ranks can tell that they run one script: else a function is another one wherever it arrives.
ONE_SCRIPT = not LAUNCHED and os.path.exists(getattr(sys.modules["__main__"], "__file__", ""))


class Kind(enum.Enum):
    IMAGE = 1


@dataclasses.dataclass
class Item:
    name: str
    kind: Kind = Kind.IMAGE


class Point(NamedTuple):
    x: int


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    def good(self, payload: Payload) -> bool:
        return type(self) is WithMeta and right(payload)


class Callable_:
    def __call__(self, payload: Payload) -> bool:
        return right(payload)


class Refused(Exception):
    pass


Payload = tuple[Kind, Item, Point, WithMeta, Refused, Callable[..., Any], type[Item]]


def payload() -> Payload:
    return Kind.IMAGE, Item("a"), Point(1), WithMeta(), Refused("no"), right, Item


def right(given: Payload) -> bool:
    kind, item, point, meta, error, function, cls = given
    return (
        kind is Kind.IMAGE
        and item == Item("a")
        and isinstance(point, Point)
        and isinstance(type(meta), Meta)
        and isinstance(meta, WithMeta)
        and isinstance(error, Refused)
        and (not ONE_SCRIPT or function is right)
        and cls is Item
    )


def right_with(given: Payload, kind: Kind) -> bool:
    return kind is Kind.IMAGE and right(given)


def make(given: Payload) -> Payload:
    return given if right(given) else payload()[:0]  # type: ignore[return-value]


def closure(wanted: Kind) -> Callable[[Payload], bool]:
    return lambda given: wanted is Kind.IMAGE and given[0] is wanted and right(given)


def hint(given: Payload) -> Kind:
    return given[0]


CHECKS: list[Callable[[Payload], Any]] = [
    right,
    lambda given: right(given) and isinstance(given[1], Item),
    functools.partial(right_with, kind=Kind.IMAGE),
    closure(Kind.IMAGE),
    Callable_(),
    WithMeta().good,
    Staged(hint, right_with),
]


def rank() -> list[str]:
    wrong = []
    for placement in ("every", "shard", "root", "auto"):
        with LazyBroadcast(placement=placement, timeout_s=60) as lazy:
            for number, check in enumerate(CHECKS):
                for turn in range(2):
                    if lazy.broadcast(payload(), materialize=check) is not True:
                        wrong.append(f"{placement} check {number}, turn {turn}, rank {lazy.rank}")
                    made = lazy.broadcast(payload(), materialize=make)
                    if len(made) != 7 or ((ONE_SCRIPT or LAUNCHED) and not right(made)):
                        wrong.append(f"{placement} value after check {number}, turn {turn}, rank {lazy.rank}")
    return wrong


if __name__ == "__main__":
    if LAUNCHED:
        found = [text for texts in launch(rank, ranks=2) for text in texts]
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        found = rank()
        dist.destroy_process_group()
    else:
        found = rank()
    print("wrong:", found)
