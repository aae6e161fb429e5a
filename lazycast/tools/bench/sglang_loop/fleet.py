"""Two real schedulers, or more, and in place of the tokenizer and the detokenizer this process.

Guarantees:

* Ranks are forked from the caller, which has imported SGLang by then, before this makes any socket of its own.
* What has been started is ended by `close`, whatever happened to it.
* A scheduler that ends by itself is an error of the next call, with the end of its log.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from lazycast.tools.bench.sglang_loop import on_cpu, tiny

_READY_S = 240.0
_SAID_NBYTES = 4000


class SchedulerEndedError(RuntimeError):
    """A scheduler has ended, or never came up. Its log is part of the message."""


@dataclass
class Answer:
    """What has come for one request so far.

    Attributes:
        ids: token ids as the detokenizer gets them: some of the prompt's, then the new ones.
        tokens: how many are new.
        at_s: when each output came (`time.monotonic`).
        reason: why it ended, as SGLang says; None while it has not.
        cached: tokens of the prompt that were in the cache.
    """

    ids: list[int] = field(default_factory=list)
    tokens: int = 0
    at_s: list[float] = field(default_factory=list)
    reason: dict[str, Any] | None = None
    cached: int = 0


def load() -> None:
    """Import what the ranks need, once: it takes half a minute of a busy core."""
    on_cpu.prepare()
    for name in ("sglang.srt.managers.scheduler", "sglang.srt.models.qwen2_vl", "sglang.srt.server_args"):
        importlib.import_module(name)


class Fleet:
    """The schedulers of one server.

    Args:
        switches: options of the server, beside those that it needs here.
        environment: of its ranks, beside the caller's.
        within: called with the rank in each of them, before its scheduler is made.
    Raises: SchedulerEndedError if they do not come up.
    Blocking: until they have, up to 240 s.
    """

    def __init__(
        self,
        switches: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        ranks: int = 2,
        within: Callable[[int], None] | None = None,
    ) -> None:
        load()
        self._folder = tempfile.TemporaryDirectory(prefix="lazycast-loop-")
        model = tiny.write(Path(self._folder.name) / "model")
        arguments = ["--model-path", str(model), "--tp", str(ranks), *on_cpu.ARGUMENTS, *switches]
        settings: Any = importlib.import_module("sglang.srt.server_args")
        self._server = settings.prepare_server_args(arguments)
        self._server.resolve_once()
        self._ports = settings.PortArgs.init_new(self._server)
        self._answers: dict[str, Answer] = {}
        self._messages: Any = importlib.import_module("sglang.srt.managers.io_struct")
        self._zmq: Any = None
        self._context: Any = None
        self.pids: list[int] = []
        readers = []
        try:
            for rank in range(ranks):
                reader, writer = multiprocessing.Pipe(duplex=False)
                self.pids.append(self._fork(rank, writer, dict(environment or {}), within))
                writer.close()
                readers.append(reader)
            self._connect()
            for rank, reader in enumerate(readers):
                self._wait_ready(rank, reader)
        except BaseException:
            self.close()
            raise

    def _fork(self, rank: int, writer: Any, environment: dict[str, str], within: Callable[[int], None] | None) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            log = os.open(self._log(rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)  # not the caller's, if it captures
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.environ.update(environment)
            if within is not None:
                within(rank)
            run: Any = importlib.import_module("sglang.srt.managers.scheduler").run_scheduler_process
            run(self._server, self._ports, rank, rank, 0, None, writer)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)

    def _log(self, rank: int) -> Path:
        return Path(self._folder.name) / f"rank-{rank}.log"

    def log(self) -> str:
        """Return the ends of all logs."""
        logs = [self._log(rank) for rank in range(len(self.pids))]
        return "\n".join(f"== {log.name}\n{log.read_text()[-_SAID_NBYTES:]}" for log in logs if log.exists())

    def _connect(self) -> None:
        zmq = self._zmq = importlib.import_module("zmq")  # comes with SGLang
        self._context = zmq.Context()
        self._to = self._socket(zmq.PUSH, self._ports.scheduler_input_ipc_name)
        self._from = [
            self._socket(zmq.PULL, name) for name in (self._ports.detokenizer_ipc_name, self._ports.tokenizer_ipc_name)
        ]
        self._poller = zmq.Poller()
        for socket in self._from:
            self._poller.register(socket, zmq.POLLIN)

    def _socket(self, kind: int, name: str) -> Any:
        socket = self._context.socket(kind)
        socket.set_hwm(0)
        socket.linger = 0
        socket.bind(name)
        return socket

    def _wait_ready(self, rank: int, reader: Any) -> None:
        end_s = time.monotonic() + _READY_S
        while not reader.poll(0.2):
            self.check()
            if time.monotonic() > end_s:
                raise SchedulerEndedError(f"rank {rank} is not ready after {_READY_S:g} s:\n{self.log()}")
        try:
            said = reader.recv()
        except EOFError:
            time.sleep(0.5)  # it is ending
            raise SchedulerEndedError(f"rank {rank} did not come up:\n{self.log()}") from None
        if said["status"] != "ready":
            raise SchedulerEndedError(f"rank {rank} is {said['status']}:\n{self.log()}")

    def check(self) -> None:
        """Raise SchedulerEndedError if a rank has ended."""
        for rank, pid in enumerate(self.pids):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
                raise SchedulerEndedError(f"rank {rank} has ended:\n{self.log()}")

    def send(self, request: Any) -> None:
        """Send to the schedulers, as the tokenizer does."""
        self._messages.sock_send(self._to, request)

    def answer(self, rid: str) -> Answer:
        """Return what has come for a request."""
        return self._answers.setdefault(rid, Answer())

    def forget(self, rid: str) -> None:
        """Keep nothing of a request."""
        self._answers.pop(rid, None)

    def receive(self, timeout_s: float) -> list[Any]:
        """Wait for something to come, up to `timeout_s`; return what are no tokens: control outputs, aborts."""
        others: list[Any] = []
        for socket, _ in self._poller.poll(timeout_s * 1e3):
            with contextlib.suppress(self._zmq.Again):
                while True:
                    others += self._take(self._messages.sock_recv(socket, self._zmq.NOBLOCK))
        return others

    def _take(self, output: Any) -> Iterator[Any]:
        now_s = time.monotonic()
        if isinstance(output, self._messages.BatchTokenIDOutput):
            for n, rid in enumerate(output.rids):
                answer = self.answer(rid)
                answer.ids += list(output.decode_ids[n])
                answer.tokens = output.completion_tokens[n]
                answer.cached = output.cached_tokens[n]
                answer.at_s.append(now_s)
                answer.reason = output.finished_reasons[n]
            return
        if isinstance(output, self._messages.AbortReq):
            answer = self.answer(output.rid)
            answer.at_s.append(now_s)
            answer.reason = output.finished_reason or {"type": "abort", "message": output.abort_message}
        yield output

    def wait(self, rids: Sequence[str], timeout_s: float = 60.0) -> dict[str, Answer]:
        """Wait until all of these have ended.

        Raises: SchedulerEndedError; TimeoutError, which says who has not.
        """
        end_s = time.monotonic() + timeout_s
        while missing := [rid for rid in rids if self.answer(rid).reason is None]:
            self.receive(0.2)
            self.check()
            if time.monotonic() > end_s:
                raise TimeoutError(f"no end of {', '.join(missing)}:\n{self.log()}")
        return {rid: self.answer(rid) for rid in rids}

    def freeze(self) -> None:
        """Stop all ranks, so that they take no processor time: idle schedulers spin."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def close(self) -> None:
        """End all ranks at once. Twice is fine."""
        self._signal(signal.SIGKILL)
        for pid in self.pids:
            os.waitpid(pid, 0)
        self.pids = []
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
        self._folder.cleanup()
        for name in vars(type(self._ports))["__dataclass_fields__"]:
            address = getattr(self._ports, name, None)
            if isinstance(address, str) and address.startswith("ipc://"):
                Path(address.removeprefix("ipc://")).unlink(missing_ok=True)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
