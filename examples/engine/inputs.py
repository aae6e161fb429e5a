"""How a request's photos become pixels on every rank: with lazycast, and two ways to compare it with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from lazycast import CastFuture, CastTimeoutError, Helpers, LazyBroadcast, LazycastError, Tuning

from .photos import Pixels, develop
from .ranks import Ranks
from .requests import Announced, Payload, Request


class OverloadedError(Exception):
    """There is no room for a request now."""


class BadInputError(Exception):
    """A request's photos cannot be used."""


@dataclass(frozen=True)
class Settled:
    """Rank 0's word that waiting is over: the pixels can be taken on every rank, or (`error`) on none."""

    error: str = ""


class Inputs(ABC):
    """What the scheduler wants of photos.

    The scheduler's thread makes all calls but `cast`, in the order of the schedule. The methods marked *rank 0* are
    called there alone; the others on every rank.
    """

    raw_in_schedule = False

    @abstractmethod
    def cast(self, request: Request) -> None:
        """Rank 0, any thread, may block: a request with photos has come. Raises OverloadedError."""

    @abstractmethod
    def settled(self, rid: str) -> Settled | None:
        """Rank 0: whether a request can be admitted, or has failed; None: not yet. Never blocks."""

    @abstractmethod
    def expect(self, announced: Announced) -> None:
        """Every rank: a request with photos was announced."""

    @abstractmethod
    def take(self, announced: Announced) -> Pixels:
        """Every rank: the pixels of a request that is admitted. Raises BadInputError, then on every rank."""

    @abstractmethod
    def drop(self, rid: str) -> None:
        """Every rank: a request that was announced is aborted, or has failed, before it was admitted."""

    @abstractmethod
    def discard(self, rid: str) -> None:
        """Every rank: a request that was cast will never be announced."""

    def idle(self) -> bool:
        """Rank 0: whether nothing is under way."""
        return True

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """Every rank, at the end."""


class LazycastInputs(Inputs):
    """Casts the raw photos when they come, and asks for the pixels when the schedule names the request.

    Args:
        wake: called on rank 0 when some photos are settled.
        max_inflight: how many casts the slowest rank may not have asked for; beyond it `cast` blocks.
        timeout_s: how long photos may take (seconds).
        helpers: so many processes of each host make the pixels; 0: ranks do.
    """

    def __init__(
        self, ranks: Ranks, wake: Callable[[], None], *, max_inflight: int, timeout_s: float, helpers: int = 0
    ) -> None:
        self._lazy: LazyBroadcast[Payload, Pixels] = LazyBroadcast(
            develop,
            backend=ranks.backend,
            name="photos",
            placement=Helpers(helpers) if helpers else "auto",
            timeout_s=timeout_s,
            tuning=Tuning(max_inflight=max_inflight),
        )
        self._wake = wake
        self._timeout_s = timeout_s
        self._futures: dict[str, CastFuture[Pixels]] = {}
        self._given_up: set[CastFuture[Pixels]] = set()  # on rank 0: sent, so they cannot be called back

    def cast(self, request: Request) -> None:
        assert request.payload is not None
        try:
            future = self._lazy.broadcast_async(request.payload, key=request.rid)
        except CastTimeoutError as exc:  # back-pressure
            raise OverloadedError(exc.message) from exc
        self._futures[request.rid] = future  # before anybody is told of the request
        future.add_done_callback(lambda _: self._wake())

    def settled(self, rid: str) -> Settled | None:
        future = self._futures[rid]
        if not future.done():
            return None
        # With agree=True (the default) success here is success on every rank, and failure is everybody's.
        exc = future.exception()
        return Settled() if exc is None else Settled(exc.message if isinstance(exc, LazycastError) else str(exc))

    def expect(self, announced: Announced) -> None:
        if not self._lazy.is_root:
            # Longer than on rank 0: its time-out is everybody's, and nobody's crosses with its verdict.
            self._futures[announced.rid] = self._lazy.broadcast_async(key=announced.rid, timeout_s=2 * self._timeout_s)

    def take(self, announced: Announced) -> Pixels:
        # On rank 0 it is done. Elsewhere the verdict may be a moment behind the schedule, which is another object's
        # message: this waits for that moment. An error here is no bad photo but a broken group: it ends the engine.
        return self._futures.pop(announced.rid).result(timeout=self._timeout_s)

    def drop(self, rid: str) -> None:
        future = self._futures.pop(rid)
        # On rank 0 this withdraws the cast, unless all have it; elsewhere this rank will not get the value.
        if not future.cancel() and self._lazy.is_root and not future.done():
            self._given_up.add(future)
            future.add_done_callback(lambda _: self._wake())

    def discard(self, rid: str) -> None:
        if self._lazy.is_root:
            if rid in self._futures:  # it is not if its cast was refused
                self.drop(rid)
        else:
            self._lazy.discard(rid)

    def dump(self) -> str:
        """Say how everything stands, helpers too."""
        return self._lazy.dump()

    def idle(self) -> bool:
        self._given_up = {future for future in self._given_up if not future.done()}
        return not self._given_up

    def close(self) -> None:
        self._lazy.close()


class InLine(Inputs):
    """What the two other ways have in common: the scheduler's thread does the work when a request is admitted."""

    def cast(self, request: Request) -> None:
        """Nothing is sent before that."""

    def settled(self, rid: str) -> Settled | None:
        return Settled()

    def expect(self, announced: Announced) -> None:
        """Nothing is under way."""

    def drop(self, rid: str) -> None:
        """Nothing is under way."""

    def discard(self, rid: str) -> None:
        """Nothing is under way."""


class ItselfInputs(InLine):
    """Every rank gets the raw photos with the schedule, and materializes them."""

    raw_in_schedule = True

    def take(self, announced: Announced) -> Pixels:
        assert announced.raw is not None
        try:
            return develop(announced.raw)
        except Exception as exc:  # it raises on all ranks, or the ranks part here: nothing sees to that
            raise BadInputError(f"{type(exc).__name__}: {exc}") from exc


class ObjectListInputs(InLine):
    """Rank 0 materializes, and sends the pixels with `broadcast_object_list` (or mpi4py's `bcast`)."""

    def __init__(self, ranks: Ranks) -> None:
        if ranks.shards == 1 and ranks.size > 1:
            ranks.broadcast_object(None)  # says why there is none
        self._ranks = ranks
        self._payloads: dict[str, Payload] = {}

    def cast(self, request: Request) -> None:
        assert request.payload is not None
        self._payloads[request.rid] = request.payload

    def take(self, announced: Announced) -> Pixels:
        made: Pixels | str | None = None
        if self._ranks.rank == 0:
            try:
                made = develop(self._payloads.pop(announced.rid))
            except Exception as exc:  # the others wait in the broadcast: they must be told
                made = f"{type(exc).__name__}: {exc}"
        made = self._ranks.broadcast_object(made)
        if isinstance(made, str):
            raise BadInputError(made)
        assert made is not None
        return made

    def drop(self, rid: str) -> None:
        self._payloads.pop(rid, None)

    discard = drop


WAYS = ("lazycast", "object-list", "itself")


def make(
    way: str,
    ranks: Ranks,
    wake: Callable[[], None],
    *,
    max_inflight: int = 64,
    timeout_s: float = 60.0,
    helpers: int = 0,
) -> Inputs:
    """Make the inputs of one way. Collective."""
    if way == "lazycast":
        return LazycastInputs(ranks, wake, max_inflight=max_inflight, timeout_s=timeout_s, helpers=helpers)
    return ObjectListInputs(ranks) if way == "object-list" else ItselfInputs()
