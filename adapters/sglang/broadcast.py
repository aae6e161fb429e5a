"""`SGLangBroadcast`: what stands between SGLang's scheduler and lazycast.

Guarantees:

* Each call counts on each rank, and the count names the cast, so that one call that went wrong puts nobody out of step.
* Calls without inputs send nothing. The entry rank says with its next cast which calls those were, or after 1024 of
  them. Calls whose inputs are not worth a cast send nothing at all: all ranks see that alike.
* A rank whose inputs are not the entry rank's, or that has none, fails the call on every rank that waits for it.
* What the scheduler's callers catch is what is raised, in releases where they catch something; else lazycast's error.
* Ranks that agree on hashes which SGLang makes up get them from the entry rank: another rank of each host would make up
  others.
* The entry rank's time limit ends before the others', so that a rank that is late is known to all.

Lock order: `_turn` before what lazycast locks. Nothing is called while `_lock` is held.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import itertools
import logging
import os
import threading
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Any

from lazycast import Shard, Tuning
from lazycast.api import LazyBroadcast
from lazycast.arguments import checked_key
from lazycast.core.future import CastFuture
from lazycast.errors import ClosedError, KeyInUseError, LazycastError, PayloadMismatchError, RemoteError
from lazycast.missing import MISSING
from lazycast.net.wire import Key
from lazycast.start import discovery
from lazycast.watch.stats import Stats

from .binding import Binding, caught_error, input_error, skips_hashing, uses_feature_buffer
from .futures import InputsFuture
from .stages import PREPARE_AND_FINISH, PROBE, Request
from .worth import Worth, measured

logger = logging.getLogger("lazycast")

_MAX_PASSED = 1024  # calls of the entry rank that had nothing to hash, before it says so
#: How much longer than the entry rank the others wait. Their own time-out would leave the entry rank to its work.
_PATIENCE = 1.5
#: How many casts the entry rank may be ahead. They are small, and a scheduler that puts requests aside must not wait.
_AHEAD = 1 << 12


class SGLangBroadcast:
    """Makes `MultimodalInputs` on every rank of a group; one rank per host, each in turn, hashes.

    Args:
        group: the process group of the ranks that have the same requests (the scheduler's `dp_tp_cpu_group`); the
            default group if None. Any backend; it is not used to communicate.
        root: the entry rank, group-local.
        requires_mm_token_modalities: as the model's config says, for releases that ask for it.
        owners: the ranks that hash, group-local; all of them if None. Under SGLANG_MM_SKIP_COMPUTE_HASH, which is read
            now, the entry rank makes up the hashes.
        timeout_s: how long construction, and each call of the entry rank, may wait for other ranks (seconds); calls of
            the others half as long again.
        name: part of the handshake.
        cast_from_nbytes: inputs with fewer bytes to hash are made at once on each rank, without a cast, as are those
            with preset hashes; by default none is too small, and with None the entry rank measures now what a cast is
            worth. Not where hashes are made up.
    Raises: UnsupportedReleaseError if this SGLang has none of the functions that are known; ConfigMismatchError also if
        not all ranks have the same SGLANG_MM_SKIP_COMPUTE_HASH, `cast_from_nbytes`, or use of a feature buffer; else as
        `LazyBroadcast`.
    Collective: every rank of the group constructs, in the same order.
    Blocking: until all ranks have come, up to `timeout_s`.
    Threads: calls without `rid` from one thread per rank; the rest is safe.
    Memory: raw inputs belong to the call; what it returns belongs to the caller.
    """

    def __init__(
        self,
        group: Any = None,
        *,
        root: int = 0,
        requires_mm_token_modalities: bool = False,
        owners: Collection[int] | None = None,
        timeout_s: float = 60.0,
        name: str = "sglang",
        cast_from_nbytes: int | None = 0,
    ) -> None:
        self.binding = Binding.find(requires_mm_token_modalities=requires_mm_token_modalities)
        backend: Callable[[Any], Any] = discovery.by_name("torch")
        made_up, in_buffer = skips_hashing(), uses_feature_buffer()
        self._executor = _executor_for_device()
        self._lazy: LazyBroadcast[Request, Any] = LazyBroadcast(
            PREPARE_AND_FINISH,
            backend=backend(group),
            root=root,
            name=name + _said(cast_from_nbytes, in_buffer=in_buffer),
            placement="root" if made_up else Shard(owners),  # which ranks compare
            replicated=True,
            timeout_s=timeout_s,
            # What a rank sits out is no reason to warn.
            tuning=Tuning(warn_after_s=_PATIENCE * timeout_s, executor=self._executor, max_inflight=_AHEAD),
        )
        self._timeout_s = timeout_s if self._lazy.is_root else _PATIENCE * timeout_s
        self._numbers = itertools.count(1)
        self._passed: collections.deque[Key] = collections.deque()  # since the entry rank's last cast
        self._turn = threading.Lock()  # of who says what passed, and casts: an id may be among both
        self._lock = threading.Lock()  # guards the next one
        self._open: dict[str, InputsFuture] = {}
        if cast_from_nbytes is None:
            try:
                cast_from_nbytes = self._measured(backend(group))
            except BaseException:
                self.close()
                raise
        self._worth = Worth(self.binding, made_up, cast_from_nbytes, in_buffer)

    @property
    def cast_from_nbytes(self) -> int:
        """With fewer bytes to hash, inputs are made at once on each rank."""
        return self._worth.cast_from_nbytes

    def _measured(self, backend: Any) -> int:
        """Measure what a cast is worth, and return what the entry rank has found."""
        nbytes = measured(self._probe) if self._lazy.size > 1 else 0
        with LazyBroadcast[int, int](backend=backend, root=self._lazy.root, name="sglang-worth") as tell:
            return tell.broadcast(nbytes if tell.is_root else MISSING)

    def _probe(self) -> None:
        lazy: LazyBroadcast[Any, Any] = self._lazy
        lazy.broadcast(None, materialize=PROBE, key=next(self._numbers), timeout_s=self._timeout_s)

    @property
    def rank(self) -> int:
        """This process's place in the group, 0-based and group-local."""
        return self._lazy.rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self._lazy.size

    def __repr__(self) -> str:
        return f"<SGLangBroadcast of {self.binding.method} over {self._lazy!r}>"

    def process(self, raw: Any) -> Any:
        """Return what SGLang makes of a request's raw inputs.

        Args:
            raw: what the release's function takes; None and `MultimodalInputs` are returned as they are.
        Raises: `_MultimodalInputProcessingError` where SGLang has it; in other releases MaterializeError with SGLang's
            own error, PayloadMismatchError where ranks' inputs differ, CastTimeoutError, PeerLostError, ClosedError.
            What SGLang's function raises, as the first where there is that, for inputs that are not worth a cast.
        Collective: every rank, in the same order. Blocking: until the inputs are here, up to the time limit.
        Threads: one per rank.
        """
        key = next(self._numbers)
        if self._passes(raw):
            self._pass(key)
            return self._passed_through(raw)
        if not self._worth.is_worth_a_cast(raw):
            return self._made_here(raw)
        try:
            if self._lazy.is_root:
                with self._turn:
                    self._say_what_passed()  # a number names one call: no need to stay here until it is cast
            return self._lazy.broadcast(Request(self.binding, raw), key=key, timeout_s=self._timeout_s)
        except LazycastError as exc:
            error = self._translated(exc)
        raise error

    def process_async(self, raw: Any, rid: str | None = None) -> InputsFuture:
        """Return at once a future for what `process` returns.

        Args:
            raw: as for `process`; not to be touched until the future is done.
            rid: the request's id, by which ranks may then ask in any order, and `abort` it; else the call counts as one
                of `process`.
        Returns: a `concurrent.futures.Future`, also awaitable. Its errors are those of `process`.
        Raises: at once, as lazycast raises them: KeyInUseError if this id is pending here; on the entry rank
            CastTimeoutError (back-pressure); ClosedError. TypeError for an id that is no string, ValueError for one of
            more than 1024 bytes or that UTF-8 cannot encode: such a call does not count, on any rank.
        Collective: every rank. Blocking: never, short of back-pressure on the entry rank. Threads: safe with `rid`.
        """
        if rid is not None and not isinstance(rid, str):
            raise TypeError(f"rid must be a string or None, got {type(rid).__name__} {rid!r}")
        checked_key(rid)  # before anything counts: what passes is cast later, by other calls
        key: Key = next(self._numbers) if rid is None else rid
        if self._passes(raw):
            self._pass(key)
            return _done(lambda: self._passed_through(raw))
        if not self._worth.is_worth_a_cast(raw):
            return _done(lambda: self._made_here(raw))
        future = InputsFuture(self._translated, sure=not self._lazy.is_root)
        if rid is not None:
            self._remember(rid, future)
        try:
            future.follow(self._cast(Request(self.binding, raw), key))
        except BaseException:
            if rid is not None:
                self._forget(rid, future)
            raise
        if rid is not None:
            future.add_done_callback(lambda done: self._forget(rid, done))
        return future

    def _cast(self, request: Request, key: Key) -> CastFuture[Any]:
        if not self._lazy.is_root:
            return self._lazy.broadcast_async(request, key=key, timeout_s=self._timeout_s)
        with self._turn:
            self._say_what_passed()
            return self._lazy.broadcast_async(request, key=key, timeout_s=self._timeout_s)

    def abort(self, rid: str) -> bool:
        """Give up a request of `process_async` that is not done, also while that call is still being made.

        The entry rank can as long as not every rank has its inputs: it is cancelled on all of them, and made nowhere.

        Returns: whether this rank will not get its inputs. False also for an id that is not known here; and on the
            entry rank while the call is still being made, which is then given up as soon as it can be.
        Collective: no. Blocking: never. Threads: safe.
        """
        with self._lock:
            future = self._open.get(rid)
        return future is not None and future.cancel()

    def stats(self) -> Stats:
        """Return counts and timings of this rank, as `LazyBroadcast.stats` does.

        Collective: no. Blocking: never. Threads: safe.
        """
        return self._lazy.stats()

    def dump(self) -> str:
        """Return this rank's whole state as text for a human.

        Collective: no. Blocking: never. Threads: safe, in a signal handler too.
        """
        return self._lazy.dump()

    def close(self, *, timeout_s: float | None = None) -> None:
        """Finish or fail what is pending, and say farewell, as `LazyBroadcast.close` does. Twice is fine.

        Args:
            timeout_s: how long pending calls may take (seconds; by default 30, or the object's `timeout_s` if less).
        Collective: no, but a call needs all ranks: close when this rank's last one is done. Blocking: up to `timeout_s`
            and about a round trip. Threads: safe; not from a callback of its futures (ReentrantCallError).
        """
        self._lazy.close(timeout_s=timeout_s)
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def __enter__(self) -> SGLangBroadcast:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._lazy.__exit__(exc_type, exc, tb)
        self.close()

    # Calls with nothing to hash

    def _passes(self, raw: Any) -> bool:
        """Whether this rank has nothing to hash in a call."""
        return raw is None or isinstance(raw, self.binding.inputs) or input_error(raw) is not None

    def _pass(self, key: Key) -> None:
        """Make sure that others do not wait in vain for a call in which this rank has nothing to hash."""
        if not self._lazy.is_root:
            if self._lazy.size > 1:
                self._sit_out(key)
            return
        self._passed.append(key)
        if len(self._passed) >= _MAX_PASSED:
            with self._turn, contextlib.suppress(ClosedError):
                self._say_what_passed()

    def _say_what_passed(self) -> None:
        """On the entry rank, in its turn: end the calls that others make, or have sat out, where it had nothing."""
        while self._passed:
            try:
                # As it must be: without a payload it counts, and is refused everywhere.
                with contextlib.suppress(TypeError):
                    self._lazy.broadcast_async(MISSING, key=self._passed[0])
            finally:  # an interrupt comes after it has counted, and a closed object takes no other either
                self._passed.popleft()  # which only happens here

    def _sit_out(self, key: Key) -> None:
        """On the others: ask without inputs, so that a cast of the entry rank fails everywhere; and do not wait."""
        try:
            cast = self._lazy.broadcast_async(MISSING, key=key, timeout_s=self._timeout_s)
        except ClosedError:  # nobody waits for this one: the others know, or will
            return
        except KeyInUseError as exc:  # it counts all the same; what is pending is another call
            logger.error(
                "lazycast: rank %d has nothing to hash for a request of which another waits: %s", self.rank, exc
            )
            return
        cast.add_done_callback(lambda done: self._sat_out(key, done))

    def _sat_out(self, key: Key, cast: concurrent.futures.Future[Any]) -> None:
        exc = None if cast.cancelled() else cast.exception()
        if isinstance(exc, PayloadMismatchError):
            text = (
                "lazycast: call %r went on without inputs on rank %d, and failed on the others; ranks have diverged: %s"
            )
            logger.error(text, key, self.rank, exc)

    @staticmethod
    def _passed_through(raw: Any) -> Any:
        said = input_error(raw)
        if said is None:
            return raw
        raise (caught_error() or RuntimeError)(said)

    # Calls that are not worth a cast

    def is_worth_waiting(self, raw: Any) -> bool:
        """Whether making these inputs takes a while, is worth a cast, and can be left to other threads.

        The same on every rank. Collective: no. Blocking: never. Threads: safe.
        """
        return not self._passes(raw) and self._worth.is_worth_waiting(raw)

    def _made_here(self, raw: Any) -> Any:
        """Make inputs as SGLang alone would, and raise what its callers catch: each rank does, and alike."""
        caught = caught_error()
        if caught is None:
            return self.binding(raw)
        try:
            return self.binding(raw)
        except (MemoryError, OSError):  # this rank's alone: the others go on with the request
            raise
        except Exception as exc:
            raise caught(f"{type(exc).__name__}: {exc}") from exc

    def _remember(self, rid: str, future: InputsFuture) -> None:
        with self._lock:
            before = self._open.get(rid)
            if before is None or before.done():  # else this call is about to be refused
                self._open[rid] = future

    def _forget(self, rid: str, done: concurrent.futures.Future[Any]) -> None:
        with self._lock:
            if self._open.get(rid) is done:
                del self._open[rid]

    # Errors

    def _translated(self, exc: BaseException) -> BaseException:
        """Return the error that SGLang's callers catch, with the other as its cause."""
        if isinstance(exc, RemoteError) and "needs a payload on the root" in exc.message:
            exc = PayloadMismatchError(
                f"rank {self.rank} has inputs for a request for which the entry rank, {self._lazy.root}, has none; the "
                "ranks' requests are out of step",
                rank=self._lazy.root,
            )
        caught = caught_error()
        if caught is None or not isinstance(exc, LazycastError):
            return exc
        translated: Exception = caught(exc.message)
        translated.__cause__ = exc
        return translated


def _said(cast_from_nbytes: int | None, *, in_buffer: bool) -> str:
    """Return what ranks must have in common, for the handshake: by it each decides for itself."""
    worth = ", measures what a cast is worth" if cast_from_nbytes is None else ""
    worth = f", casts from {cast_from_nbytes} bytes" if cast_from_nbytes else worth
    return worth + (", hashes in a buffer" if in_buffer else "")


def _done(made: Callable[[], Any]) -> InputsFuture:
    done = InputsFuture()
    try:
        done.set_result(made())
    except Exception as exc:
        done.set_exception(exc)
    return done


def _executor_for_device() -> concurrent.futures.Executor | None:
    """Return threads that use this rank's device, which is a setting of each thread; None without one."""
    import torch

    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):  # type: ignore[no-untyped-call]
        return None
    return concurrent.futures.ThreadPoolExecutor(
        max_workers=min(4, os.cpu_count() or 1),
        thread_name_prefix="lazycast-sglang",
        initializer=torch.cuda.set_device,
        initargs=(torch.cuda.current_device(),),
    )
