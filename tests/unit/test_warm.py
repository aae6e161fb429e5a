"""A warm Python is like a cold one: what it is given, and how it ends."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.own_shm import own_shm

SHOW = """
import os, sys
print(sys.argv, os.getcwd(), os.environ.get("GIVEN"), sys.stdin.read(), sorted(map(int, os.listdir("/proc/self/fd"))))
print("to stderr", __name__, __file__, file=sys.stderr)
print("lazycast" in sys.modules, sys.path[0])
"""


@pytest.fixture(autouse=True, scope="module")
def _started() -> None:
    """Its parent lasts, which is no leak of the first test."""
    warm.python()


def both(*arguments: str, **options: object) -> list[subprocess.CompletedProcess[str]]:
    common = {"capture_output": True, "text": True, "timeout": 60, "input": "of stdin", **options}
    return [
        subprocess.run([program, *arguments], **common)  # type: ignore[call-overload]
        for program in (sys.executable, warm.python())
    ]


def test_a_program_has_what_it_was_given(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SHOW)
    read, write = os.pipe()
    with open(read), open(write, "w"):
        env = {**os.environ, "GIVEN": "so"}
        cold, hot = both(str(script), "one", "-u", cwd=str(tmp_path), env=env, pass_fds=(write,))
    assert (hot.returncode, hot.stdout, hot.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    assert cold.returncode == 0


@pytest.mark.parametrize(
    "code",
    [
        "raise SystemExit(3)",
        "import sys; sys.exit('a text')",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import atexit; atexit.register(print, 'at exit'); 1 / 0",
        "import threading, time; threading.Thread(target=lambda: (time.sleep(0.2), print('done'))).start()",
        "import multiprocessing as m\np = m.get_context('spawn').Process(target=print, args=(1,))\np.start()\np.join()",
        "import warnings; warnings.warn('x', ResourceWarning)",
    ],
)
def test_it_ends_as_a_program_ends(code: str) -> None:
    cold, hot = both("-c", code, env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"})
    assert (hot.returncode, hot.stdout) == (cold.returncode, cold.stdout), hot.stderr
    assert hot.stderr.splitlines()[-1:] == cold.stderr.splitlines()[-1:]


def test_lazycast_is_imported_with_the_same_modules() -> None:
    code = (
        "import sys\n"
        "assert not [name for name in sys.modules if name.startswith('lazycast')]\n"
        "import lazycast.backends.local\n"
        "mine = [module for name, module in sys.modules.items() if name.startswith('lazycast')]\n"
        "print(sorted((module.__name__, module.__spec__.name, module.__spec__.origin) for module in mine))\n"
        "print(type(lazycast.__spec__.loader), lazycast.__path__, len(sys.meta_path), sorted(dir(lazycast)))\n"
    )
    cold, hot = both("-c", code)
    assert (hot.returncode, hot.stdout) == (cold.returncode, cold.stdout), hot.stderr
    assert "lazycast.core.casts" in cold.stdout


def test_another_lazycast_is_another(tmp_path: Path) -> None:
    (tmp_path / "lazycast").mkdir()
    (tmp_path / "lazycast" / "__init__.py").write_text("import sys\nprint([n for n in sys.modules if 'lazycast' in n])")
    cold, hot = both("-c", "import lazycast; print(lazycast.__file__)", cwd=str(tmp_path))
    assert (hot.returncode, hot.stdout) == (cold.returncode, cold.stdout), hot.stderr
    assert str(tmp_path) in cold.stdout


def test_a_module_is_run_as_one() -> None:
    cold, hot = both("-m", "platform", "--terse")
    assert (hot.returncode, hot.stdout) == (cold.returncode, cold.stdout)


def test_it_is_in_the_namespaces_of_its_caller() -> None:
    show = "import os; print(*(os.readlink(f'/proc/self/ns/{name}') for name in ('mnt', 'net')), os.getcwd())"
    with own_shm() as shm:
        cold, hot = (
            subprocess.run([*shm.within, python, "-c", show], capture_output=True, text=True, check=True).stdout
            for python in (sys.executable, warm.python())
        )
        assert hot.split()[0] == os.readlink(f"/proc/{shm.holder}/ns/mnt") != os.readlink("/proc/self/ns/mnt")
    assert hot == cold


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_it(number: int) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    with subprocess.Popen([warm.python(), "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        ended = os.pidfd_open(pid)
        process.send_signal(number)
        assert process.wait(20) == -number
        assert select.select([ended], [], [], 20)[0], "it lives on"
        os.close(ended)


def test_callers_that_are_killed_before_they_have_said_all_harm_nobody() -> None:
    parent = Path(warm.python()).with_name("parent")
    for said in (b"", b"\x10", (16).to_bytes(4, "little"), (3).to_bytes(4, "little") + b"???"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(parent))
            if said:
                socket.send_fds(sock, [said], [0, 1, 2])
    done = subprocess.run([warm.python(), "-c", "print('still there')"], capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (0, "still there\n")


def test_a_program_that_nobody_runs_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "python").write_text(Path(warm.python()).read_text())
    (tmp_path / "python").chmod(0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "parent"))
        listener.listen()
        caller = subprocess.Popen([tmp_path / "python", "-c", "pass"])
        with listener.accept()[0] as parent:  # which ends when it has heard all
            left = int.from_bytes(parent.recv(4), "little")
            while left:
                left -= len(parent.recv(left))
        assert caller.wait(60) not in (0, None)
