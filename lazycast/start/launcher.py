"""Starts ranks on this machine from a script: processes on any backend, or threads of this process.

Guarantees: when `launch` returns or raises, every process it started has ended, and the folder it used is gone. If
this process is killed, the ranks are killed too.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import cloudpickle

from lazycast.codec.diagnose import describe_unpicklable
from lazycast.core.failures import from_exception
from lazycast.core.helpers import program
from lazycast.core.interrupts import Uninterrupted
from lazycast.errors import CastTimeoutError, EncodeError, LaunchError
from lazycast.materialize import bycode
from lazycast.net.wire import Failure
from lazycast.start import discovery
from lazycast.start.commands import BACKENDS, commands, require

_BOOT = """
import json, pathlib, sys
sys.path[:] = json.loads((pathlib.Path(sys.argv[1]) / "path").read_text())
from lazycast.start.launch_worker import main
main()
"""

#: How long ranks may go on after one has failed, so that they learn of it by themselves (seconds).
_GRACE_S = 5.0
_POLL_S = 0.02


def launch(
    fn: Callable[..., Any],
    *,
    ranks: int = 4,
    backend: str = "local",
    args: Sequence[Any] = (),
    timeout_s: float | None = None,
) -> list[Any]:
    """Run `fn(*args)` on `ranks` ranks of this machine and return their results, in rank order.

    Inside `fn`, `LazyBroadcast(backend="auto")` finds the group.

    Args:
        fn: sent to the processes by cloudpickle; functions of a script's `__main__` are fine.
        ranks: how many, at least 1.
        backend: "local" (processes), "threads" (of this process), "torch" (processes with an initialised gloo group)
            or "mpi" (processes under this machine's `mpirun`).
        args: the same for every rank; pickled, except for threads.
        timeout_s: end all processes after so many seconds; threads are only no longer waited for.
    Raises:
        LaunchError: some rank raised or died; names it and carries its traceback.
        EncodeError: `fn` or `args` do not pickle.
        CastTimeoutError: `timeout_s` passed. BackendUnavailableError: torch, mpi4py or mpirun is missing.
    Blocking: until all ranks have ended. Threads: safe.
    """
    program.refuse_while_brought("launch() is called")
    if not isinstance(ranks, int) or ranks < 1:
        raise ValueError(f"ranks must be a positive int, got {ranks!r}")
    if backend == "threads":
        return _launch_threads(fn, ranks, args, timeout_s)
    if backend not in BACKENDS:
        raise ValueError(f"launch() starts ranks with backend 'threads', 'local', 'torch' or 'mpi', got {backend!r}")
    require(backend)
    with tempfile.TemporaryDirectory(prefix="lazycast-") as folder:
        return _launch_processes(Path(folder), fn, ranks, backend, args, timeout_s)


def _launch_threads(fn: Callable[..., Any], ranks: int, args: Sequence[Any], timeout_s: float | None) -> list[Any]:
    backends = discovery.by_name("local").threads(ranks)  # type: ignore[attr-defined]
    results: dict[int, Any] = {}
    failures: dict[int, BaseException] = {}

    def run(rank: int) -> None:
        try:
            with discovery.using(backends[rank]):
                results[rank] = fn(*args)
        except BaseException as exc:
            failures[rank] = exc

    threads = [threading.Thread(target=run, args=(rank,), name=f"rank-{rank}", daemon=True) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    for thread in threads:
        thread.join(None if deadline_s is None else max(0.0, deadline_s - time.monotonic()))
    running = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
    if failures:
        rank, exc = min(failures.items())
        raise LaunchError(f"rank {rank} raised {type(exc).__name__}: {exc}", rank=rank) from exc
    if running:
        raise CastTimeoutError(f"ranks {running} were still running after {timeout_s:g} s")
    backends[0].close_hub()
    return [results[rank] for rank in range(ranks)]


def _launch_processes(
    folder: Path, fn: Callable[..., Any], ranks: int, backend: str, args: Sequence[Any], timeout_s: float | None
) -> list[Any]:
    try:
        task = bycode.dumps((fn, tuple(args)))
    except Exception as exc:
        raise EncodeError(f"launch() cannot send its function: {describe_unpicklable((fn, tuple(args)), exc)}") from exc
    (folder / "task").write_bytes(task)
    # The ranks look for modules where this process does, and nowhere else: `-m` would put the current folder first.
    (folder / "path").write_text(json.dumps(sys.path))
    worker = [sys.executable, "-c", _BOOT, str(folder), backend]
    processes: list[subprocess.Popen[bytes]] = []
    try:
        start_all(processes, commands(backend, worker, ranks, folder))
        _wait(processes, folder, timeout_s)
        codes = [process.poll() for process in processes]  # of those that ended by themselves
    finally:
        for process in processes:
            _end(process)
    return _results(folder, ranks, codes)


def start_all(
    processes: list[subprocess.Popen[bytes]],
    starts: Iterable[tuple[list[str], dict[str, str]]],
    *,
    output: IO[str] | None = None,
) -> None:
    """Start a process for each command, with what it has in its environment besides, in a session of its own.

    With `output`, what they write goes there, and they read nothing.

    Each is in `processes`, for the caller to end, as soon as it runs: a signal that comes meanwhile, and whose handler
    raises, waits until all have been started.
    """
    with Uninterrupted():
        for command, env in starts:
            process = subprocess.Popen(
                command,
                env={**os.environ, **env},
                stdin=None if output is None else subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            processes.append(process)


def _wait(processes: list[subprocess.Popen[bytes]], folder: Path, timeout_s: float | None) -> None:
    """Wait until all have ended, or some time after the first that failed."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    give_up_s: float | None = None
    while None in (codes := [process.poll() for process in processes]):  # all of them: the last may have died
        now_s = time.monotonic()
        if give_up_s is None and (any(codes) or list(folder.glob("failed.*"))):
            give_up_s = now_s + _GRACE_S
        if give_up_s is not None and now_s > give_up_s:
            return
        if deadline_s is not None and now_s > deadline_s:
            raise CastTimeoutError(f"ranks were still running after {timeout_s:g} s; they were ended")
        time.sleep(_POLL_S)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and what it started (mpirun's ranks), if it still runs."""
    if process.poll() is None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
                break


def _results(folder: Path, ranks: int, codes: list[int | None]) -> list[Any]:
    """Read what the ranks have left. A rank that died comes before those that raised because it did."""
    silent = [r for r in range(ranks) if not any((folder / f"{left}.{r}").exists() for left in ("result", "failed"))]
    failed = sorted(folder.glob("failed.*"), key=lambda path: path.stat().st_mtime_ns)
    for rank in silent:
        code = codes[rank] if len(codes) == ranks else codes[0]
        if code is not None and (code or not failed):
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code} and without a result"
            raise LaunchError(f"rank {rank} {how}", rank=rank)
    if failed:
        failure: Failure = pickle.loads(failed[0].read_bytes())
        raise LaunchError(failure.message, rank=failure.rank, host=failure.host, remote_traceback=failure.traceback)
    for rank, code in enumerate(codes):
        if code:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise LaunchError(
                f"{f'rank {rank}' if len(codes) == ranks else 'the launcher'} {how} after its work was done"
            )
    return [pickle.loads((folder / f"result.{rank}").read_bytes()) for rank in range(ranks)]


def run_worker(folder: Path, rank: int, host: str) -> None:
    """In a started process: run the task and leave its result, or its failure, in `folder`."""
    try:
        fn, args = pickle.loads((folder / "task").read_bytes())
        result = fn(*args)
    except BaseException as exc:
        leave_failure(folder, from_exception("refused", "the launched function raised", exc, rank=rank, host=host))
        return
    try:
        blob = cloudpickle.dumps(result, protocol=5)
    except Exception as exc:
        what = f"the result of the launched function, a {type(result).__name__}, does not pickle"
        leave_failure(folder, from_exception("encode", what, exc, rank=rank, host=host))
    else:
        _leave(folder, f"result.{rank}", rank, blob)


def leave_failure(folder: Path, failure: Failure) -> None:
    """Leave a rank's failure where `launch` finds it."""
    _leave(folder, f"failed.{failure.rank}", failure.rank, pickle.dumps(failure))


def _leave(folder: Path, name: str, rank: int, blob: bytes) -> None:
    part = folder / f"part.{rank}"
    part.write_bytes(blob)
    part.rename(folder / name)  # whole or not at all
