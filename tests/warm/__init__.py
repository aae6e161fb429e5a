"""A warm Python: programs that start in milliseconds, since one process has imported torch for all of them,
and what else takes them long.

`python()` is the path of an executable to be used like `sys.executable`, and `torchrun()` like torchrun. Programs find
that torch is imported and lazycast is not, though that takes them no time then. What they start is a fork of that
process, with the descriptors, the environment, the folder, the signals and the namespaces of whoever has called; it
ends as any interpreter does. What is tested of a program's very start (what it imports, warnings, options of the
interpreter but `-u`, `-m` and `-c`) needs a Python of its own.
"""

from __future__ import annotations

import atexit
import functools
import marshal
import multiprocessing.spawn  # noqa: F401  # as the warm parent does
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

_HERE = Path(__file__).parent
_BIN = Path(sys.executable).parent


def start() -> Path:
    """Start the parent of this process's programs, and of those it tells; return the folder with the executables.

    Until the first of them is needed, it does next to nothing.
    """
    folder = Path(tempfile.mkdtemp(prefix="warm-"))
    for program in _BIN.iterdir():  # whoever looks beside its Python finds the launchers
        (folder / program.name).symlink_to(program)
    for name in ("python", "torchrun"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(f"#!{sys.executable} -IS\n{(_HERE / 'caller.py').read_text()}")
        (folder / name).chmod(0o700)
    parent = subprocess.Popen(
        [sys.executable, str(_HERE / "parent.py"), str(folder)],
        stdin=subprocess.PIPE,  # its end is the end of the parent, and of all that it has started
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # Ctrl-C is for the tests
    )
    assert parent.stdin is not None
    assert parent.stdout is not None
    stdin, stdout, pid = parent.stdin, parent.stdout, os.getpid()

    def end() -> None:
        if os.getpid() == pid:
            stdin.close()
            parent.wait()
            stdout.close()
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(end)
    assert stdout.readline() == b"there\n", "the warm parent has not started"
    return folder


_of_another: Path | None = None


def use(folder: Path) -> None:
    """Have this process's programs forked by a parent that another process has started, and will end."""
    global _of_another
    _of_another = folder


def spent_s() -> float:
    """Processor time of those of this process's programs that have ended and are of another's parent: no children."""
    if _of_another is None:
        return 0.0
    try:
        return float((_of_another / f"spent.{os.environ['PYTEST_XDIST_WORKER']}").read_text())
    except FileNotFoundError:  # none has ended
        return 0.0


@functools.cache
def _folder(pid: int) -> Path:
    folder = _of_another or start()
    with socket.socket(socket.AF_UNIX) as sock:  # who measures, or sets a limit, does not wait for torch
        sock.connect(str(folder / "parent"))
        nothing = marshal.dumps({})
        sock.sendall(len(nothing).to_bytes(4, "little") + nothing)
        assert sock.recv(4) == b"warm", "the warm parent has ended"
    return folder


def python() -> str:
    return str(_folder(os.getpid()) / "python")


def torchrun() -> str:
    return str(_folder(os.getpid()) / "torchrun")
