"""`lazycast doctor` as a user starts it: alone, under torchrun, under mpirun; and where something is wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lazycast import __version__
from lazycast.tools import cli
from tests import warm

from .command import run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
DOCTOR = ["-m", "lazycast", "doctor"]
MPIRUN = [str(BIN / "mpirun"), "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else [])]


def python() -> list[str]:
    return [warm.python()]


def torchrun(ranks: int) -> list[str]:
    return [warm.torchrun(), "--nproc-per-node", str(ranks)]


def mpirun(ranks: int) -> list[str]:
    return [*MPIRUN, "-n", str(ranks), sys.executable]


def by_name(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in said["findings"]}


def examined(command: list[str], code: int, **env: str) -> dict[str, Any]:
    """Run a doctor that prints JSON, check its exit code, and return what it said."""
    done = run([*command, "--json"], timeout_s=200, **env)
    assert done.returncode == code, done.stdout + done.stderr
    assert "a call failed" not in done.stderr, "what fails on purpose is not told"
    said: dict[str, Any] = json.loads(done.stdout)  # and nothing else is on standard output
    assert said["lazycast"] == __version__
    return said


def check_healthy(said: dict[str, Any], ranks: int) -> None:
    findings = by_name(said)
    assert said["verdict"] in ("ok", "note"), said["findings"]
    assert (said["ranks"], said["silent"], said["hosts"]) == (ranks, [], [list(range(ranks))])
    assert said["descriptors_pass"] == [[True] * ranks] * ranks
    assert [fact["rank"] for fact in said["facts"]] == list(range(ranks))
    assert len({fact["machine"]["pid"] for fact in said["facts"]}) == ranks
    assert findings["group"]["verdict"] == findings["shared memory"]["verdict"] == "ok"
    values = findings["values"]
    assert (values["verdict"], values["details"]) == ("ok", [])
    assert f"compared on ranks 0-{ranks - 1}" in values["found"]
    speed = said["speed"]
    assert speed["nbytes"] == 64 << 20
    assert min(speed["cast_s"], speed["memcpy_s"], speed["small_s"]) > 0
    assert speed["ratio"] == pytest.approx(speed["cast_s"] / speed["memcpy_s"])


def test_alone() -> None:
    said = examined([*python(), *DOCTOR, "--ranks", "3", "--timeout-s", "60"], 0)
    check_healthy(said, 3)
    assert (said["launcher"], said["backend"]) == (None, "local")
    findings = by_name(said)
    for backend in ("torch", "mpi"):
        assert findings[f"backend {backend}"]["verdict"] == "ok"
        assert "two ranks have cast over it" in findings[f"backend {backend}"]["found"]
    assert "MPI_THREAD_MULTIPLE" in findings["backend mpi"]["found"]
    shown = re.findall(r"^  (?:ok|note|problem) +(\S.*?)  ", (ROOT / "docs/doctor.md").read_text(), re.MULTILINE)
    assert shown == list(findings), "the page shows another report: make docs-outputs"


@pytest.mark.exhaustive
def test_under_torchrun() -> None:
    said = examined([*torchrun(3), *DOCTOR, "--timeout-s", "60"], 0)
    check_healthy(said, 3)
    assert (said["launcher"], said["backend"]) == ("torchrun", "torch")
    assert "tensor" not in by_name(said)["values"]["details"]
    assert by_name(said)["gloo interface"]["verdict"] == "ok"


@pytest.mark.exhaustive
def test_under_mpirun() -> None:
    said = examined([*mpirun(3), *DOCTOR, "--timeout-s", "60"], 0)
    check_healthy(said, 3)
    assert (said["launcher"], said["backend"]) == ("an MPI launcher", "mpi")
    assert "MPI_THREAD_MULTIPLE" in by_name(said)["MPI"]["found"]


@pytest.mark.exhaustive
def test_as_text_it_casts_nothing_if_told_so() -> None:
    done = run([*torchrun(2), *DOCTOR, "--no-self-test"], timeout_s=200, COLUMNS="120")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == f"lazycast {__version__}: 2 ranks, started by torchrun"
    assert [line for line in lines if line and not line.startswith(" ")][1:-1] == [
        "software",
        "ranks",
        "host",
        "limits",
        "network",
    ]
    assert any(line.split()[:2] == ["ok", "hosts"] for line in lines)
    assert done.stdout.count("lazycast ") >= 1
    assert "lazycast doctor: calling the roll" in done.stderr


# Usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ranks", "1"], "--ranks: must be a whole number of at least 2"),
        (["--timeout-s", "0"], "--timeout-s: must be"),
    ],
    ids=str,
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["doctor", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_launcher_has_its_own_number_of_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LAZYCAST_RANK", "0")
    assert cli.main(["doctor", "--ranks", "2"]) == 2
    assert "this job has the ranks that LAZYCAST_RANK has started" in capsys.readouterr().err


# Where something is wrong


def local_job(folder: Path, code: int, *ranks: list[str], before: dict[int, list[str]] | None = None) -> dict[str, Any]:
    """Run local ranks, each with arguments of Python of its own; check that rank 0 alone reports, and return what."""
    meeting = folder / "meeting"
    meeting.mkdir()
    job = {**os.environ, "LAZYCAST_WORLD_SIZE": str(len(ranks)), "LAZYCAST_RENDEZVOUS": str(meeting)}

    def interpreter(rank: int) -> list[str]:
        """One that a warm parent forks has that one's namespaces, whatever was run before it."""
        first = (before or {}).get(rank)
        return python() if first is None else [*first, sys.executable]

    processes = [
        subprocess.Popen(
            [*interpreter(rank), *arguments, "--json", "--no-self-test"],
            env={**job, "LAZYCAST_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for rank, arguments in enumerate(ranks)
    ]
    try:
        out, *others = [process.communicate(timeout=200)[0] for process in processes]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert [process.returncode for process in processes] == [code] + [0] * (len(ranks) - 1), out
    assert "".join(others) == "", "only rank 0 reports"
    said: dict[str, Any] = json.loads(out)
    left = [path.name for path in meeting.iterdir() if not path.name.startswith("doctor-0-")]
    assert not left, "what ranks have sent to rank 0 is gone"
    return said


def wrapped(tmp_path: Path, before: str) -> list[str]:
    """A doctor behind some lines of code, which know `rank`, their own as the launcher says it."""
    script = tmp_path / "doctor.py"
    script.write_text(
        "import os, resource, signal, sys, time\n"
        "rank = int(os.environ.get('RANK') or os.environ.get('OMPI_COMM_WORLD_RANK')"
        " or os.environ.get('LAZYCAST_RANK') or 0)\n"
        f"{before}\n"
        "from lazycast.tools.cli import main\n"
        "sys.exit(main(['doctor', *sys.argv[1:]]))\n"
    )
    return [str(script)]


@pytest.mark.exhaustive
def test_too_few_descriptors_are_a_problem(tmp_path: Path) -> None:
    script = wrapped(
        tmp_path,
        "resource.setrlimit(resource.RLIMIT_NOFILE, (14, 14))\nsys.modules['torch'] = sys.modules['mpi4py'] = None",
    )
    said = examined([sys.executable, *script, "--no-self-test", "--ranks", "2"], 1)
    finding = by_name(said)["open files"]
    assert finding["verdict"] == "problem", said["findings"]
    assert "ulimit -n 65536" in finding["remedy"]


@pytest.mark.exhaustive
def test_a_library_that_is_missing_where_it_is_needed(tmp_path: Path) -> None:
    script = wrapped(tmp_path, "sys.modules['mpi4py'] = None")
    said = examined([*mpirun(2), *script], 1)
    finding = by_name(said)["joining"]
    assert "the MPI backend needs mpi4py" in finding["found"]
    assert "pip install 'lazycast[mpi]'" in finding["remedy"]


@pytest.mark.exhaustive
def test_no_shared_memory(tmp_path: Path) -> None:
    """As in a sandbox that has no memfd: everything works over the network, and the doctor says why it is slow."""
    script = wrapped(tmp_path, "del os.memfd_create")
    said = examined([*torchrun(2), *script, "--timeout-s", "60"], 1)
    findings = by_name(said)
    assert said["hosts"] == [[0], [1]]
    assert said["descriptors_pass"] == [[True, False], [False, True]]
    assert findings["shared memory"]["verdict"] == findings["hosts"]["verdict"] == "problem"
    assert "this rank shares no memory: no shared memory on this platform" in findings["hosts"]["details"][0]
    assert findings["values"]["verdict"] == "ok"


@pytest.mark.exhaustive
def test_ranks_that_are_kept_apart_by_their_label(tmp_path: Path) -> None:
    script = wrapped(tmp_path, "os.environ['LAZYCAST_HOST'] = str(rank // 2)")
    said = local_job(tmp_path, 0, *[script] * 4)
    finding = by_name(said)["hosts"]
    assert said["hosts"] == [[0, 1], [2, 3]]
    assert (finding["verdict"], finding["remedy"]) == ("note", "unset LAZYCAST_HOST to let them share")
    assert finding["details"][0].startswith("ranks 0-1 and ranks 2-3: kept apart: LAZYCAST_HOST is '0' there and '1'")


@pytest.mark.exhaustive
def test_an_mpi_that_lets_one_thread_call_it() -> None:
    said = examined([*mpirun(2), *DOCTOR], 1, MPI4PY_RC_THREAD_LEVEL="single")
    findings = by_name(said)
    assert findings["MPI"]["verdict"] == findings["group"]["verdict"] == "problem"
    assert "MPI_THREAD_SINGLE" in findings["MPI"]["found"]
    assert said["ranks"] == 2, "ranks answer even so"


@pytest.mark.exhaustive
def test_an_mpi_that_is_not_the_launchers(tmp_path: Path) -> None:
    """Without what PMIx needs, each process is an MPI of its own, as with another library than the launcher's."""
    hide = "for name in [n for n in os.environ if n.startswith(('PMIX_', 'PRTE_'))]: del os.environ[name]"
    said = examined([*mpirun(2), *wrapped(tmp_path, hide)], 1)
    finding = by_name(said)["MPI"]
    assert "the launcher has started 2 ranks, and MPI knows of 1" in finding["found"]
    assert "another MPI library" in finding["remedy"]


@pytest.mark.exhaustive
def test_a_gloo_interface_that_does_not_exist() -> None:
    done = run([*torchrun(2), *DOCTOR, "--json", "--timeout-s", "10"], timeout_s=200, GLOO_SOCKET_IFNAME="no-such0")
    assert done.returncode == 1, done.stdout + done.stderr
    findings = by_name(json.loads(done.stdout))
    assert findings["gloo interface"]["verdict"] == "problem"
    assert findings["group"]["verdict"] == "problem"
    assert any("no-such0" in detail for detail in findings["group"]["details"]), findings["group"]


def test_a_rank_that_does_not_answer_is_named(tmp_path: Path) -> None:
    script = [*wrapped(tmp_path, "if rank == 1: sys.exit()"), "--timeout-s", "5"]
    said = local_job(tmp_path, 1, *[script] * 3)
    assert said["silent"] == [1]
    assert by_name(said)["answers"]["found"] == "rank 1 did not answer (the roll call)"


@pytest.mark.exhaustive
def test_a_rank_that_fails_in_the_middle_is_named(tmp_path: Path) -> None:
    """It answers the roll call, and is gone when it should construct its object."""
    hang = "from lazycast.tools.doctor import trial\nif rank == 2: trial.run = lambda *args, **kwargs: sys.exit(0)"
    said = local_job(tmp_path, 1, *[[*wrapped(tmp_path, hang), "--timeout-s", "3"]] * 3)
    assert said["silent"] == [2]
    findings = by_name(said)
    assert findings["answers"]["found"] == "rank 2 did not answer (what became of the trial)"
    assert any("CastTimeoutError" in line and "rank 2" in line for line in findings["group"]["details"])


@pytest.mark.exhaustive
def test_a_killed_rank_is_named_before_torchrun_ends_the_others(tmp_path: Path) -> None:
    """torchrun sends SIGTERM to all when one dies; rank 0 is told of the death by nobody else."""
    die = (
        "from lazycast.tools.doctor import session\n"
        "collect = session.Gathering.collect\n"
        "def slow(self, ranks, timeout_s):\n"
        f"    open({str(tmp_path / 'collecting')!r}, 'w').close()\n"
        "    return collect(self, ranks, timeout_s)\n"
        "session.Gathering.collect = slow\n"
        "while rank == 1:\n"
        "    time.sleep(0.05)\n"
        f"    if os.path.exists({str(tmp_path / 'collecting')!r}): os.kill(os.getpid(), signal.SIGKILL)"
    )
    said = examined([*torchrun(2), *wrapped(tmp_path, die), "--timeout-s", "60"], 1)
    assert said["silent"] == [1]
    assert by_name(said)["job"]["found"] == "the launcher ended this job while rank 0 was calling the roll"


@pytest.mark.exhaustive
def test_an_mpi_that_waits_for_a_rank_that_does_not_come(tmp_path: Path) -> None:
    """mpi4py starts MPI without letting go of the interpreter, so a child process has to say so."""
    script = wrapped(tmp_path, "if rank == 1: time.sleep(100)")
    done = run([*mpirun(2), *script, "--json", "--timeout-s", "5"], timeout_s=200)
    assert done.returncode != 0
    said = json.loads(done.stdout)
    assert by_name(said)["job"]["found"].startswith("rank 0 could not start MPI, within 5 s or before it was ended")


@pytest.mark.exhaustive
def test_two_network_namespaces_of_one_machine(tmp_path: Path) -> None:
    """As with two containers: sockets in a folder connect the ranks, and abstract ones do not."""
    unshare = ["unshare", "--net", "--"]
    can = subprocess.run([*unshare, "true"], capture_output=True, text=True, timeout=20, check=False)
    if can.returncode != 0:
        pytest.skip(f"network namespaces cannot be made: {can.stderr}")
    said = local_job(tmp_path, 1, DOCTOR, DOCTOR, DOCTOR, before={2: unshare})
    assert said["hosts"] == [[0, 1], [2]]
    finding = by_name(said)["hosts"]
    assert finding["verdict"] == "problem"
    assert finding["details"][0].startswith("ranks 0-1 and rank 2: on one machine, in two network namespaces")
    assert "--network container:NAME" in finding["remedy"]
