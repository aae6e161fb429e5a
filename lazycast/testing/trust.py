"""What ranks take from each other with `trust="data"` and with `allow=`, from honest roots and from hostile ones."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import cloudpickle
import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.codec import pickling
from lazycast.codec.pickling import Encoded
from lazycast.errors import ConfigMismatchError, DecodeError, EncodeError, LazycastError, RemoteError, TrustError
from lazycast.materialize.materializers import Shipped, Shipper, register_materializer
from lazycast.materialize.staged import Staged
from lazycast.net.wire import MaterializerRef
from lazycast.testing.kit import Rank, behaviour, check, raises, same
from lazycast.testing.placements import PLACEMENTS

_HERE = __name__

harmed: list[str] = []  # what hostile messages have run in this process


def harm(what: object) -> str:
    """What must not run."""
    harmed.append(f"{threading.current_thread().name}: {what!r:.80}")
    return "harmed"


class Bomb:
    """Does harm when it is unpickled."""

    def __reduce__(self) -> Any:
        return harm, ("unpickled",)


class Frame:
    """A type of somebody's own, with an array in it."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    @classmethod
    def of(cls, raw: dict[str, Any]) -> Frame:
        return cls(raw["pixels"] + 1)

    def total(self) -> int:
        return int(self.pixels.sum())


class Other(Frame):
    """A type that nobody has allowed."""


def brighten(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "pixels": raw["pixels"] + 1, "by": ("brighten", 1)}


def measure(raw: dict[str, Any]) -> tuple[int, float]:
    return raw["pixels"].size, float(raw["pixels"].sum())


def attach(raw: dict[str, Any], hint: tuple[int, float]) -> tuple[dict[str, Any], tuple[int, float]]:
    return raw, hint


def total_of(frame: Frame) -> int:
    return frame.total()


BRIGHTEN = register_materializer("lazycast.testing.trust: brighten", brighten)
FRAME_OF = register_materializer("lazycast.testing.trust: Frame.of", Frame.of)
STAGED: Any = register_materializer("lazycast.testing.trust: staged", Staged(measure, attach))
ALLOW = [f"{_HERE}.{name}" for name in ("Frame", "Frame.of", "total_of", "measure", "attach")]


def _payload(n: int) -> dict[Any, Any]:
    return {"pixels": np.full(n, 2.0), "ids": list(range(n % 100)), "size": (n, 1), "raw": b"\xff\xd8" * n, 7: {None}}


def _at_root(rank: Rank, kind: type[LazycastError], pattern: str, call: Callable[[], Any]) -> None:
    """The root raises `kind`, the others RemoteError with the same text."""
    raises(kind if rank.rank == 0 else RemoteError, pattern, call)


@behaviour()
def data_arrives_with_every_placement(rank: Rank) -> None:
    for placement in PLACEMENTS:
        with rank.lazy(trust="data", placement=placement) as lazy:
            for n in (10, 100_000):
                payload = _payload(n)
                sent = payload if lazy.is_root else None
                same(lazy.broadcast(sent), payload, placement)
                same(lazy.broadcast(sent, materialize=brighten), brighten(payload), placement)
                same(lazy.broadcast(sent, materialize=STAGED), (payload, (n, 2.0 * n)), placement)
                same(
                    lazy.broadcast(sent, materialize=Staged(measure, attach)),  # an equal one
                    (payload, (n, 2.0 * n)),
                    placement,
                )


@behaviour()
def replicated_data_may_be_anything_and_what_is_shared_is_data(rank: Rank) -> None:
    for placement in PLACEMENTS:
        with rank.lazy(trust="data", placement=placement, replicated=True) as lazy:
            for n in (10, 100_000):
                payload = {"pixels": np.full(n, 3.0), "own": Frame(np.ones(3))}
                mine, hint = lazy.broadcast(payload, materialize=STAGED)
                check(mine is payload, f"{placement}: finish did not get this rank's own payload")
                same(hint, (n, 3.0 * n), placement)


@behaviour()
def a_value_that_is_not_data_is_made_by_every_rank(rank: Rank) -> None:
    for placement in ("every", "shard", "demand"):
        with rank.lazy(Frame.of, trust="data", placement=placement) as lazy:
            same(lazy.broadcast({"pixels": np.zeros(10)}).total(), 10, placement)


