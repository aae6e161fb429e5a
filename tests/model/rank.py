"""One rank of the model check: makes its calls, is interrupted while it does, and says how each of them ended."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import lazycast
from lazycast import CastTimeoutError, ClosedError, LazyBroadcast, LazycastError, PeerLostError
from lazycast.backends.local import LocalBackend
from lazycast.core.future import CastFuture
from lazycast.core.mailbox import Mailbox
from lazycast.testing.kit import spelled
from lazycast.tools.soak.rank import Meeting

from . import casting, plan
from .plan import BLOCK, CANCEL, DISCARD, TAKE, Cast, World

#: No call of this check takes so long; what does hangs (seconds).
LIMIT_S = 40.0
_GAPS_S = (0.0005, 0.006)  # between two signals
_PACKAGE = str(Path(lazycast.__file__).parent)

INTERRUPTED = "interrupted"


class Ending(NamedTuple):
    """How a call of this rank ended: "value", "cancelled", "discarded", "interrupted", an error, or what is wrong.

    `again`: an earlier call with this key may still have been pending here.
    """

    burst: int
    thing: int
    cast: int
    ending: str
    again: bool = False


class Alarm(Exception):
    """What the handler of SIGALRM raises, as those of watchdogs do."""


class Interrupter:
    """Sends signals to this process's main thread at random moments. They raise if they come in a call of lazycast."""

    def __init__(self, seed: str) -> None:
        self._rng = random.Random(seed)
        self._over = threading.Event()
        self._main = threading.main_thread().ident or 0
        self._armed = False
        self.times = 0
        self.hit = ""  # where the last one came
        self._thread = threading.Thread(target=self._send, name="interrupter", daemon=True)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGALRM)}
        self._thread.start()
        try:
            yield
        finally:
            self._over.set()
            self._thread.join()
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def armed(self) -> Iterator[None]:
        """Signals may raise, once, in what the main thread does here."""
        self._armed = threading.get_ident() == self._main
        try:
            yield
        finally:
            if threading.get_ident() == self._main:
                self._armed = False

    def _send(self) -> None:
        while not self._over.wait(self._rng.uniform(*_GAPS_S)):
            signal.pthread_kill(self._main, self._rng.choice((signal.SIGINT, signal.SIGALRM)))

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self._armed and _is_in_a_call(sys._getframe(1)):
            self._armed, self.times, self.hit = False, self.times + 1, _place(sys._getframe(1))
            raise KeyboardInterrupt if number == signal.SIGINT else Alarm


def _of_lazycast(frame: FrameType | None) -> list[FrameType]:
    """Return the frames of lazycast below those of this module, which are the caller's, the innermost first."""
    frames = []
    while frame is not None and frame.f_code.co_filename != __file__:
        if frame.f_code.co_filename.startswith(_PACKAGE):
            frames.append(frame)
        frame = frame.f_back
    return frames


def _is_in_a_call(frame: FrameType | None) -> bool:
    """Whether a call of lazycast has begun: at the very first instruction nobody can know that it was meant."""
    frames = _of_lazycast(frame)
    return bool(frames) and (frames[-1] is not frame or frame.f_lineno != frame.f_code.co_firstlineno)


def _place(frame: FrameType | None) -> str:
    """Say where in lazycast a signal has come, the innermost frame first."""
    return " < ".join(f"{Path(f.f_code.co_filename).name}:{f.f_lineno}" for f in _of_lazycast(frame))


class _Object:
    """A rank's end of one thing, and which keys may have a call pending. A key belongs to one thread at a time."""

    def __init__(self, index: int, thing: plan.Thing, lazy: LazyBroadcast[Any, Any]) -> None:
        self.index, self.thing, self.lazy = index, thing, lazy
        self.is_root = lazy.rank == thing.root
        #: What each call says of whose cast it is.
        self.root: dict[str, int] = {"root": thing.root} if thing.any_root and not self.is_root else {}
        self.pending: set[plan.Key] = set()
        self.taken: list[tuple[plan.Key | None, CastFuture[Any]]] = []  # as it came
        self.taking = threading.Lock()


