"""One helper, as its leader sees it: a fresh interpreter, and two sockets to it.

Guarantees:

* It is a child of this process, started by `subprocess`: nothing of this process but its environment gets there. The
  kernel kills it when the thread that has started it ends, so that is one that lives as long as its pool.
* `make` is called by one thread at a time. `kill` and `ended` may be called by any.
* What lies in shared memory for it stays there until it has let go of it, or is dead.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, NamedTuple

import msgspec

from lazycast.core.helpers import reading, talk
from lazycast.core.helpers.child import BYE, CANCEL
from lazycast.core.helpers.talk import Config, Done, Item, Job, Lacking, Memory, Over, Raised, Stream, Taken, Talk
from lazycast.net.wire import Failure, MaterializerRef

#: Leaves nothing in `__main__`: what a user's program has there under the same name must not be found in its place.
_BEGIN = "exec(__import__('sys').argv[1], {})"
_BOOT = """
import ctypes, json, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
life, work, parent, niceness, path = json.loads(sys.argv[2])
if os.getppid() != parent:
    os._exit(0)
os.nice(niceness)
sys.path[:] = path
from lazycast.core.helpers.child import main
main(life, work)
"""

#: What would make a helper believe that it is a rank.
_OF_RANKS = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *("LAZYCAST_RANK", "LAZYCAST_WORLD_SIZE", "LAZYCAST_RENDEZVOUS", "LAZYCAST_TRACE", "PYTHONINSPECT"),
)
_PREFIXES_OF_RANKS = ("OMPI_", "PMIX_", "PMI_", "PRTE_", "MPI_LOCAL", "TORCHELASTIC_")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "BLIS_NUM_THREADS")
#: What glibc's allocator keeps of what is freed, and from which size on an array has memory of its own (bytes). If it
#: keeps little, it takes memory anew for each large array, page by page: a third to a half of what an image takes.
_KEEPS_NBYTES, _APART_NBYTES = 128 << 20, 32 << 20
_GPUS = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_ENDS_S = 1.0  # how long a process that has closed its sockets, or was told to end, may take (seconds)
#: How long a helper whose value nobody wants any more may go on before it is ended (seconds).
_UNWANTED_S = 5.0
_KEPT_NBYTES = 2000  # of what a helper has printed, for the case that it cannot start


class Order(NamedTuple):
    """What a helper is to make.

    Attributes:
        at: the memory that the payload lies in, if it does: a number for it, its descriptor and size, and where.
        code_for: returns the code of a materializer that the helper lacks.
        part, numbers: of an `Each`, which part of how many, and of which items: see `Some`.
    """

    seq: int
    ref: MaterializerRef
    trusted: bool
    body: memoryview
    stream_nbytes: int
    frames: int
    at: tuple[int, int, int, int] | None
    code_for: Callable[[str], bytes]
    part: tuple[int, int] | None = None
    numbers: list[int] | None = None


class Made(NamedTuple):
    """What came of it: how the value is laid out, and what it took. It has been put where it was wanted."""

    nbytes: int
    stream_nbytes: int
    frames: int
    seconds: float
    cpu_s: float
    helper: int
    items: int = 0


class Died(Exception):
    """The helper has ended in the middle of a job; the text says how."""


class Overran(Exception):
    """It took longer than it may, and was ended."""


class Unmade(Exception):
    """There is no value: the failure says why, or nobody wants it. `untried`: no helper has begun, or can."""

    def __init__(self, failure: Failure | None, cause: BaseException | None = None, *, untried: bool = False) -> None:
        super().__init__()
        self.failure, self.cause, self.untried = failure, cause, untried

    @property
    def of_helpers(self) -> bool:
        """Whether a rank could make the value: it does not leave its helper, or there is none."""
        return self.failure is not None and (self.untried or self.failure.kind == "encode")


class HelperError(Exception):
    """What was raised in a helper, with its traceback there, as text."""


class _GivenUp(Exception):
    """Nobody wants it, and the helper has not noticed: it was ended."""


def environment(*, cuda: bool, memory_nbytes: int | None) -> dict[str, str]:
    """Return what a helper has in its environment: nothing that is a rank's, one thread for libraries, no GPU.

    What the user has set for the allocator stays. Of limited memory it may keep a quarter.
    """
    most = _KEEPS_NBYTES if memory_nbytes is None else memory_nbytes // 4
    allocator = {
        "MALLOC_TRIM_THRESHOLD_": str(min(_KEEPS_NBYTES, most)),
        "MALLOC_MMAP_THRESHOLD_": str(min(_APART_NBYTES, most)),
    }
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_RANKS and not name.startswith(_PREFIXES_OF_RANKS)
    }
    env |= dict.fromkeys(_THREADS, "1")
    env = {**allocator, **env}
    return env if cuda else {**env, **dict.fromkeys(_GPUS, "")}


@dataclass
class _Work:
    """The job that a helper is at."""

    seq: int
    since_s: float = field(default_factory=time.monotonic)


class Helper:
    """See the module's text. Made, which starts it, by a thread that outlives it.

    Args:
        config: what it is told first; `init` the code that it calls then, or nothing.
    Raises: OSError where no process can be had.
    """

    def __init__(self, config: Config, init: bytes, *, niceness: int, cuda: bool) -> None:
        self.number = config.number
        self.ready = False
        self.at_work: _Work | None = None
        self.done = 0
        self.said = b""  # the end of what it has printed
        self._jobs = 0
        self._bodies: dict[int, memoryview] = {}  # by job: payloads in shared memory that it may still look at
        self._memories: set[int] = set()
        self._lock = threading.Lock()
        self._how: str | None = None
        self._readable = True  # whether its memory can be read
        self._idle = True  # whether it waits for the next job
        from multiprocessing import spawn  # which interpreter that is, programs that embed one tell it

        with contextlib.ExitStack() as at_failure:
            self.life, life = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            at_failure.callback(self.life.close)
            work, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            at_failure.callback(work.close)
            with life, theirs:
                fds = life.fileno(), theirs.fileno()
                boot = json.dumps(
                    [*fds, os.getpid(), niceness, [entry for entry in sys.path if isinstance(entry, str)]]
                )
                self.process = subprocess.Popen(
                    [spawn.get_executable(), "-c", _BEGIN, _BOOT, boot],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    pass_fds=fds,
                    env=environment(cuda=cuda, memory_nbytes=config.memory_nbytes),
                    start_new_session=True,  # a Ctrl-C at the terminal is for ranks
                )
            at_failure.pop_all()
        self._talk = Talk(work)
        self.life.setblocking(False)
        with contextlib.suppress(talk.Ended):  # whoever looks after it will see
            self._talk.send(config, init, check=self._lives)

    def _lives(self) -> None:
        if not self.alive():
            raise talk.Ended

    @property
    def pid(self) -> int:
        """Its process."""
        return self.process.pid

    @property
    def outputs(self) -> list[tuple[IO[bytes], int]]:
        """What it prints to, and the descriptor of this process where that belongs."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        return [(self.process.stdout, 1), (self.process.stderr, 2)]

    def keep(self, printed: bytes) -> None:
        """Remember the end of what it has printed."""
        self.said = (self.said + printed)[-_KEPT_NBYTES:]

    def hear(self) -> tuple[bool, Failure | None]:
        """Take its word that it has begun; return whether it lives, and why it is no good. Non-blocking."""
        try:
            said = self.life.recv(1 << 17)
        except BlockingIOError:
            return True, None
        except OSError:
            said = b""
        if not said:
            return False, None
        return True, msgspec.msgpack.decode(said, type=Failure | None)

    # A job

    def make(
        self,
        order: Order,
        room_for: Callable[[int], memoryview],
        unwanted: Callable[[], bool],
        limit_s: float | None,
    ) -> Made:
        """Have a value made, and put it where `room_for` says. Blocking: until it is there.

        Raises: Died; Overran; Unmade; and what `code_for` and `room_for` raise.
        """
        self._jobs += 1
        number = self._jobs
        watch = _Watch(self, number, unwanted, limit_s)
        self.at_work = _Work(order.seq)
        try:
            return self._make(number, order, room_for, watch)
        except (talk.Ended, ProcessLookupError):
            raise Died(self.ended() + watch.place()) from None
        except (Overran, _GivenUp) as exc:
            self.kill()
            self.ended()
            if isinstance(exc, _GivenUp):
                raise Unmade(None) from None
            raise
        finally:
            if not self._idle:  # nothing that it says from now on could be understood
                self.kill()
            self.at_work = None

    def _make(self, number: int, order: Order, room_for: Callable[[int], memoryview], watch: _Watch) -> Made:
        look = watch.look
        codes: list[tuple[str, bytes]] = []
        while True:
            self._send_job(number, order, codes, watch)
            answer, _ = self._talk.receive(look)
            while isinstance(answer, Item):
                watch.begins(answer.index)
                answer, _ = self._talk.receive(look)
            if not isinstance(answer, Lacking):
                break
            self._over(look)
            if any(ident == answer.ident for ident, _ in codes):
                raise RuntimeError(f"helper {self.number} still lacks code that it was sent: {answer.text}")
            codes.append((answer.ident, order.code_for(answer.ident)))
        if isinstance(answer, Raised):
            self._over(look)
            raise Unmade(answer.failure, HelperError(f"\n{answer.failure.traceback or answer.failure.message}"))
        assert isinstance(answer, Done)
        self._take_value(answer, room_for, look)
        self.done += 1
        return Made(
            answer.nbytes, answer.stream_nbytes, answer.frames, answer.seconds, answer.cpu_s, self.number, answer.items
        )

    def _send_job(self, number: int, order: Order, codes: list[tuple[str, bytes]], watch: _Watch) -> None:
        at, look = None, watch.look
        self._idle = False
        if order.at is not None:
            ident, fd, nbytes, offset = order.at
            if ident not in self._memories:
                self._talk.send(Memory(ident, nbytes), fd=fd, check=look)
                self._memories.add(ident)
            at = ident, offset
            self._bodies[number] = order.body
        job = Job(
            number,
            order.ref,
            order.trusted,
            order.body.nbytes,
            order.stream_nbytes,
            order.frames,
            at,
            [(name, len(code)) for name, code in codes],
            order.part,
            order.numbers,
        )
        bodies = [code for _, code in codes]
        self._talk.send(job, *bodies, *([] if at is not None else [order.body]), check=look)

    def _take_value(self, answer: Done, room_for: Callable[[int], memoryview], look: Callable[[], None]) -> None:
        pieces = answer.pieces
        try:
            room = room_for(answer.nbytes)
        except BaseException:
            if pieces is None:
                self._talk.body(answer.nbytes, look)
            else:
                self._talk.send(Taken(), check=look)
            self._over(look)
            raise
        if pieces is None:
            self._talk.fill(room, look)
        elif not (self._readable and self._read(pieces, room)):
            self._talk.send(Stream(), check=look)
            self._talk.receive(look)
            self._talk.fill(room, look)
        else:
            self._talk.send(Taken(), check=look)
        with contextlib.suppress(talk.Ended):  # the value is here, and whoever looks after it will see
            self._over(look)

    def _read(self, pieces: list[tuple[int, int, int]], room: memoryview) -> bool:
        try:
            reading.read(self.pid, pieces, room)
        except reading.Unreadable:
            self._readable = False
        return self._readable

    def _over(self, look: Callable[[], None]) -> None:
        """Wait until the helper has let go of the job, and let go of the payloads that it has let go of."""
        over, _ = self._talk.receive(look)
        assert isinstance(over, Over)
        self._idle = True
        self._bodies = {number: body for number, body in self._bodies.items() if number in over.held}

    def withdraw(self, number: int) -> None:
        """Let the materializer know that nobody wants what it makes."""
        with contextlib.suppress(OSError):  # whoever waits for it will see that it has ended
            self.life.send(CANCEL.pack(number))

    # The end

    def alive(self) -> bool:
        """Whether its process runs."""
        return self.process.poll() is None

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()

    def dismiss(self) -> None:
        """Let it end by itself, as an interpreter does, if it has nothing to do."""
        with contextlib.suppress(OSError):  # it has ended
            self.life.send(BYE)

    def ended(self, within_s: float = _ENDS_S) -> str:
        """Make sure that it has ended, and say how. What it holds of shared memory is free."""
        with self._lock:
            if self._how is None:
                try:
                    self.process.wait(within_s)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
                self._how = self._said_how(self.process.returncode)
            self._bodies = {}
            return self._how

    def _said_how(self, code: int) -> str:
        name = f"helper {self.number} (process {self.pid})"
        if code >= 0:
            return f"{name} ended with exit code {code}"
        with contextlib.suppress(ValueError):  # a signal that has no name
            return f"{name} was killed by {signal.Signals(-code).name}"
        return f"{name} was killed by signal {-code}"

    def hang_up(self) -> None:
        """Close the socket of the jobs. The process has ended, and nobody waits for it."""
        self._talk.close()

    def close(self) -> None:
        """Close the rest. The process has ended."""
        self.life.close()
        for pipe, _ in self.outputs:
            pipe.close()

    def line(self) -> str:
        """Return a line for a dump."""
        work = self.at_work
        state = "starts" if not self.ready else "is free"
        if work is not None:
            state = f"makes cast #{work.seq} for {time.monotonic() - work.since_s:.1f} s"
        return f"helper {self.number}: process {self.pid}, {state}, {self.done} made"