@behaviour(min_size=2)
def what_is_not_data_is_refused_and_the_next_cast_works(rank: Rank) -> None:
    with rank.lazy(trust="data") as lazy:
        _at_root(
            rank,
            EncodeError,
            r"dict\['a'\]\[1\] \(a Frame\) is not plain data, which trust='data' needs: send its fields",
            partial(lazy.broadcast, {"a": [1, Frame(np.ones(3))]}),
        )
        same(lazy.broadcast(("next", 1)), ("next", 1))
    with rank.lazy(trust="data", placement="root") as lazy:
        _at_root(rank, EncodeError, "Frame.*not plain data", partial(lazy.broadcast, _payload(3), materialize=Frame.of))
        same(lazy.broadcast(("next", 1)), ("next", 1))


@behaviour(min_size=2)
def a_materializer_that_is_not_registered_is_refused_and_the_next_cast_works(rank: Rank) -> None:
    for placement in PLACEMENTS:
        with rank.lazy(trust="data", placement=placement) as lazy:
            mixed: Staged[Any, Any, Any] = Staged(brighten, attach)
            refused: Any
            for refused in (total_of, lambda x: x, Frame, partial(brighten), mixed):
                _at_root(
                    rank,
                    TrustError,
                    "not registered.*trust='data'.*register_materializer",
                    partial(lazy.broadcast, _payload(3), materialize=refused),
                )
            same(lazy.broadcast(_payload(3), materialize=BRIGHTEN), brighten(_payload(3)))


@behaviour(min_size=2)
def data_and_allowed_names_must_be_the_same_everywhere(rank: Rank) -> None:
    mine: dict[str, Any]
    for mine, others in (({"trust": "data"}, {}), ({"allow": ALLOW}, {}), ({"allow": ALLOW}, {"allow": ALLOW[1:]})):
        raises(
            ConfigMismatchError,
            f"ranks disagree on .*{next(iter(mine))}",
            partial(rank.lazy, **(mine if rank.rank == 0 else others)),
        )
    with rank.lazy(allow=ALLOW if rank.rank else {*ALLOW}) as lazy:
        same(lazy.broadcast("agreed"), "agreed")


class _HostileShipper(Shipper):
    """Says that a materializer is something else than the root runs itself."""

    def __init__(self, ref: MaterializerRef, codes: list[tuple[str, bytes]]) -> None:
        super().__init__()
        self._said = Shipped(ref, None, codes)

    def ship(self, fn: Any, *, prepared: bool = False) -> Shipped:
        return self._said


def _a_bomb(obj: object) -> Encoded:
    """Encode something harmful, whatever is given."""
    return pickling.encode(Bomb())


def _hostile_refs() -> dict[str, tuple[MaterializerRef, list[tuple[str, bytes]]]]:
    bomb, code = pickle.dumps(Bomb(), 5), cloudpickle.dumps(lambda x: harm(x), protocol=5)
    return {
        "path": (MaterializerRef(f"{_HERE}:harm", "harm", (_HERE, "harm")), []),
        "stage of a path": (MaterializerRef("path", "harm", (_HERE, "harm"), "prepare"), []),
        "system": (MaterializerRef("os:system", "system", ("os", "system")), []),
        "dotted module": (MaterializerRef("x", "x", (f"{_HERE}.harm", "__call__")), []),
        "code": (MaterializerRef("sha256:0", "f"), [("sha256:0", code)]),
        "pickle": (MaterializerRef("sha256:1", "f"), [("sha256:1", bomb)]),
        "code not sent": (MaterializerRef("sha256:2", "f"), []),
        "code and path": (MaterializerRef(f"{_HERE}:harm", "f", (_HERE, "harm")), [(f"{_HERE}:harm", code)]),
    }


def _lane_of(lazy: LazyBroadcast[Any, Any]) -> Any:
    return lazy._lane