class _Rank:
    """This process in one world."""

    def __init__(self, world: World, me: int, folder: Path, interrupter: Interrupter) -> None:
        self._world, self._me, self._folder, self._interrupter = world, me, folder, interrupter
        self._endings: list[Ending] = []  # threads append
        self._collected: list[tuple[_Object, Cast, bool, CastFuture[Any]]] = []
        self._kept: list[tuple[plan.Thing, Cast, Any]] = []
        self._hits = (folder / f"hits.{me}").open("w")  # a file: another rank may be the one to find what is wrong

    def run(self, meeting: Meeting) -> list[Ending]:
        with contextlib.ExitStack() as stack:
            objects: dict[int, _Object] = {}
            made: dict[str, LazyBroadcast[Any, Any]] = {}
            for index, thing in enumerate(self._world.things):
                if self._me in thing.members:
                    if thing.of not in made:
                        made[thing.of] = stack.enter_context(self._construct(thing))
                    objects[index] = _Object(index, thing, made[thing.of])
            for burst in self._world.bursts:
                self._burst(objects, burst)
                if burst.taken:
                    meeting.meet()
            meeting.meet()  # who closes before the others have all they were sent would be named by them
        self._check_kept()
        self._hits.close()
        return self._endings

    def _construct(self, thing: plan.Thing) -> LazyBroadcast[Any, Any]:
        folder = self._folder / f"{self._world.seed.replace('/', '-')}.{thing.of}"
        folder.mkdir(exist_ok=True)
        backend = LocalBackend(thing.members.index(self._me), len(thing.members), str(folder))
        return LazyBroadcast(backend=backend, name=thing.of, timeout_s=LIMIT_S, **spelled(thing.options))

    def _burst(self, objects: dict[int, _Object], burst: plan.Burst) -> None:
        main, *others = plan.order(self._world, burst, self._me)
        with concurrent.futures.ThreadPoolExecutor(max(1, len(others))) as threads:
            running = [threads.submit(self._ask_all, objects, burst, part) for part in others]
            self._ask_all(objects, burst, main)
            for thread in running:
                thread.result()
        for at in objects.values():
            self._sort_out(at, burst.casts[at.index])
        for at, cast, _, future in self._collected:
            if cast.asks[at.lazy.rank] == CANCEL and cast.number % 2:
                self._cancel(future)
        for at, cast, again, future in self._collected:
            self._note(burst.number, at, cast, again, self._collect(at, cast, future))
        self._collected.clear()
        self._wait_for_the_interrupted(objects)

    def _sort_out(self, at: _Object, casts: tuple[Cast, ...]) -> None:
        """Find out which casts were taken: of each key the first is the first of the burst."""
        lines: dict[tuple[type, plan.Key | None], list[Cast]] = {}
        for cast in casts:
            lines.setdefault((type(cast.key), cast.key), []).append(cast)
        for key, future in at.taken:
            self._collected.append((at, lines[type(key), key].pop(0), False, future))
        at.taken.clear()

    def _take(self, objects: dict[int, _Object], at: _Object, *, mixed: bool) -> None:
        """Take what has come, whatever it is; who is interrupted before that takes it later."""
        others = {one.thing.root: one for one in objects.values() if one.lazy is at.lazy}
        with others[min(others)].taking:  # several threads would mix up the order of what they get
            while True:
                try:
                    with self._interrupter.armed():
                        came = at.lazy.next(timeout_s=LIMIT_S, root=None if mixed else at.root.get("root"))
                except (KeyboardInterrupt, Alarm):
                    continue
                assert came is not None, f"world {self._world.seed}, {at.thing}: nothing comes\n{self._state(at)}"
                others[came[1].root].taken.append(came)
                return

    def _wait_for_the_interrupted(self, objects: dict[int, _Object]) -> None:
        """A call that was interrupted counts, and its cast ends by itself: then its key is free again."""
        deadline_s = time.monotonic() + 1.5 * LIMIT_S
        for at in objects.values():
            while at.lazy.stats().pending:
                if time.monotonic() > deadline_s:
                    raise AssertionError(f"world {self._world.seed}, {at.thing}: calls hang\n{self._state(at)}")
                time.sleep(0.001)
            at.pending.clear()

    def _ask_all(self, objects: dict[int, _Object], burst: plan.Burst, part: list[tuple[int, Cast]]) -> None:
        for index, cast in part:
            at = objects[index]
            if cast.asks[at.lazy.rank] == TAKE:
                self._take(objects, at, mixed=burst.mixed)
                continue
            again = cast.key in at.pending
            ending = self._ask(at, cast, again)
            if ending is not None:
                self._note(burst.number, at, cast, again, ending)

    def _note(self, burst: int, at: _Object, cast: Cast, again: bool, ending: str) -> None:
        self._endings.append(Ending(burst, at.index, cast.number, ending, again))

    def _ask(self, at: _Object, cast: Cast, again: bool) -> str | None:
        """Make the call that the plan has for a cast; None if its future is collected later."""
        how = cast.asks[at.lazy.rank]
        arguments: dict[str, Any] = {"key": cast.key, **at.root}
        if at.is_root:
            arguments |= {"materialize": casting.materializer(cast), "priority": cast.priority}
        payload = casting.payload(at.thing, cast) if at.is_root else None
        if cast.key is not None and how != DISCARD:
            at.pending.add(cast.key)
        future = None
        try:
            with self._interrupter.armed():
                if how == DISCARD:
                    at.lazy.discard(cast.key, **at.root)
                elif how == BLOCK:
                    value = at.lazy.broadcast(payload, **arguments)
                else:
                    future = at.lazy.broadcast_async(payload, **arguments)
        except (KeyboardInterrupt, Alarm):
            what = f"{at.thing.name}: rank {self._me} in its call for {cast.number}, key {cast.key!r}, {how}"
            self._hits.write(f"{what}, at {self._interrupter.hit}\n")
            self._hits.flush()
            return INTERRUPTED
        except concurrent.futures.CancelledError:
            ending = "cancelled"
        except (LazycastError, TypeError) as exc:
            ending = self._named(at, cast, exc)
        else:
            if future is not None:
                if how == CANCEL and not cast.number % 2:
                    self._cancel(future)
                self._collected.append((at, cast, again, future))
                return None
            ending = "discarded" if how == DISCARD else self._checked(at, cast, value)
        if not again and cast.key is not None:
            at.pending.discard(cast.key)  # this was the only call, and it is over
        return ending

    def _cancel(self, future: CastFuture[Any]) -> None:
        with contextlib.suppress(KeyboardInterrupt, Alarm), self._interrupter.armed():
            future.cancel()

    def _collect(self, at: _Object, cast: Cast, future: CastFuture[Any]) -> str:
        """Wait for a future, however often that is interrupted."""
        while True:
            try:
                with self._interrupter.armed():
                    value = future.result()
            except (KeyboardInterrupt, Alarm):
                continue
            except concurrent.futures.CancelledError:
                ending = "cancelled"
            except (LazycastError, TypeError) as exc:
                ending = self._named(at, cast, exc)
            else:
                ending = self._checked(at, cast, value)
            return ending

    def _named(self, at: _Object, cast: Cast, exc: BaseException) -> str:
        """Return an error as the oracle calls it. After one that no plan has, nothing can be judged any more."""
        if isinstance(exc, (CastTimeoutError, PeerLostError, ClosedError)):
            raise AssertionError(f"world {self._world.seed}, {at.thing}, {cast}\n{self._state(at)}") from exc
        rank = getattr(exc, "rank", None)
        return type(exc).__name__ + (f":{rank}" if rank is not None else "")

    def _state(self, at: _Object) -> str:
        """Say how an object stands, and where its calls were interrupted in this world, on all ranks."""
        lines = [line for path in sorted(self._folder.glob("hits.*")) for line in path.read_text().splitlines()]
        hits = [line for line in lines if line.startswith(f"{at.thing.name}: ")]
        return "\n".join([at.lazy.dump(), "interrupted:", *hits])

    def _checked(self, at: _Object, cast: Cast, value: Any) -> str:
        """Compare a value with what the model makes of the plan; then overwrite it, or keep it."""
        if cast.kind != "value":
            return f"wrong value: {value!r:.200} of a cast that can have none"
        wrong = casting.difference(value, casting.value(at.thing, cast))
        if wrong is not None:
            return f"wrong value: {wrong}"
        content = value[1] if isinstance(value, tuple) else value
        if cast.number % 16 == 5:
            self._kept.append((at.thing, cast, value))
        elif content["data"].flags.writeable:
            content["data"][...] = -1  # it is this rank's alone
        return "value"

    def _check_kept(self) -> None:
        for thing, cast, value in self._kept:
            wrong = casting.difference(value, casting.value(thing, cast))
            assert wrong is None, f"world {self._world.seed}, {thing}, {cast}: kept and changed: {wrong}"