class _Watch:
    """Looks up while a helper works: whether it lives, is in time, and anybody still wants what it makes."""

    def __init__(self, helper: Helper, number: int, unwanted: Callable[[], bool], limit_s: float | None) -> None:
        self._helper, self._number, self._unwanted = helper, number, unwanted
        self._limit_s = limit_s
        self._until_s = None if limit_s is None else time.monotonic() + limit_s
        self._item: int | None = None
        self._withdrawn_s: float | None = None

    def begins(self, item: int) -> None:
        """The helper has begun with an item, and so with its time; it need not tell of all that take little."""
        self._item = item
        if self._limit_s is not None:
            self._until_s = time.monotonic() + self._limit_s + talk.TELLS_S

    def place(self) -> str:
        """Say at which item it is."""
        return "" if self._item is None else f" at item {self._item} or soon after"

    def look(self) -> None:
        """Raise what is to end the waiting."""
        now_s = time.monotonic()
        if not self._helper.alive():
            raise talk.Ended
        if self._until_s is not None and now_s > self._until_s:
            raise Overran(self.place())
        if self._withdrawn_s is None:
            if self._unwanted():
                self._withdrawn_s = now_s
                self._helper.withdraw(self._number)
        elif now_s - self._withdrawn_s > _UNWANTED_S:
            raise _GivenUp