@behaviour(min_size=2)
def a_hostile_root_runs_nothing_and_is_told(rank: Rank) -> None:
    harmed.clear()
    rank.meet()
    for options in ({"trust": "data"}, {"allow": ALLOW}):
        for placement in ("every", "shard"):
            with rank.lazy(BRIGHTEN, placement=placement, **options) as lazy:
                honest = _lane_of(lazy).sending.encoder.shipper if lazy.is_root else None
                for name, (ref, codes) in _hostile_refs().items():
                    if lazy.is_root:
                        _lane_of(lazy).sending.encoder.shipper = _HostileShipper(ref, codes)
                    errors = []
                    for _ in range(rank.size):  # of a shard, each rank is the owner once, and the root need not load
                        try:
                            lazy.broadcast(_payload(3))
                        except TrustError as exc:
                            errors.append(exc)
                    check(len(errors) >= rank.size - 1, f"{placement}, {name}: {len(errors)} errors")
                    check("not registered" in str(errors[0]), str(errors[0]))
                    if lazy.is_root:
                        _lane_of(lazy).sending.encoder.shipper = honest
                    same(lazy.broadcast(_payload(3)), brighten(_payload(3)), f"after {name}")
                    same(harmed, [], f"{options}, {placement}, {name}")
                rank.meet()


@behaviour(min_size=2)
def a_hostile_payload_runs_nothing_and_is_told(rank: Rank) -> None:
    harmed.clear()
    rank.meet()
    options: dict[str, Any]
    for kind, pattern, options in (
        (DecodeError, "not plain data", {"trust": "data"}),
        (TrustError, f"names '{_HERE}.harm', which is not allowed: add it to trust=", {"allow": ALLOW}),
    ):
        for materialize in (None, BRIGHTEN):
            with rank.lazy(materialize, placement="every", **options) as lazy:
                honest = _lane_of(lazy).sending.encoder._encode if lazy.is_root else None
                if lazy.is_root:
                    _lane_of(lazy).sending.encoder._encode = _a_bomb
                raises(kind, pattern, partial(lazy.broadcast, _payload(3)))
                if lazy.is_root:
                    _lane_of(lazy).sending.encoder._encode = honest
                same(len(lazy.broadcast(_payload(3))), len(_payload(3)) + (materialize is not None), "the next cast")
                same(harmed, [], str(options))
                rank.meet()


@behaviour(min_size=2)
def a_hostile_owner_runs_nothing_and_every_rank_makes_its_own(rank: Rank) -> None:
    harmed.clear()
    rank.meet()
    options: dict[str, Any]
    for options in ({"trust": "data"}, {"allow": ALLOW}):
        with rank.lazy(BRIGHTEN, placement="shard", **options) as lazy:
            _lane_of(lazy).casts.making.own_part._encode = _a_bomb  # it takes nobody else's
            for _ in range(2 * rank.size):
                same(lazy.broadcast(_payload(3)), brighten(_payload(3)), str(options))
            same(harmed, [], str(options))


@behaviour()
def allowed_types_and_materializers_travel(rank: Rank) -> None:
    for placement in PLACEMENTS:
        with rank.lazy(total_of, allow=ALLOW, placement=placement) as lazy:
            for n in (10, 100_000):
                same(lazy.broadcast(Frame(np.ones(n))), n, placement)
                same(lazy.broadcast({"pixels": np.ones(n)}, materialize=Frame.of).total(), 2 * n, placement)
                same(lazy.broadcast(_payload(n), materialize=Staged(measure, attach))[1], (n, 2.0 * n), placement)
                same(lazy.broadcast(_payload(n), materialize=BRIGHTEN), brighten(_payload(n)), placement)


@behaviour(min_size=2)
def what_is_not_allowed_is_refused_and_the_next_cast_works(rank: Rank) -> None:
    for placement in ("every", "root", "shard"):
        with rank.lazy(total_of, allow=ALLOW, placement=placement) as lazy:
            refused: Any
            for refused, pattern in (
                (lambda frame: 1, "none that can be imported"),
                (partial(total_of), "none that can be imported"),
                (measure_other, f"{_HERE}.measure_other' is not one: add it to trust="),
                (Staged(measure, measure_other), "measure_other' is not one"),
            ):
                _at_root(rank, TrustError, pattern, partial(lazy.broadcast, Frame(np.ones(3)), materialize=refused))
            same(lazy.broadcast(Frame(np.ones(3))), 3, "the next cast")
    with rank.lazy(allow=ALLOW) as lazy:
        raises(TrustError, f"names '{_HERE}.Other', which is not allowed", partial(lazy.broadcast, [Other(np.ones(3))]))
        _at_root(rank, EncodeError, "no code travels", partial(lazy.broadcast, {"f": lambda: 1}))
        same(lazy.broadcast([Frame(np.ones(3))])[0].total(), 3, "the next cast")


def measure_other(raw: Any, hint: Any = None) -> Any:
    return raw
