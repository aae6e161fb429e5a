"""What a rank finds when it looks at itself: bad conditions are made for real, most of them in a child process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from lazycast.tools.doctor import facts, job, libraries, machine, network
from lazycast.tools.doctor.facts import Facts
from lazycast.tools.doctor.job import Launcher
from lazycast.tools.doctor.posts import FolderPost, Gathering, Post, StorePost

RunPython = Callable[..., str]


def test_facts_travel() -> None:
    found = facts.look(2, 4, backend="local")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Facts) == found
    assert (found.rank, found.limits.size, found.mpi) == (2, 4, None)
    assert found.machine.pid == os.getpid()


# Limits


LIMITED = """
import resource, sys
resource.setrlimit(getattr(resource, sys.argv[1]), (int(sys.argv[2]),) * 2)
from lazycast.tools.doctor import limits
finding = getattr(limits, sys.argv[3])([limits.look(0, 4, "a")])
print(finding.verdict)
print(finding.found)
"""


@pytest.mark.parametrize(
    ("name", "number", "check", "verdict", "said"),
    [
        ("RLIMIT_NOFILE", 16, "open_files", "problem", "room for no objects of 4 ranks"),
        ("RLIMIT_NOFILE", 64, "open_files", "note", "room for 3 objects of 4 ranks"),
        ("RLIMIT_NOFILE", 4096, "open_files", "ok", "4,096: room for many objects"),
        ("RLIMIT_AS", 1 << 30, "address_space", "problem", "left on rank 0 by RLIMIT_AS, 1 GiB needed for 1 arena"),
        ("RLIMIT_FSIZE", 1 << 20, "address_space", "problem", "RLIMIT_FSIZE allows rank 0 1 MiB"),
    ],
)
def test_a_limit_is_seen(name: str, number: int, check: str, verdict: str, said: str, run_python: RunPython) -> None:
    out = run_python(LIMITED, name, str(number), check).splitlines()
    assert out[0] == verdict, out
    assert said in out[1]


def test_a_limit_on_files_is_one_on_shared_memory(run_python: RunPython) -> None:
    """The reason for that check."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
from lazycast.net.host.memory import create
create(1 << 20)
try:
    create(2 << 20)
except OSError as exc:
    print(type(exc).__name__)
"""
    assert run_python(code).split() == ["OSError"]


# The machine


def test_shared_memory_works_here_or_there_is_a_reason() -> None:
    found = machine.look(0)
    assert found.refusal is None
    assert found.host == socket.gethostname()
    assert {"net", "user"} <= set(found.namespaces)


@pytest.mark.parametrize(
    ("broken", "step"),
    [
        ("del os.memfd_create", "memfd_create: module 'os' has no attribute"),
        ("os.memfd_create = denied", "memfd_create: [Errno 1] denied"),
        ("memory.seal_against_writers = denied", "sealing against writers (F_SEAL_FUTURE_WRITE): [Errno 1] denied"),
        ("socket.socket = denied", "an abstract Unix socket: [Errno 1] denied"),
    ],
)
def test_what_a_sandbox_refuses_is_named(broken: str, step: str, run_python: RunPython) -> None:
    code = f"""
import os, socket
from lazycast.tools.doctor import machine
from lazycast.net.host import memory
def denied(*args):
    raise PermissionError(1, "denied")
{broken}
print(machine.refusal())
print(len(os.listdir("/proc/self/fd")))
"""
    said, fds = run_python(code).splitlines()
    assert said.startswith(step)
    assert int(fds) <= 5, "a descriptor was left open"


# The network


def test_the_interface_that_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(network.VARIABLE, "lo")
    found = network.look(0, "boot")
    assert (found.asked, found.name, found.address, found.problem) == ("lo", "lo", "127.0.0.1", None)
    assert found.loopback
    monkeypatch.setenv(network.VARIABLE, "no-such0,lo")
    found = network.look(0, "boot")
    assert (found.name, found.problem) == (None, "there is no interface 'no-such0'")
    assert network.gloo([found]).verdict == "problem"


def test_a_host_name_without_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(network.VARIABLE, raising=False)
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    found = network.look(0, "boot")
    assert found.address is None
    assert found.problem == "the host name 'no-such-host.invalid' does not resolve to an address of this machine"
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    assert network.look(0, "boot").loopback


# Libraries


@pytest.mark.parametrize(("module", "name"), [("torch", "torch"), ("mpi4py", "mpi")])
def test_a_missing_library_is_named_with_its_command(module: str, name: str, run_python: RunPython) -> None:
    code = f"""
