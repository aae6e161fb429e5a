"""The leader's part of a cast, carried out by its helpers: where payloads lie, where values go, and what they lack.

Guarantees:

* Nothing that a helper is to run is imported, unpickled or run on the rank. What it needs is handed on as it came.
* A payload that lies in this rank's shared memory is not copied; a value is, once, to where the ranks of its host get
  it.
* A helper is as much of the object as a rank: it decodes and loads what the object's `trust` allows. What this rank has
  registered is its own, and goes to its helpers as code.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from lazycast.codec.pickling import Layout, allocate
from lazycast.core.failures import clip, from_exception
from lazycast.core.helpers import program
from lazycast.core.helpers.pool import Pool
from lazycast.core.helpers.process import Order, Unmade
from lazycast.core.helpers.talk import INLINE_NBYTES, Config
from lazycast.core.performer import Group
from lazycast.errors import EncodeError
from lazycast.materialize import bycode
from lazycast.materialize.materializers import Materializer, registered
from lazycast.net.relay import Room
from lazycast.net.wire import MaterializerRef
from lazycast.options import Options
from lazycast.tracebacks import describe

_MAX_REASON = 500


class Places(Protocol):
    """Where a rank has room for what its host is to see: its relay."""

    def room(self, nbytes: int, *, host: bool = False) -> Room: ...

    def locate(self, body: memoryview) -> tuple[int, int, int] | None: ...


class Alone:
    """The same for a rank that nobody shares memory with."""

    def room(self, nbytes: int, *, host: bool = False) -> Room:
        """Return memory of this process."""
        return Room(allocate(nbytes))

    def locate(self, body: memoryview) -> tuple[int, int, int] | None:
        """Nothing lies where others see it."""
        return None


class HelpedValue(NamedTuple):
    """What helpers have made: where it lies, and what it took."""

    room: Room
    nbytes: int
    layout: Layout
    seconds: float
    cpu_s: float
    helper: int
    ended_s: float
    items: int = 0


class Maker:
    """See the module's text. Thread-safe, once it has begun.

    Raises: EncodeError for an `init` that cannot travel.
    """

    def __init__(self, group: Group, options: Options) -> None:
        assert options.helpers is not None
        self._rank, self._host = group.rank, group.hosts[group.rank]
        place = program.where()
        self._same_program = group.same_program and place is not None
        init = b"" if options.helpers.init is None else self._as_code(options.helpers.init, "Helpers: init")
        config = Config(
            0,
            self._rank,
            self._host,
            options.trust,
            None if options.allow is None else list(options.allow),
            options.values == "readonly",
            self._same_program,
            place if self._same_program else None,
            list(sys.argv),
            options.helpers.memory_nbytes,
            len(init),
        )
        self.pool = Pool(options.helpers, config, init, f"lazycast-{options.name}-helpers")

    def _as_code(self, fn: Callable[..., object], what: str) -> bytes:
        try:
            return bycode.dumps(fn, same_program=self._same_program)
        except Exception as exc:
            text = f"{what} cannot travel to helpers: {clip(describe(exc), _MAX_REASON)}"
            raise EncodeError(text, rank=self._rank, host=self._host) from exc

    def make(
        self,
        seq: int,
        ref: MaterializerRef,
        body: memoryview,
        layout: Layout,
        places: Places,
        code_for: Callable[[str], bytes],
        unwanted: Callable[[], bool],
        part: tuple[int, int] | None = None,
        numbers: list[int] | None = None,
    ) -> HelpedValue:
        """Have a value made. Blocking: until it is there.

        Args:
            body: the payload, as `layout` says; it stays as it is.
            code_for: returns the code of a materializer that a helper lacks.
            part, numbers: of an `Each`, which part of how many is to be made, and of which items: see `Some`.
        Raises: Unmade with the reason; what `code_for` raises; LookupError for what is not registered.
        """
        rooms: list[Room] = []

        def room_for(nbytes: int) -> memoryview:
            try:
                rooms[:] = [places.room(nbytes, host=True)]
            except MemoryError as exc:
                what = "there was no room for a value"
                raise Unmade(from_exception("encode", what, exc, rank=self._rank, host=self._host), exc) from exc
            return rooms[0].view[:nbytes]

        trusted = registered(ref)
        if trusted is not None:
            ref, code_for = self._own(ref, trusted)
        found = places.locate(body) if body.nbytes > INLINE_NBYTES else None
        at = None if found is None else (0, *found)
        order = Order(
            seq, ref, trusted is not None, body, layout.stream_nbytes, layout.frames, at, code_for, part, numbers
        )
        made = self.pool.make(order, room_for, unwanted)
        layout = Layout(made.stream_nbytes, made.frames)
        took = made.seconds, made.cpu_s, made.helper, time.monotonic()
        return HelpedValue(rooms[0], made.nbytes, layout, *took, made.items)

    def _own(self, ref: MaterializerRef, fn: Materializer) -> tuple[MaterializerRef, Callable[[str], bytes]]:
        """Return how what this rank has registered gets to a helper: as code, named by what it is now."""
        code = self._as_code(fn, f"materializer {ref.name!r}")
        own = MaterializerRef("own:" + hashlib.sha256(code).hexdigest(), ref.name)
        return own, lambda ident: code
