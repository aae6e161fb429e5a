"""What runs in a helper: takes jobs from its leader, one after another, and makes values.

Guarantees:

* It ends when its leader does: the kernel kills it (`PR_SET_PDEATHSIG`), and the end of a socket ends it too, also in
  the middle of a materializer.
* Materializers run in one thread that is not the main one, as on a rank, and see what a new thread has.
* A payload is private memory; what a materializer keeps of one is its own as long as it keeps it.
* Whatever a job raises is that job's failure, and the next one is made.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import socket
import struct
import sys
import threading
import time
from types import CoroutineType
from typing import Any

import msgspec

from lazycast.codec.pickling import Encoded, Layout
from lazycast.codec.trust import policy_for
from lazycast.core.failures import from_exception
from lazycast.core.helpers import program, talk
from lazycast.core.helpers.reading import address_of
from lazycast.core.helpers.talk import (
    TELLS_S,
    Config,
    Done,
    Item,
    Job,
    Lacking,
    Memory,
    Over,
    Raised,
    Stream,
    Taken,
    Talk,
)
from lazycast.core.performer import COROUTINE
from lazycast.core.surroundings import apart
from lazycast.core.workers import unforked
from lazycast.errors import TrustError
from lazycast.here import call_out, here, own_thread
from lazycast.materialize.each import Each, Some, place_of_failure
from lazycast.materialize.materializers import CodeMissing, Loader, Materializer, name_of
from lazycast.net.host.memory import Region, pages
from lazycast.net.wire import Failure, FailureKind
from lazycast.tracebacks import forget_frames, forget_our_locals

CANCEL = struct.Struct("<Q")
BYE = b"bye"
_MOST_TRUSTED = 256
_OOM_SCORE = 500  # of 1000: where memory ends, a helper goes before a rank


def main(life_fd: int, work_fd: int) -> None:
    """Run as the main thread of a helper: see when the leader ends, or withdraws what is made."""
    life = socket.socket(fileno=life_fd)
    work = Talk(socket.socket(fileno=work_fd))
    # A wish: not every system has it.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write(str(_OOM_SCORE))
    cancelled = [0]  # the number of the job that nobody wants any more
    threading.Thread(target=_serve, args=(work, life, cancelled), name="lazycast-helper", daemon=True).start()
    while True:
        try:
            said = life.recv(1024)
        except OSError:
            said = b""
        if said == BYE:
            return
        if not said:
            os._exit(0)
        cancelled[0] = CANCEL.unpack(said)[0]


def _serve(work: Talk, life: socket.socket, cancelled: list[int]) -> None:
    own_thread()
    try:
        config, _ = work.receive()
        assert isinstance(config, Config)
        worker = _Worker(work, config, cancelled)
        life.send(worker.begin(bytes(work.body(config.init_nbytes))))
        while True:
            message, fds = work.receive()
            worker.take(message, fds)
            del message
            forget_frames()
    except (talk.Ended, OSError):
        os._exit(0)
    except BaseException:  # a defect: the leader hears of it by this process's end, and what is printed
        sys.excepthook(*sys.exc_info())
        os._exit(70)


class _Worker:
    """Makes values. Used by one thread."""

    def __init__(self, work: Talk, config: Config, cancelled: list[int]) -> None:
        self._work, self._config, self._cancelled = work, config, cancelled
        self._policy = policy_for(config.trust, config.allow, same_program=config.same_program)
        self._encode, self._decode = unforked(self._policy.codec.encode), unforked(self._policy.codec.decode)
        self._loader = Loader(self._policy)
        self._trusted: dict[str, Any] = {}  # the leader's own: code, and once that is loaded, what it was of
        self._program = program.Program(config.program)
        sys.argv[:] = config.argv
        self._memories: dict[int, Region] = {}
        self._held: dict[int, None] = {}  # jobs whose payload something still refers to

    def begin(self, init: bytes) -> bytes:
        """Call `init`, if there is one; return what the leader is to hear: nothing, or why this helper is no good."""
        self._limit_memory()
        failure: Failure | None = None
        if init:
            try:
                call_out(apart, self._unpickled(init))
            except BaseException as exc:  # SystemExit too: it is not for this thread
                failure = self._failure("materialize", "init raised", exc)
        return msgspec.msgpack.encode(failure)

    def _limit_memory(self, more_nbytes: int = 0) -> None:
        """Keep to `memory_nbytes`, beside the mappings that payloads are looked at through."""
        if self._config.memory_nbytes is None:
            return
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        nbytes = self._config.memory_nbytes + more_nbytes + sum(region.nbytes for region in self._memories.values())
        soft = nbytes if hard == resource.RLIM_INFINITY else min(nbytes, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

    def _unpickled(self, code: bytes) -> Any:
        if program.names(code):
            self._program.bring()
        return pickle.loads(code)

    def take(self, message: talk.Message, fds: list[int]) -> None:
        """Do what the leader says. Raises Ended."""
        if isinstance(message, Memory):
            (fd,) = fds
            try:
                self._limit_memory(message.nbytes)
                self._memories[message.ident] = Region(fd, message.nbytes, private=True)
            finally:
                os.close(fd)
        elif isinstance(message, Job):
            self._do(message)
        else:
            raise TypeError(f"a leader says no {type(message).__name__}")

    def _do(self, job: Job) -> None:
        for ident, nbytes in job.codes:
            code = bytes(self._work.body(nbytes))
            if job.trusted:
                self._trusted[ident] = code
            else:
                self._loader.learn(ident, code)
        answer, encoded = self._answer(job)
        if encoded is None:
            self._work.send(answer)
        else:
            self._hand_over(answer, encoded)
            encoded.discard()
        del encoded
        forget_frames()
        self._work.send(Over(list(self._held)))

    def _answer(self, job: Job) -> tuple[talk.Message, Encoded | None]:
        try:
            body = self._payload(job)
        except MemoryError as exc:
            self._work.skip(job.nbytes)
            return Raised(self._failure("decode", "there was no memory for a payload", exc), 0.0), None
        return self._make(job, body)

    def _payload(self, job: Job) -> memoryview:
        if job.at is None:
            return self._work.body(job.nbytes)
        ident, offset = job.at
        region, number = self._memories[ident], job.number
        self._held[number] = None

        def released() -> None:
            region.forget(offset, pages(job.nbytes))
            self._held.pop(number, None)

        return region.hold(offset, job.nbytes, released)

    def _hand_over(self, answer: talk.Message, encoded: Encoded) -> None:
        """Let the leader take the value from where it is."""
        assert isinstance(answer, Done)
        if answer.pieces is None:
            self._work.send(answer, _in_one(encoded))
            return
        parts = list(encoded.parts())  # they stay where they are
        pieces = [(offset, address_of(part), memoryview(part).nbytes) for offset, part in parts if len(part)]
        self._work.send(msgspec.structs.replace(answer, pieces=pieces))
        said, _ = self._work.receive()
        if isinstance(said, Stream):
            self._work.send(Taken(), _in_one(encoded))

    def _make(self, job: Job, body: memoryview) -> tuple[talk.Message, Encoded | None]:
        began_s, cpu_s = time.monotonic(), time.thread_time()

        def raised(kind: FailureKind, what: str, exc: BaseException) -> tuple[talk.Message, None]:
            if isinstance(exc, TrustError):
                kind = "untrusted"
            return Raised(self._failure(kind, what, exc), time.monotonic() - began_s), None

        name = job.ref.name
        layout = Layout(job.stream_nbytes, job.frames)
        try:
            if self._config.same_program and (job.ref.path or ("",))[0] == "__main__":
                self._program.bring()
            fn = self._load(job)
        except CodeMissing as exc:
            return Lacking(exc.ident, str(exc)), None
        except BaseException as exc:
            return raised("decode", f"materializer {name!r} could not be loaded", exc)
        try:
            if self._policy.paths is None and program.names(body[: _opening(job)]):
                self._program.bring()
            payload = self._decode(body.toreadonly() if self._config.readonly else body, layout)
            del body
        except BaseException as exc:
            return raised("decode", "what arrived could not be decoded", exc)
        here.unwanted = lambda: self._cancelled[0] == job.number
        began_s, cpu_s = time.monotonic(), time.thread_time()
        try:
            value = call_out(apart, self._some(job, fn), payload)
            if isinstance(value, CoroutineType):
                value.close()
                raise TypeError(COROUTINE)
        except BaseException as exc:  # KeyboardInterrupt and SystemExit too
            return raised("materialize", f"materializer {name_of(fn)!r} raised{place_of_failure()}", exc)
        finally:
            here.unwanted = None
            del payload
        seconds, cpu_s = time.monotonic() - began_s, time.thread_time() - cpu_s
        count = value[0] if job.part is not None and value is not None else 0
        try:
            encoded = self._encode(value)
        except BaseException as exc:
            return raised("encode", f"what materializer {name!r} made cannot leave its process", exc)
        pieces: list[tuple[int, int, int]] | None = None if encoded.nbytes <= talk.INLINE_NBYTES else []
        sizes = encoded.nbytes, encoded.layout.stream_nbytes, encoded.layout.frames
        return Done(*sizes, seconds, cpu_s, pieces, count), encoded

    def _some(self, job: Job, fn: Materializer) -> Materializer:
        """Return what is to be run: all of a materializer, or the items of it that a job is about."""
        if job.part is None:
            return fn
        assert isinstance(fn, Each), "parts are of what works item by item"
        told_s = -TELLS_S

        def begins(index: int) -> None:
            nonlocal told_s
            if (now_s := time.monotonic()) - told_s >= TELLS_S:
                told_s = now_s
                self._work.send(Item(index))

        return Some(fn, *job.part, begins, job.numbers)

    def _load(self, job: Job) -> Materializer:
        ref = job.ref
        if not job.trusted:
            return self._loader.load(ref)
        found = self._trusted.get(ref.ident)
        if found is None:
            raise CodeMissing(f"the code of materializer {ref.name!r} is not here", ref.ident)
        if isinstance(found, bytes):
            found = self._unpickled(found)
            if len(self._trusted) > _MOST_TRUSTED:
                self._trusted.clear()
            self._trusted[ref.ident] = found
        fn: Materializer = found
        return fn

    def _failure(self, kind: FailureKind, what: str, exc: BaseException) -> Failure:
        config = self._config
        failure = from_exception(kind, f"{what} in helper {config.number}", exc, rank=config.rank, host=config.host)
        forget_our_locals(exc)
        return failure


def _opening(job: Job) -> int:
    """Return how many bytes of a payload hold its stream: what names classes is there."""
    return min(job.nbytes, 8 * job.frames + 128 + job.stream_nbytes)


def _in_one(encoded: Encoded) -> bytearray:
    whole = bytearray(encoded.nbytes)
    encoded.write_into(memoryview(whole))
    return whole