import sys
sys.modules[{module!r}] = None
from lazycast.tools.doctor import libraries
finding = libraries.backend(libraries.load({name!r}), wanted=True)
print(finding.verdict, finding.remedy)
"""
    verdict, _, remedy = run_python(code).partition(" ")
    assert verdict == "problem"
    assert f"pip install 'lazycast[{name}]'" in remedy


def test_a_backend_is_tried_in_a_child_that_is_no_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A third party's backend, which writes down what it finds and prints what is none of our business."""
    (tmp_path / "loud_backend.py").write_text(
        "import os\nfrom lazycast.backends.local import LocalBackend as Loud\n"
        "print('hello'); print(sorted(n for n in os.environ if n in ('RANK', 'PMI_SIZE', 'OMPI_COMM_WORLD_RANK')))\n"
    )
    info = tmp_path / "loud-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: loud\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lazycast.backends]\nloud = loud_backend:Loud\ngone = no_such_module:X\ndead = dead_backend:X\n"
        "slow = slow_backend:X\n"
    )
    (tmp_path / "dead_backend.py").write_text("import os\nos._exit(7)\n")
    (tmp_path / "slow_backend.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK"):
        monkeypatch.setenv(name, "3")
    assert libraries.probe("loud", timeout_s=60).problem is None
    assert "No module named 'no_such_module'" in (libraries.probe("gone", timeout_s=60).problem or "")
    assert "exit code 7" in (libraries.probe("dead", timeout_s=60).problem or "")
    assert libraries.probe("slow", timeout_s=0.5).problem == "loading it took longer than 0.5 s"


def test_versions_are_those_installed() -> None:
    packages = libraries.look(0).packages
    assert packages["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"lazycast", "numpy", "cloudpickle"} <= set(packages)


# Who has started this process


TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, None),
        ({"WORLD_SIZE": "4"}, None),
        (TORCHRUN, Launcher("torchrun", "torch", 2, 4)),
        ({"OMPI_COMM_WORLD_SIZE": "3", "OMPI_COMM_WORLD_RANK": "1"}, Launcher("an MPI launcher", "mpi", 1, 3)),
        ({"PMI_SIZE": "3", "PMI_RANK": "2"}, Launcher("an MPI launcher", "mpi", 2, 3)),
        ({"PMIX_RANK": "5"}, Launcher("an MPI launcher", "mpi", 5, None)),
        ({**TORCHRUN, "PMI_SIZE": "3"}, Launcher("torchrun", "torch", 2, 4)),
        ({"LAZYCAST_RANK": "1", "LAZYCAST_WORLD_SIZE": "2"}, Launcher("LAZYCAST_RANK", "local", 1, 2)),
    ],
    ids=str,
)
def test_the_launcher_is_told_by_its_environment(environment: dict[str, str], found: Launcher | None) -> None:
    assert job.launcher(environment) == found


# Posts


@pytest.fixture(params=["folder", "store"])
def posts(request: pytest.FixtureRequest, tmp_path: Path) -> list[Post]:
    if request.param == "folder":
        return [FolderPost(tmp_path, rank, 3) for rank in range(3)]
    from torch._C._distributed_c10d import HashStore

    store = HashStore()
    return [StorePost(store, rank, 3) for rank in range(3)]


