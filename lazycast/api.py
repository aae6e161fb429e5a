"""`LazyBroadcast`, the face of the library."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal, TypeVar, cast, overload

from lazycast.arguments import limit, usable_key, usable_priority, wait_limit
from lazycast.codec.reducers import note_devices
from lazycast.core.engine import Engine
from lazycast.core.future import CastFuture
from lazycast.core.turns import Turns, until
from lazycast.core.workers import role_of
from lazycast.errors import BackendError, CastTimeoutError, ClosedError
from lazycast.here import here
from lazycast.missing import MISSING, Missing
from lazycast.net.backend import Backend
from lazycast.net.wire import Key
from lazycast.options import Auto, Helpers, Memo, Options, Shard, Tuning, check, debug_wanted, flat, refuse_old, shown
from lazycast.start import construction, discovery, lifetime
from lazycast.tracebacks import forget_frames, left
from lazycast.watch.group_stats import GroupStats
from lazycast.watch.stats import Stats
from lazycast.watch.tracing.tracer import Tracer

P = TypeVar("P")
V = TypeVar("V")

#: What `close` allows for by default (seconds).
_CLOSE_TIMEOUT_S = 30.0
#: By how much a blocking call outlives its time limit before it stops trusting the engine to end it (seconds).
_GRACE_S = 5.0


#: The time that a call has for which there was no room until its time was over (seconds).
_NOW_S = 1e-3

_Init = TypeVar("_Init", bound=Callable[..., None])


def _with_old_names_refused(init: _Init) -> _Init:
    """Let a constructor say how a keyword is spelled now that it had once."""

    @functools.wraps(init)
    def explained(*args: Any, **keywords: Any) -> None:
        refuse_old(keywords)
        init(*args, **keywords)

    return cast(_Init, explained)


class LazyBroadcast(Generic[P, V]):
    """Casts raw payloads from one rank to all, with the callable that makes the object every rank gets.

    Args:
        materialize: `callable(payload) -> value`, or a `Staged` of two; None casts the payload itself. The root's
            rules; other ranks need not have it. It runs as in a new thread: what a caller has set for itself (gradient
            modes of torch, context variables) does not reach it.
        backend: "auto" (torch.distributed if its default group is initialised, else MPI if started by its launcher,
            else local), a name found among the entry points `lazycast.backends`, a `Backend`, a process group of torch
            or a communicator of mpi4py.
        root: the rank that owns the payloads, 0-based, local to the backend's group.
        roots: "one", that rank; or "any": every rank casts payloads of its own, and each call says whose cast it asks
            for (`root=` of `broadcast`). Keys, the order of casts, calls without a key and back-pressure are each
            root's own; threads, sockets, shared memory and workers are shared.
        name: part of the handshake; objects with other names never cross.
        placement: who materializes: "every" rank on arrival; in a "shard", one rank of each host, a different one for
            each cast, whose value the others of its host get through shared memory (they make their own if it cannot be
            shared); the "root", which casts the value; on "demand", each rank when it asks. With "auto" the root
            chooses one of the first three for each cast, by what casts like it have cost. Wherever not every rank
            materializes, the others get an unpickled copy. `Shard(owners=...)` and `Auto(owners=...)` leave it to some
            ranks, `Helpers(count)` to processes that are none, `Auto(helpers=...)` to whichever takes less.
        replicated: every rank passes its own payload, equal to the root's, and none is sent: only the value, or what
            the first stage of a `Staged` makes. Each rank works when it asks. Payloads are compared by a fingerprint
            of their structure and of samples of their bytes.
        agree: encoding, decoding and materializing succeed on every rank or fail on every rank with the same error.
            Costs a round trip. "demand" makes no such promise.
        values: what a rank gets, if it is not the root: "private", memory of its own to write to, without a copy on the
            host; "readonly", arrays that refuse to be written to (tensors, which cannot, are copied); "copy", memory on
            the heap, faster for values that are overwritten as a whole. Below 64 KiB, values are copied anyway.
        trust: "pickle": ranks trust each other, as with torch's and MPI's object collectives. "data": payloads, values
            and hints are plain data and arrays, materializers are registered by name (`register_materializer`), and
            nothing that arrives is unpickled or imported. A collection of names: "pickle", and these are the exact
            names ("module.qualname") of all types and functions that may arrive, beside plain data, arrays and images;
            materializers are listed here, or registered. Whoever sends may construct listed classes with any
            arguments, set any attributes of their instances, and call listed functions: list data classes and pure
            functions. Names that give everything are refused.
        timeout_s: how long construction, and each call that does not say otherwise, may wait (seconds).
        memo: remember values, so that what was cast before is neither sent nor made again. See `Memo`.
        tuning: what is good as it is for most: back-pressure, shared memory, warnings, threads. See `Tuning`.

    Raises:
        ValueError, TypeError: an argument makes no sense; the other ranks raise ConfigMismatchError.
        ConfigMismatchError: ranks differ in root, roots, name, placement, owners, replicated, agree, values, trust or
            wire version.
        BackendUnavailableError: a library is missing or not initialised.
        CastTimeoutError: some rank, which is named, did not construct its object in time.
        MaterializeError: the `init` of a helper raised, or took longer than `timeout_s`. EncodeError: it cannot travel.
        BackendError: a rank went away, or the engine that connects them failed, meanwhile.
    Collective: every rank of the group constructs, in the same order.
    Blocking: until all ranks have come, up to `timeout_s`.
    Threads: one construction at a time on one group; the object itself is safe.
    Memory: payloads and values as its methods say.
    """

    @_with_old_names_refused
    def __init__(
        self,
        materialize: Callable[[P], V] | None = None,
        *,
        backend: str | Backend | object = "auto",
        root: int = 0,
        roots: str = "one",
        name: str = "default",
        placement: str | Shard | Auto | Helpers = "auto",
        replicated: bool = False,
        agree: bool = True,
        values: str = "private",
        trust: str | Collection[str] = "pickle",
        timeout_s: float = 300.0,
        memo: Memo | None = None,
        tuning: Tuning = Tuning(),  # noqa: B008  # it never changes
    ) -> None:
        note_devices()
        self._backend = discovery.resolve(backend)
        options = Options(
            materialize=materialize,
            root=root,
            name=name,
            agree=agree,
            values=values,
            timeout_s=timeout_s,
            replicated=replicated,
            roots=roots,
            memo=memo,
            **flat(placement, trust, tuning),
            debug=debug_wanted(),
        )
        self._options = options
        self._limit_s = 0.0  # of a call that has none of its own, once the options are known to be good
        began_s = time.monotonic()
        try:
            error = check(options, self._backend.size)
            given: object = tuning
            if not isinstance(given, Tuning):
                error = TypeError(f"tuning must be a Tuning, got {shown(given)}")
            self._engine: Engine = construction.meet(self._backend, options, error)
            self._lane = self._engine.own
        except (BackendError, CastTimeoutError) as exc:
            exc.operation, exc.phase, exc.age_s = "construct", "meeting the other ranks", time.monotonic() - began_s
            raise
        self._limit_s, _ = limit(None, options.timeout_s, self.rank)
        self._turns = Turns(self._lane.when_room, self._engine.forget_waker)
        lifetime.watch(self._engine)

    @property
    def rank(self) -> int:
        """This process's place in the group, 0-based and group-local."""
        return self._backend.rank

    @property
    def size(self) -> int:
        """The number of ranks."""
        return self._backend.size

    @property
    def root(self) -> int:
        """The rank that owns the payloads, group-local; with `roots="any"` this one, which owns those of its own."""
        return self.rank if self._options.roots == "any" else self._options.root

    @property
    def is_root(self) -> bool:
        """Whether this rank is the root, or one of several."""
        return self.rank == self.root

    @property
    def closed(self) -> bool:
        """Whether this rank has closed its object."""
        return self._engine.closed.is_set()

    def __repr__(self) -> str:
        options = self._options
        root = f"root {options.root}" if options.roots == "one" else "every rank a root"
        return (
            f"<LazyBroadcast {options.name!r} rank {self.rank} of {self.size}, {root}, "
            f"backend {self._backend.name}, placement {options.placement}>"
        )

    def broadcast(
        self,
        payload: P | Missing | None = MISSING,
        *,
        materialize: Callable[[P], V] | None = None,
        key: Key | None = None,
        timeout_s: float | None = None,
        priority: int = 0,
        root: int | None = None,
    ) -> V:
        """Cast `payload` to every rank and return the value.

        Args:
            payload: any picklable object; ignored except on the root, unless payloads are `replicated`. Arrays of any
                shape travel out of band.
            materialize: for this cast instead of the object's; ignored except on the root.
            key: a str, int (64 bits) or bytes (both up to 1 KiB) that names the cast, so that ranks may ask in any
                order. Per key the n-th call gets the n-th cast. Without one, a rank's n-th call without a key gets
                the root's n-th.
            timeout_s: instead of the object's (seconds; `math.inf` waits for as long as it takes). One that is over
                already is a CastTimeoutError.
            priority: of the casts that wait to be sent or made, on the root and on those who materialize, the ones with
                the highest go first, and of these the oldest; an int of 32 bits. Casts of one key, and those without
                one, are sent in order all the same. Ignored except on the root.
            root: with `roots="any"`, whose cast is asked for; without it, it is this rank's own.
        Returns: what the materializer made, or the payload without one. On the root without a materializer, the
            payload itself.
        Raises:
            EncodeError: the payload does not pickle, or is not plain data (root). RemoteError: the same, on the others.
            TrustError: the materializer is not registered or allowed (root; the others RemoteError), or what arrived is
                not allowed (every rank with `agree`, else where it happened).
            MaterializeError, DecodeError: on every rank with `agree`, else where it happened (an owner's on its host).
            PayloadMismatchError: some rank's replicated payload is another one than the root's, or it passed none.
            KeyInUseError: a call with this key is pending on this rank.
            CastTimeoutError: it took longer than `timeout_s`; names the phase and who is missing.
            PeerLostError: a rank died. ClosedError: a rank, or this one, has closed its object.
            TypeError: no payload on the root, or the materializer is not callable.
            ReentrantCallError: called from a materializer or callback of this object.
        Collective: every rank, in any order (matched by key) or in the same order (without).
        Blocking: until the value is here, up to `timeout_s`.
        Threads: safe; calls without a key from one thread per rank.
        Memory: `payload` must not change until the call returns; to resize it meanwhile can crash the process. The
            value is the caller's, to write to as well.
        """
        counted: list[bool] = []
        try:
            tracer, began_s = self._engine.tracer, time.monotonic()
            future, limit_s = self._begin(
                counted, payload, materialize, key, timeout_s, root, blocking=True, priority=priority
            )
        except BaseException as exc:
            if not counted and not self._engine.closed.is_set():
                # One step: more interrupts may come.
                self._engine.handed.waiting.append((self._engine.count_missed, (key, exc, root)))
                self._engine.thread.wake()
            raise
        finally:
            if left.frames:
                forget_frames()
        try:
            return future.result(limit_s + _GRACE_S)
        except concurrent.futures.TimeoutError as exc:
            if future.done():
                raise
            raise CastTimeoutError(f"the engine did not end a call in time:\n{self.dump()}", rank=self.rank) from exc
        finally:
            del future  # an error leads to its traceback, and that to this frame: it would lead back to the error
            if tracer is not None:
                tracer.took("broadcast", began_s, time.monotonic(), None, key=key if key is None else str(key))

    def broadcast_async(
        self,
        payload: P | Missing | None = MISSING,
        *,
        materialize: Callable[[P], V] | None = None,
        key: Key | None = None,
        timeout_s: float | None = None,
        priority: int = 0,
        block: bool = True,
        root: int | None = None,
    ) -> CastFuture[V]:
        """Cast `payload` to every rank and return a future for the value.

        Args: as for `broadcast`, and
            block: on the root, whether to wait for ranks that are behind (`max_inflight`). On the thread of a running
                asyncio loop it never waits.
        Returns: a `concurrent.futures.Future`, also awaitable. Its errors are those of `broadcast`.
        Raises: at once, on the root: TypeError, KeyInUseError, CastTimeoutError (held up by back-pressure),
            WouldBlockError (it would be, and is not to wait: then it does not count); on every rank: KeyInUseError,
            ClosedError of this rank's own object. Everything else through the future.
        Collective: every rank, in any order (matched by key) or in the same order (without).
        Blocking: never, short of back-pressure on the root (`max_inflight`).
        Threads: safe; calls without a key from one thread per rank.
        Memory: `payload` must not change until the future is done; to resize it meanwhile can crash the process.
        """
        counted: list[bool] = []
        try:
            block = block and asyncio._get_running_loop() is None  # the public one raises where there is none
            return self._begin(
                counted, payload, materialize, key, timeout_s, root, blocking=False, block=block, priority=priority
            )[0]
        except BaseException as exc:
            if not counted and not self._engine.closed.is_set():  # as above
                self._engine.handed.waiting.append((self._engine.count_missed, (key, exc, root)))
                self._engine.thread.wake()
            raise
        finally:
            forget_frames()

    def _begin(
        self,
        counted: list[bool],
        payload: P | Missing | None,
        materialize: Callable[[P], V] | None,
        key: Key | None,
        timeout_s: float | None,
        root: int | None,
        *,
        blocking: bool,
        block: bool = True,
        priority: int = 0,
    ) -> tuple[CastFuture[V], float]:
        """Make a call; return its future and its time limit.

        Every call counts, whatever ends it: an interrupt before it has its place in line, or an exception of anybody's
        code. What is in `counted` then says that it has counted, or is not to.
        """
        engine, lane, bad = self._engine, self._lane, None
        if root is not None:
            try:
                lane = engine.of(root)
            except ValueError:
                counted.append(False)
                raise
        if key is not None:
            key, bad = usable_key(key)
        if bad is not None or engine.forked:
            counted.append(False)
            engine.refuse_after_fork()
            assert bad is not None
            try:
                raise bad
            finally:
                del bad  # it leads to its traceback, and that to this frame: it would lead back to it
        if "torch" in sys.modules:
            note_devices()
        limit_s, refusal, in_the_middle = self._limit_s, None, None
        if timeout_s is not None:
            limit_s, refusal = limit(timeout_s, limit_s, self.rank)
        if type(priority) is not int or priority:
            casts = self.is_root and (root is None or root == self.rank)
            priority, wrong = usable_priority(priority) if casts else (0, None)
            refusal = refusal or wrong
        if here.depth or here.roles:
            in_the_middle = engine.in_the_middle("broadcast()")
            if blocking:
                refusal = in_the_middle or engine.reentrant("broadcast()") or refusal
        try:
            if in_the_middle is None:
                call = lane.call if engine.spans is None else engine.spans.around(lane)
                future = call(
                    payload,
                    materialize,
                    key,
                    limit_s,
                    refusal,
                    here=blocking,
                    block=block,
                    priority=priority,
                    counted=counted,
                )
            else:
                future = lane.asks.call_later(payload, materialize, key, limit_s, refusal, priority=priority)
                counted.append(True)
                if blocking:
                    raise in_the_middle
        finally:
            del refusal, in_the_middle  # as above
        return future, limit_s

    async def cast(
        self,
        payload: P | Missing | None = MISSING,
        *,
        materialize: Callable[[P], V] | None = None,
        key: Key | None = None,
        timeout_s: float | None = None,
        priority: int = 0,
        root: int | None = None,
    ) -> V:
        """Cast `payload` to every rank and return the value, without ever blocking asyncio's loop.

        On the root it waits, beside the loop's other tasks, while ranks are behind (`max_inflight`). Calls of one loop
        keep their order.

        Args, Returns, Raises: as for `broadcast`. A CastTimeoutError of a call for which there was no room in time
            counts, as any other. Cancelling the task before there is room leaves nothing behind.
        Collective: as `broadcast`. Blocking: never. Threads: of a running asyncio loop, or uvloop's.
        """
        limit_s, _ = limit(timeout_s, self._options.timeout_s, self.rank)

        def late() -> CastFuture[V]:
            """It ends as any other call does for which there was no room."""
            counted: list[bool] = []
            try:
                return self._begin(counted, payload, materialize, key, _NOW_S, root, blocking=False, priority=priority)[
                    0
                ]
            except BaseException as exc:
                if not counted and not self._engine.closed.is_set():
                    self._engine.handed.waiting.append((self._engine.count_missed, (key, exc, root)))
                    self._engine.thread.wake()
                raise
            finally:
                forget_frames()

        call = functools.partial(
            self.broadcast_async,
            payload,
            materialize=materialize,
            key=key,
            timeout_s=timeout_s,
            priority=priority,
            block=False,
            root=root,
        )
        if self._options.beyond == "refuse" or (root is not None and root != self.rank):  # those ask, and never wait
            return await call()
        return await (await self._turns.take(call, late, limit_s))

    def has_room(self) -> bool:
        """Return whether `broadcast_async` would return at once now, instead of waiting for ranks that are behind.

        For a loop on the root that must not be held up: it casts only if there is room, and else comes back later. One
        thread that casts can rely on it; with several, another may take the room. Elsewhere it is always True.
        Collective: no. Blocking: never. Threads: safe.
        """
        self._engine.refuse_after_fork()
        return self._lane.has_room()

    def next(
        self, *, timeout_s: float | None = None, keyed: bool = False, root: int | None = None
    ) -> tuple[Key | None, CastFuture[V]] | None:
        """Take what has come: the key and the future of the first cast that nobody on this rank has asked for.

        For a rank that does not know beforehand what the root will cast. Casts come in the root's order, the same on
        every rank, each exactly once, beside calls that ask by key; what is taken counts as this rank's call for it.
        Also `async for key, future in lazy`, until the root, or this rank, closes.

        Args:
            timeout_s: how long to wait for one (seconds; the object's by default). 0 only looks.
            keyed: leave casts without a key to calls without a key.
            root: with `roots="any"`, whose casts; without it those of all other ranks, as they come here (each root's
                in its order; between roots, ranks may see another order). The future's `root` says whose it is.
        Returns: the key, None of a cast without one, and a future as `broadcast_async` returns it, with the object's
            time limit. It may be done, or still be made, have failed, or been withdrawn. None if nothing has come.
        Raises:
            ValueError: on the root, which has the futures of its calls, and with `replicated` payloads, of which each
                rank must pass its own.
            PeerLostError: a rank died, and all that had come was taken. ClosedError: the same of a root that has
                closed (of several, the last), unless this only looks; and of this rank's own object.
            ReentrantCallError: it would wait inside a materializer or callback of this object.
        Collective: no. Blocking: up to `timeout_s`. Threads: safe; each cast goes to one of them.
        """
        wait_s = wait_limit(timeout_s, self._options.timeout_s)
        if wait_s > 0 and here.roles:
            self._engine.guard("next()")
        if root is not None and root == self.rank and self._options.roots == "any":
            raise ValueError(f"lazycast {self._options.name!r}: next(root={root}) is this rank, which has its futures")
        return self._next(wait_s, root, keyed=keyed, looks=wait_s == 0)

    def _next(
        self, wait_s: float, root: int | None, *, keyed: bool, looks: bool
    ) -> tuple[Key | None, CastFuture[V]] | None:
        if here.depth or self._engine.forked:
            self._engine.refuse_after_fork()
            in_the_middle = self._engine.in_the_middle("next()")
            if in_the_middle is not None:
                raise in_the_middle
        taken: list[tuple[Key | None, CastFuture[V]]] = []
        try:
            try:
                self._engine.of(root).next_call(taken, wait_s, self._limit_s, keyed=keyed, looks=looks)
            finally:
                forget_frames()
            return taken[0] if taken else None
        except BaseException:
            self._engine.given_back.extend(taken)  # one step: more interrupts may come
            if taken:
                self._engine.tell_changed()
            raise

    async def __aiter__(self) -> AsyncIterator[tuple[Key | None, CastFuture[V]]]:
        """What `next` returns, one after the other, beside the loop's other tasks."""
        while True:
            try:
                came = self._next(0.0, None, keyed=False, looks=False)
            except ClosedError:
                self._engine.refuse_after_fork()
                return
            if came is None:
                await until(self._lane.when_come, self._engine.forget_waker)
            else:
                yield came

    def ready(self) -> list[Key]:
        """Return the keys of casts that every rank has, each once, in the order in which they got there.

        On the root (of its own casts, where there are several), for a loop whose ranks are to take up a request in the
        same step: what the root casts after this call, with these keys in it say, comes to every rank after the news
        that their casts are whole, so their futures are done there. The first call begins to note: make it before the
        first cast. A loop that has begun calls it in every step, or the list grows. Casts that fail are not in it:
        their futures say so.

        Raises:
            ValueError: on a rank that is not the root, and without `agree` or with placement "demand", where nobody
                knows what others have.
        Collective: no. Blocking: never. Threads: safe.
        """
        self._engine.refuse_after_fork()
        return self._lane.asks.ready()

    def discard(self, key: Key, *, root: int | None = None) -> None:
        """Say that this rank will not ask for the next cast with `key`; with `roots="any"` of that `root`.

        An owner still works for the others of its host; with replicated payloads it passes the cast on to another.
        On the root, which does not ask, it withdraws a pending cast with this key, as `CastFuture.cancel` does.
        Collective: no. Blocking: never. Threads: safe.
        """
        counted: list[bool] = []
        try:
            self._discard(counted, key, root)
        except BaseException:
            if not counted and not self._engine.closed.is_set():  # as a call does
                self._engine.handed.waiting.append((self._engine.discard_of, (root, key)))
                self._engine.thread.wake()
            raise
        finally:
            forget_frames()

    def _discard(self, counted: list[bool], key: Key, root: int | None) -> None:
        engine = self._engine
        try:
            lane = engine.of(root)
        except ValueError:
            counted.append(False)
            raise
        usable, bad = usable_key(key)
        if usable is None and bad is None:
            bad = TypeError("discard() needs a key")
        if bad is not None or engine.forked:
            counted.append(False)
            engine.refuse_after_fork()
            assert bad is not None
            raise bad
        if here.depth:
            engine.handed.put(lane.discard, usable)
            counted.append(True)
        else:
            lane.discard(cast(Key, usable), counted)

    @overload
    def stats(self, *, group: Literal[False] = False) -> Stats: ...

    @overload
    def stats(self, *, group: Literal[True]) -> GroupStats: ...

    def stats(self, *, group: bool = False) -> Stats | GroupStats:
        """Return counts and timings of this rank, and how casts are placed.

        Args:
            group: on the root, what every rank has counted, as far as the root has heard; see `GroupStats`.
        Raises: ValueError with `group` on a rank that is not the root.
        Collective: no; ranks tell the root unasked. Local, never blocks. Threads: safe.
        """
        return self._engine.looks.group_stats() if group else self._engine.looks.stats()

    def __getattr__(self, name: str) -> Any:
        if name == "group_stats":
            raise AttributeError("LazyBroadcast has no group_stats(): write stats(group=True)")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def trace(self, folder: str | os.PathLike[str]) -> Tracer:
        """Write what this rank's casts do, and when, to a new file in `folder`, until it is stopped.

        Args:
            folder: made if it does not exist; the same for all ranks, for `lazycast trace merge`.
        Returns: what to `stop()`, also a context manager; `path` is the file. `close` stops it too.
        Raises:
            ValueError: this object is being traced already. OSError: there is no such folder to be made, or written to.
        Collective: no; each rank that is to be seen calls it. The environment variable LAZYCAST_TRACE=folder traces
            every object from its construction on.
        Blocking: no; `stop` until all is written, up to 5 s. Threads: safe.
        """
        return self._engine.looks.trace(Path(folder))

    def dump(self) -> str:
        """Return this rank's whole state as text for a human.

        Calls that wait, since when and for whom; the queue, the books on other ranks and the mailbox; who holds shared
        memory; when each neighbour was last heard; threads and counters. `lazycast.dump_all` does it for all objects.
        Local, never blocks. Threads: safe, in a signal handler too.
        """
        return self._engine.looks.dump()

    def close(self, *, timeout_s: float | None = None) -> None:
        """Finish pending calls, fail those that do not finish, say farewell to the other ranks, and end all threads.

        Args:
            timeout_s: how long pending calls may take (seconds; by default 30 or the object's `timeout_s` if less).
        After it, calls raise ClosedError here, and later casts fail with ClosedError naming this rank on the others.
        Values outlive it. Twice is fine. An object that is not closed lives until the interpreter exits, and is closed
        then, with 5 seconds for what is pending.
        Collective: no, but a cast needs all ranks, so close when this rank's last cast is done.
        Blocking: up to `timeout_s`, and about a round trip; a second or so if a rank does not answer. Threads: safe.
        """
        in_the_middle = self._engine.in_the_middle("close()")
        if in_the_middle is not None:
            raise in_the_middle
        if role_of(self._engine) is not None:
            self._engine.guard("close()")
        self._close(min(_CLOSE_TIMEOUT_S, self._options.timeout_s) if timeout_s is None else timeout_s)

    def _close(self, timeout_s: float) -> None:
        self._engine.close(timeout_s)
        lifetime.forget(self._engine)

    def __enter__(self) -> LazyBroadcast[P, V]:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        # An exception may have kept this rank from calls that others make: do not wait for them as long as usual.
        self.close(timeout_s=None if exc_type is None else min(1.0, self._options.timeout_s))
