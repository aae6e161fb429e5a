"""The process that forks programs, and has imported torch and what else many need: `python parent.py FOLDER`.

It ends with its standard input, and imports nothing before somebody calls. A caller connects to the socket in the
folder, hands over its descriptors and says what to run. It is told the process id of the fork, and at last how that has
ended; if it is killed before, so is the fork, with its process group.

What the programs of one process of `-n` have taken of the processor is in a file of the folder, `spent.` and its name.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import errno
import gc
import importlib.util
import marshal
import os
import runpy
import select
import signal
import socket
import sys
import types
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

#: What programs find imported. The photos of sklearn are a package's data, so whoever looks for them imports it; ranks
#: that run a function of a test's module import pytest.
IMPORTED = (
    *("asyncio", "fractions", "importlib.metadata", "mmap", "pickletools", "queue", "secrets", "shlex", "sysconfig"),
    *("PIL.Image", "cloudpickle", "hypothesis", "msgspec", "numpy", "pytest", "sklearn", "torch.distributed.run"),
    "multiprocessing.spawn",  # it notes the interpreter, which helpers are to be: before `sys.executable` is another
)
Order = dict[str, Any]
_HIGH = 700  # above the numbers that programs have inherited


def _receive(sock: socket.socket, fds: list[int]) -> Order:
    """Return what a caller says; what it hands over is in `fds` as soon as it is here."""
    head, handed, _, _ = socket.recv_fds(sock, 4, 253)
    fds += handed
    left, said = int.from_bytes(head, "little"), b""
    while len(said) < left:
        part = sock.recv(left - len(said))
        if not part:
            raise ConnectionError("the caller has gone")
        said += part
    order: Order = marshal.loads(said)
    assert not order or len(fds) == len(order["fds"]) + len(order["namespaces"]), "more descriptors than can be sent"
    return order


class _Imported(MetaPathFinder, Loader):
    """A package that this process has imported, and whose programs have not: when they import it, it is there at once.

    With it come the modules that came with it here, as they were then. Another one of that name is imported as ever.
    """

    def __init__(self, name: str) -> None:
        self._package = importlib.import_module(name)
        self._spec = self._package.__spec__
        mine = [other for other in sys.modules if other.split(".")[0] == name]
        self._modules = {other: sys.modules.pop(other) for other in mine}
        del self._modules[name]  # which is put back by who imports it
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._package.__name__:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin == self._package.__file__:
            sys.modules.update(self._modules)
            spec.loader = self
        return spec

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return self._package

    def exec_module(self, module: types.ModuleType) -> None:
        module.__spec__ = self._spec


class _Parent:
    """Waits for callers, forks their programs, and tells how these have ended."""

    def __init__(self, folder: Path) -> None:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "parent"))
        self._listener.listen(128)
        self._callers: dict[int, tuple[socket.socket, int]] = {}  # by descriptor of the process
        self._folder = folder
        self._for: dict[int, str] = {}  # by process: whose program it is
        self._spent_s: dict[str, float] = {}
        self._poller = select.poll()
        for fd in (0, self._listener.fileno()):
            self._poller.register(fd, select.POLLIN)

    def is_called(self) -> bool:
        """Wait for the first caller, who is not answered yet; whether there is one before the end."""
        return 0 not in [fd for fd, _ in self._poller.poll()]

    def serve(self) -> Order | None:
        """Fork as told. Returns in each fork, with what it is to run, and at the end with nothing."""
        while True:
            for fd, _ in self._poller.poll():
                if fd == 0:
                    self._end()
                    return None
                if fd == self._listener.fileno():
                    order = self._fork()
                    if order is not None:
                        return order
                elif fd in self._callers:
                    self._ended(fd)
                else:
                    self._left(fd)

    def _fork(self) -> Order | None:
        sock, _ = self._listener.accept()
        fds: list[int] = []
        try:
            order = _receive(sock, fds)
        except (ConnectionError, EOFError, TypeError, ValueError):  # it was killed before it had said all
            for fd in fds:
                os.close(fd)
            sock.close()
            return None
        if not order:  # the caller only wants to know that this process is warm
            with contextlib.suppress(OSError):
                sock.sendall(b"warm")
            sock.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._become(sock, order, fds)
            return order
        for fd in fds:
            os.close(fd)
        self._for[pid] = order["env"].get("PYTEST_XDIST_WORKER", "")
        pidfd = os.pidfd_open(pid)
        self._callers[pidfd] = sock, pid
        self._poller.register(pidfd, select.POLLIN)
        self._poller.register(sock.fileno(), select.POLLIN)
        with contextlib.suppress(OSError):
            sock.sendall(pid.to_bytes(4, "little"))
        return None

    def _become(self, sock: socket.socket, order: Order, fds: list[int]) -> None:
        """In a fork: nothing of the parent's descriptors is left, and the caller's have their numbers again."""
        os.setsid()
        for namespace in order["namespaces"]:
            fd = fds.pop()
            if namespace != os.readlink(f"/proc/self/ns/{namespace.partition(':')[0]}"):
                _enter(fd)
        high = [os.dup2(fd, _HIGH + index) for index, fd in enumerate(fds)]
        log = os.dup2(2, _HIGH - 1)
        sock.detach()
        self._listener.detach()
        for other, _ in self._callers.values():
            other.detach()
        os.closerange(0, log)
        for fd, (number, _) in zip(high, order["fds"], strict=True):
            os.dup2(fd, number, inheritable=True)
            os.close(fd)
        _check(order, log)
        for number in order["ignored"]:
            signal.signal(number, signal.SIG_IGN)

    def _ended(self, pidfd: int) -> None:
        sock, pid = self._callers.pop(pidfd)
        _, status, used = os.wait4(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        whose = self._for.pop(pid)
        self._spent_s[whose] = self._spent_s.get(whose, 0.0) + used.ru_utime + used.ru_stime
        (self._folder / "spent").write_text(str(self._spent_s[whose]))
        (self._folder / "spent").rename(self._folder / f"spent.{whose}")  # who reads it finds all of it
        self._poller.unregister(pidfd)
        os.close(pidfd)
        if sock.fileno() >= 0:
            self._poller.unregister(sock.fileno())
            with contextlib.suppress(OSError):
                sock.sendall(code.to_bytes(4, "little", signed=True))
            sock.close()

    def _left(self, fd: int) -> None:
        """A caller was killed: so is its program."""
        for sock, pid in self._callers.values():
            if sock.fileno() == fd:
                self._poller.unregister(fd)
                sock.close()
                _kill(pid)
                return

    def _end(self) -> None:
        for _, pid in self._callers.values():
            _kill(pid)
            os.waitpid(pid, 0)


def _enter(namespace: int) -> None:
    """Enter a namespace as `nsenter` does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def _kill(pid: int) -> None:
    """A program with its process group, which it may not have made yet."""
    os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _check(order: Order, log: int) -> None:
    """The program has what its caller had: without its outputs it could not say what is wrong."""
    wrong = "" if {1, 2} <= {number for number, _ in order["fds"]} else "no outputs "
    for number, expected in order["fds"]:
        try:
            stat = os.fstat(number)
        except OSError as exc:
            wrong += f"{number}: {exc} "
        else:
            if [stat.st_dev, stat.st_ino] != expected:
                wrong += f"{number}: {os.readlink(f'/proc/self/fd/{number}')}, not {expected} "
    if wrong:
        os.write(log, f"the warm parent's fork of {order['argv']} got {order['fds']}, but {wrong}\n".encode())
        os._exit(97)
    os.close(log)