def test_posts_keep_order_and_pairs_apart(posts: list[Post]) -> None:
    root, one, two = posts
    assert root.poll(1) is None
    one.send(0, b"first")
    one.send(0, b"second")
    two.send(0, b"\0other\xff")
    root.send(2, b"go")
    assert [root.poll(1), root.poll(2), root.poll(1), root.poll(1)] == [b"first", b"\0other\xff", b"second", None]
    assert (one.poll(0), two.poll(0), two.poll(0)) == (None, b"go", None)
    root.flush(1.0)


def test_who_does_not_answer_is_named(posts: list[Post]) -> None:
    posts[2].send(0, b"here")
    missing: list[int] = []
    assert Gathering(posts[0], missing).collect([1, 2], 0.05) == {2: b"here"}
    assert missing == [1]
    posts[1].send(0, b"late")
    assert Gathering(posts[0], missing).collect([1], 20) == {1: b"late"}
    assert missing == []


# What speaks when nothing else can


def child(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


WATCHED = """
import signal, time
from lazycast.tools.doctor.watch import Watch
with Watch(lambda why: print("said:", why, flush=True)) as watch:
    watch.step("sleeping", {limit_s})
    print("ready", flush=True)
    signal.sigwait([signal.SIGUSR1])  # in C, where no handler of Python's runs
print("over")
"""


def test_a_watch_speaks_when_the_launcher_ends_the_process() -> None:
    process = child(WATCHED.format(limit_s=60))
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    out, _ = process.communicate(timeout=200)
    assert (process.returncode, out) == (1, "said: the launcher ended this job while rank 0 was sleeping\n")


def test_a_watch_ends_what_takes_too_long_and_shows_where_it_was() -> None:
    process = child(WATCHED.format(limit_s=0.3))
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out) == (1, "ready\nsaid: rank 0 was still sleeping after 0.3 s\n")
    assert "most recent call first" in err


def test_a_watch_leaves_everything_as_it_was(run_python: RunPython) -> None:
    code = """
import signal
from lazycast.tools.doctor.watch import Watch
before = signal.getsignal(signal.SIGTERM)
with Watch(print) as watch:
    watch.step("nothing", 60)
assert signal.getsignal(signal.SIGTERM) is before
assert signal.set_wakeup_fd(-1) == -1
print("well")
"""
    assert run_python(code) == "well\n"


GUARDED = """
import ctypes, sys
from lazycast.tools.doctor.guard import Guard
with Guard("it hangs: \u00d7", {limit_s}):
    if {hangs}:
        print("ready", file=sys.stderr, flush=True)
        ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the interpreter's lock
print("over")
"""


def test_a_guard_speaks_for_a_process_that_keeps_the_lock() -> None:
    process = child(GUARDED.format(limit_s=0.5, hangs=True))
    out, _ = process.communicate(timeout=200)
    assert (process.returncode, out) == (-signal.SIGKILL, "it hangs: \u00d7\n")


def test_a_guard_speaks_for_a_process_that_is_killed() -> None:
    process = child(GUARDED.format(limit_s=60, hangs=True))
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    process.kill()
    out, _ = process.communicate(timeout=200)
    assert out == "it hangs: \u00d7\n"


def test_a_guard_is_silent_when_all_goes_well() -> None:
    process = child(GUARDED.format(limit_s=60, hangs=False))
    out, err = process.communicate(timeout=200)
    assert (process.returncode, out, err) == (0, "over\n", "")


def test_steps_are_lines_when_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from lazycast.tools.cli.steps import Steps

    with Steps("lazycast doctor") as steps:
        steps.say("looking")
    with Steps("lazycast doctor", shown=False) as steps:
        steps.say("nothing")
    assert capsys.readouterr() == ("", "lazycast doctor: looking\n")


def test_data_is_json() -> None:
    from lazycast.tools.doctor import judge

    exam = judge.Examination("x", None, "local", facts=[facts.look(0, 1, backend="local")], silent=[1], awaited="it")
    said = json.loads(json.dumps(judge.as_data(exam)))
    assert (said["verdict"], said["silent"], said["ranks"], said["speed"]) == ("problem", [1], 2, None)
    assert any(finding["found"] == "rank 1 did not answer (it)" for finding in said["findings"])