def swap_mails() -> None:
    """Plant a defect: of three arrivals that wait with one key, the second and the third come in the wrong order."""
    arrive = Mailbox.arrive

    def wrongly(self: Mailbox[Any, Any], key: Any, arrival: Any) -> Any:
        ask = arrive(self, key, arrival)
        waiting = self._arrivals.get(key)
        if ask is None and waiting is not None and len(waiting) == 3:
            waiting[1], waiting[2] = waiting[2], waiting[1]
        return ask

    Mailbox.arrive = wrongly  # type: ignore[method-assign]


def run(seed: str, ranks: int, casts: int, interrupts: bool, planted: bool) -> tuple[list[list[Ending]], int]:
    """On one rank: run the worlds of a seed. Return the endings in each, and how often this rank was interrupted."""
    if planted:
        swap_mails()
    me, folder = int(os.environ["LAZYCAST_RANK"]), Path(os.environ["LAZYCAST_RENDEZVOUS"])
    meeting = Meeting(LocalBackend(me, ranks, str(folder)), 2 * LIMIT_S)
    interrupter = Interrupter(f"{seed}/{me}")
    endings = []
    with interrupter.at_work() if interrupts else contextlib.nullcontext():
        for world in plan.worlds(seed, ranks, casts, interrupts=interrupts):
            endings.append(_Rank(world, me, folder, interrupter).run(meeting))
            meeting.meet()
    meeting.close()
    return endings, interrupter.times