def _run(order: Order) -> None:
    """Do what an interpreter does at its start."""
    executable, *argv = order["argv"]
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    folder = Path(executable).resolve().parent
    sys.executable = str(folder / "python")
    os.environ["PYTHON_EXEC"] = sys.executable  # what torchrun starts ranks with
    _warn(os.environ.get("PYTHONWARNINGS", ""))
    for name in ("stdin", "stdout", "stderr"):
        buffering, mode = (-1, "r") if name == "stdin" else (1 if name == "stderr" else -1, "w")
        stream = open(("stdin", "stdout", "stderr").index(name), mode, buffering, closefd=False)  # noqa: SIM115
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    if Path(executable).name == "torchrun":
        sys.argv = ["torchrun", *argv]
        importlib.import_module("torch.distributed.run").main()
        return
    while argv and argv[0] in ("-u", "-S"):
        if argv.pop(0) == "-u":
            sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr]
    _start(argv)


def _warn(filters: str) -> None:
    """As `PYTHONWARNINGS`, of which the tests need the action and the category."""
    warnings.resetwarnings()
    silent = ("DeprecationWarning", "PendingDeprecationWarning", "ImportWarning", "ResourceWarning")
    for one in [*(f"ignore::{name}" for name in silent), *filter(None, filters.split(","))]:
        action, _, category = [*one.split(":"), "", ""][:3]
        warnings.simplefilter(action, getattr(__builtins__, category or "Warning"))  # type: ignore[arg-type]


def _start(argv: list[str]) -> None:
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    beside = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    path = [*beside, *sys.path[1:]]
    if argv[0] == "-m":
        sys.argv = argv[1:]
        sys.path[:] = [os.getcwd(), *path]
        runpy._run_module_as_main(argv[1])  # type: ignore[attr-defined]
    elif argv[0] == "-c":
        sys.argv = ["-c", *argv[2:]]
        sys.path[:] = ["", *path]
        exec(compile(argv[1], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = argv
        sys.path[:] = [str(Path(argv[0]).resolve().parent), *path]
        main.__file__ = argv[0]
        exec(compile(Path(argv[0]).read_bytes(), argv[0], "exec"), main.__dict__)


def _spare_at_the_end() -> None:
    """Have the ends of programs leave alone what was imported for them: to take torch to pieces takes a second.

    The interpreter ends as ever, threads, `atexit` and modules of the program's own; destructors of C++ are not called.
    """
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] not in sys.stdlib_module_names}

    def spare() -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError as exc:  # whoever reads them would see nothing
            os._exit(98 if exc.errno == errno.EBADF else 99)
        for name, module in ours.items():
            if sys.modules.get(name) is module:
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(module))
                del sys.modules[name]
        libc = ctypes.CDLL(None)
        libc.on_exit(libc._exit, None)

    atexit.register(spare)  # the first, so it is called last


def main() -> None:
    parent = _Parent(Path(sys.argv[1]))
    sys.stdout.write("there\n")
    sys.stdout.flush()
    if not parent.is_called():
        return
    for name in IMPORTED:
        importlib.import_module(name)
    _spare_at_the_end()
    _Imported("lazycast")  # after the others: it looks which there are
    gc.collect()
    gc.freeze()  # nor do collections look at all that was imported
    order = parent.serve()
    if order is not None:
        _run(order)


if __name__ == "__main__":
    main()
