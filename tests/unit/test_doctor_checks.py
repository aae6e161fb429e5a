"""The doctor's checks: plain functions from what ranks have found to findings."""

from __future__ import annotations

import importlib.util
from typing import Any

import msgspec
import pytest

from lazycast.errors import BackendUnavailableError
from lazycast.materialize.cores import Cores
from lazycast.start import commands
from lazycast.tools.doctor import libraries, limits, machine, network, processors, report, selftest, sharing
from lazycast.tools.doctor.finding import Finding, by_rank, ranks_text, size_text, worst
from lazycast.tools.doctor.libraries import MPI, Probe, Versions
from lazycast.tools.doctor.limits import Limits
from lazycast.tools.doctor.machine import Machine
from lazycast.tools.doctor.network import Interface
from lazycast.tools.doctor.selftest import Outcome, Speed
from lazycast.tools.doctor.trial import Trial

GIB = 1 << 30


def limits_of(rank: int = 0, size: int = 4, host: str = "a", **changes: Any) -> Limits:
    """A rank that nothing limits much."""
    usual = Limits(rank, size, host, 20_000, 20_000, 10, None, GIB, None, None, 64 * GIB, 0)
    return msgspec.structs.replace(usual, **changes)


def machine_of(rank: int, **changes: Any) -> Machine:
    usual = Machine(rank, "a", 100 + rank, 0, "boot-1", {"net": "net:[1]"}, "6.1", None, 64 << 20, None)
    return msgspec.structs.replace(usual, **changes)


def interface_of(rank: int = 0, **changes: Any) -> Interface:
    usual = Interface(rank, "boot-1", "a", None, "eth0", "10.0.0.1", None, ["eth0 (10.0.0.1)"])
    return msgspec.structs.replace(usual, **changes)


# Words


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "rank 3"), ([0, 1], "ranks 0-1"), ([6, 2, 1, 0], "ranks 0-2, 6"), (range(64), "ranks 0-63"), ([], "ranks ")],
    ids=str,
)
def test_ranks_are_named_briefly(ranks: Any, text: str) -> None:
    assert ranks_text(ranks) == text


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [
        (0, "0 bytes"),
        (1023, "1,023 bytes"),
        (1536, "1.5 KiB"),
        (64 << 20, "64 MiB"),
        (GIB, "1 GiB"),
        (3 << 40, "3,072 GiB"),
    ],
)
def test_sizes(nbytes: int, text: str) -> None:
    assert size_text(nbytes) == text


def test_what_all_ranks_say_is_said_once() -> None:
    assert by_rank([5, 5], lambda _: 0, str) == "5"
    assert by_rank([(0, "x"), (1, "y"), (2, "x")], lambda t: t[0], lambda t: t[1]) == "ranks 0, 2: x; rank 1: y"


def test_the_worst_verdict_rules() -> None:
    ok, note, problem = (Finding("s", "n", verdict, "f") for verdict in ("ok", "note", "problem"))  # type: ignore[arg-type]
    assert worst([]) == worst([ok]) == "ok"
    assert worst([ok, note, ok]) == "note"
    assert worst([note, problem, ok]) == "problem"


# Limits


def test_plenty_of_everything() -> None:
    ranks = [limits_of(rank) for rank in range(4)]
    for check in (limits.open_files, limits.memory, limits.address_space):
        finding = check(ranks)
        assert (finding.verdict, finding.remedy) == ("ok", None), finding


def test_few_descriptors_are_a_note_and_none_a_problem() -> None:
    ranks = [limits_of(0), limits_of(1, files_soft=64, files_hard=64, files_open=30)]
    finding = limits.open_files(ranks)
    assert finding.verdict == "note"
    assert finding.found == "rank 0: 20,000; rank 1: 64, 30 open on rank 1: room for 2 objects of 4 ranks"
    assert finding.remedy is not None
    assert finding.remedy.startswith("ulimit -n 65536")
    assert "hard limit here: 64" in finding.remedy
    finding = limits.open_files([limits_of(files_soft=40, files_hard=None, files_open=30)])
    assert (finding.verdict, finding.remedy) == ("problem", "ulimit -n 65536 before the job starts")
    assert "room for no objects" in finding.found


def test_a_cgroup_without_room_is_a_problem() -> None:
    finding = limits.memory([limits_of(headroom=100 << 20)])
    assert finding.verdict == "problem"
    assert "100 MiB left in the cgroup" in finding.found
    finding = limits.memory([limits_of(headroom=700 << 20), limits_of(1, headroom=None, host="b")])
    assert finding.verdict == "note"
    assert "rank 0" in finding.found
    assert "arena_nbytes" in (finding.remedy or "")


def test_a_kernel_that_does_not_overcommit_is_a_note() -> None:
    finding = limits.memory([limits_of(overcommit=2)])
    assert finding.verdict == "note"
    assert "vm.overcommit_memory" in (finding.remedy or "")


def test_address_space_is_counted_for_all_arenas_of_a_host() -> None:
    four = [limits_of(rank, address_space=4 * GIB, address_space_used=GIB) for rank in range(4)]
    finding = limits.address_space(four)
    assert finding.verdict == "problem"
    assert finding.found == "3 GiB left on rank 0 by RLIMIT_AS, 4 GiB needed for 4 arenas"
    assert f"arena_nbytes={256 << 20}" in (finding.remedy or "")
    spread = [msgspec.structs.replace(rank, host=f"h{rank.rank}") for rank in four]
    assert limits.address_space(spread).verdict == "ok"


def test_a_limit_on_files_counts_for_shared_memory() -> None:
    finding = limits.address_space([limits_of(file_nbytes=1 << 20)])
    assert finding.verdict == "problem"
    assert "RLIMIT_FSIZE allows rank 0 1 MiB" in finding.found


# Machine


def test_shared_memory_that_is_refused_is_a_problem() -> None:
    assert machine.shared_memory([machine_of(0)]).verdict == "ok"
    finding = machine.shared_memory([machine_of(0), machine_of(1, refusal="memfd_create: [Errno 1] no")])
    assert finding.verdict == "problem"
    assert finding.found == "not to be had: memfd_create: [Errno 1] no"
    assert "seccomp" in (finding.remedy or "")


def test_the_size_of_dev_shm_is_said_not_to_matter() -> None:
    finding = machine.place([machine_of(0, container="Docker"), machine_of(1, container=None)])
    assert finding.verdict == "ok"
    assert finding.found.startswith("rank 0: Docker; rank 1: none seen; the sizes of /dev/shm (64 MiB)")


@pytest.mark.parametrize(
    ("names", "kind"),
    [({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "Kubernetes"), ({"APPTAINER_CONTAINER": "x.sif"}, "Apptainer")],
    ids=str,
)
def test_containers_are_told_by_what_they_leave(
    names: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine.Path, "exists", lambda self: False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert machine.container() == kind


# Cores


def test_a_core_for_each_rank_is_enough() -> None:
    finding = processors.per_rank(["a", "a"], [Cores([0, 1])] * 2)
    assert (finding.verdict, finding.found) == ("ok", "2 cores for 2 ranks")


def test_fewer_cores_than_ranks_are_a_note_and_quotas_are_named() -> None:
    finding = processors.per_rank(["a", "a", "b", "b"], [Cores([0, 1, 2, 3], 1.5)] * 2 + [Cores([0, 1])] * 2)
    assert finding.verdict == "note"
    assert finding.found == "a: 1.5 cores (the cgroup's quota) for 2 ranks; b: 2 cores for 2 ranks"
    assert "fewer ranks" in (finding.remedy or "")


def test_helpers_have_the_cores_that_ranks_leave() -> None:
    assert processors.for_helpers(["a", "a"], [Cores([0, 1, 2, 3, 4])] * 2).found == (
        "3 cores are left beside 2 ranks: up to Helpers(3)"
    )
    hosts, ranks = ["a", "a", "b", "b"], [Cores([0, 1])] * 2 + [Cores([0, 1, 2, 3], 3.5)] * 2
    finding = processors.for_helpers(hosts, ranks)
    assert finding.verdict == "ok"
    assert finding.found == (
        "a: no core is left beside 2 ranks: helpers would share theirs; "
        "b: 1 core is left beside 2 ranks: up to Helpers(1)"
    )


# Network


def test_loopback_is_enough_on_one_machine_and_a_problem_on_two() -> None:
    lo = {"name": "lo", "address": "127.0.1.1"}
    assert network.gloo([interface_of(0, **lo), interface_of(1, **lo)]).verdict == "ok"
    finding = network.gloo([interface_of(0, **lo), interface_of(1, boot="boot-2", host="b")])
    assert finding.verdict == "problem"
    assert (finding.remedy or "").startswith("on rank 0, set GLOO_SOCKET_IFNAME to the interface")
    assert "eth0 (10.0.0.1)" in (finding.remedy or "")


def test_an_interface_that_does_not_exist_is_a_problem_anywhere() -> None:
    bad = interface_of(asked="eth9", name=None, address=None, problem="there is no interface 'eth9'")
    finding = network.gloo([bad])
    assert finding.verdict == "problem"
    assert finding.found == "GLOO_SOCKET_IFNAME=eth9: there is no interface 'eth9'"
    assert finding.remedy == "set GLOO_SOCKET_IFNAME to one of: eth0 (10.0.0.1)"


def test_a_host_name_that_does_not_resolve_is_a_note_on_one_machine() -> None:
    lost = interface_of(name=None, address=None, problem="the host name 'a' does not resolve", others=[])
    assert network.gloo([lost]).verdict == "note"
    finding = network.gloo([lost, interface_of(1, boot="boot-2")])
    assert finding.verdict == "problem"
    assert "no other interface" in (finding.remedy or "")


# Libraries


def test_other_versions_of_lazycast_or_python_are_a_problem_and_of_numpy_a_note() -> None:
    one = {"python": "3.11.7", "lazycast": "0.1.0", "numpy": "2.1"}
    assert libraries.versions([Versions(0, one), Versions(1, one)]).verdict == "ok"
    finding = libraries.versions([Versions(0, one), Versions(1, {**one, "numpy": "2.0"})])
    assert (finding.verdict, finding.remedy) == ("note", "install the same numpy on every rank")
    for other in ({"lazycast": "0.2.0"}, {"python": "3.12.1"}):
        finding = libraries.versions([Versions(0, one), Versions(1, {**one, **other})])
        assert finding.verdict == "problem"
        assert next(iter(other)) in (finding.remedy or "")
    assert libraries.versions([Versions(0, one), Versions(1, {**one, "python": "3.11.9"})]).verdict == "note"


def test_a_backend_that_is_missing_is_a_problem_only_where_it_is_wanted() -> None:
    missing = Probe("torch", "the torch backend needs torch")
    finding = libraries.backend(missing, wanted=True)
    assert (finding.verdict, finding.found) == ("problem", "not usable: the torch backend needs torch")
    assert "pip install 'lazycast[torch]'" in (finding.remedy or "")
    assert libraries.backend(missing, wanted=False).verdict == "note"


@pytest.mark.parametrize("name", ["torch", "mpi"])
def test_what_to_install_is_said_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = {"torch": "torch", "mpi": "mpi4py"}[name]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BackendUnavailableError) as caught:
        commands.require(name)
    finding = libraries.backend(Probe(name, str(caught.value)), wanted=False)
    assert f"needs {library}, which is not installed" in finding.found
    assert (finding.found + (finding.remedy or "")).count(f"pip install 'lazycast[{name}]'") == 1


def test_the_reason_stays_when_the_command_goes() -> None:
    text = "the MPI backend needs mpi4py: pip install 'lazycast[mpi]', and an MPI (No module named 'mpi4py')"
    finding = libraries.backend(Probe("mpi", text), wanted=True)
    assert finding.found == "not usable: the MPI backend needs mpi4py (No module named 'mpi4py')"


def test_a_library_that_loads_slowly_need_not_be_installed() -> None:
    slow = libraries.probe("local", timeout_s=0.001)
    assert slow.problem == "loading it took longer than 0.001 s"
    remedy = libraries.backend(msgspec.structs.replace(slow, name="torch"), wanted=False).remedy or ""
    assert "--timeout-s" in remedy
    assert "install" not in remedy


def test_a_long_problem_is_shortened() -> None:
    assert "ask whoever brings" in (libraries.backend(Probe("theirs", "no"), wanted=True).remedy or "")
    assert len(libraries.backend(Probe("mpi", "cannot load " * 100), wanted=True).found) < 300


def test_mpi_needs_all_threads_and_the_launchers_library() -> None:
    good = MPI(0, "Open MPI v5", "3.1", "MPI_THREAD_MULTIPLE", 4)
    assert libraries.mpi_threads([good], 4).verdict == "ok"
    assert libraries.mpi_threads([good], None).verdict == "ok"
    finding = libraries.mpi_threads([msgspec.structs.replace(good, thread_level="MPI_THREAD_SINGLE")], 4)
    assert finding.verdict == "problem"
    assert "MPI4PY_RC_THREAD_LEVEL" in (finding.remedy or "")
    finding = libraries.mpi_threads([msgspec.structs.replace(good, size=1)], 4)
    assert finding.verdict == "problem"
    assert "the launcher has started 4 ranks, and MPI knows of 1" in finding.found
    assert "another MPI library" in (finding.remedy or "")


# Who shares with whom


def trials_of(hosts: list[list[int]], reached: list[list[int]], **refused: str) -> list[Trial]:
    """Trials of as many ranks as there are in `reached`; `refused` by "r2_0": rank 2 about rank 0."""
    said: dict[int, dict[int, str]] = {rank: {} for rank in range(len(reached))}
    for pair, why in refused.items():
        high, low = map(int, pair[1:].split("_"))
        said[high][low] = why
    return [Trial(rank, "done", None, reached, said[rank], hosts, 0.1) for rank in range(len(reached))]


def test_one_host() -> None:
    trials = trials_of([[0, 1, 2]], [[], [0], [0, 1]])
    finding = sharing.hosts(trials, [machine_of(rank) for rank in range(3)])
    assert (finding.verdict, finding.found) == ("ok", "1 host (a: ranks 0-2); memory is shared by all")
    assert sharing.matrix(trials[0].reached) == [[True] * 3] * 3


def test_two_machines_are_fine() -> None:
    trials = trials_of([[0], [1]], [[], []], r1_0="Connection refused")
    finding = sharing.hosts(trials, [machine_of(0), machine_of(1, boot="boot-2", host="b")])
    assert (finding.verdict, finding.remedy) == ("ok", None)
    assert finding.details[0] == "rank 0 and rank 1: on two machines"
    assert sharing.matrix(trials[0].reached) == [[True, False], [False, True]]


@pytest.mark.parametrize(
    ("why", "other", "verdict", "said", "remedy"),
    [
        ("LAZYCAST_HOST is 'x' there and '' here", {}, "note", "kept apart", "unset LAZYCAST_HOST"),
        ("refused", {"namespaces": {"net": "net:[2]"}}, "problem", "two network namespaces (refused)", "--network"),
        ("refused", {"uid": 7}, "problem", "run by two users, 0 and 7", "as one user"),
        ("it shares no memory", {"refusal": "no"}, "problem", "it shares no memory", "see the line on shared memory"),
        ("[Errno 13] no", {}, "problem", "[Errno 13] no", "a sandbox may forbid it"),
    ],
    ids=["label", "namespace", "user", "memfd", "unknown"],
)
def test_ranks_of_one_machine_that_do_not_share_are_told_why(
    why: str, other: dict[str, Any], verdict: str, said: str, remedy: str
) -> None:
    trials = trials_of([[0, 1], [2]], [[], [0], [1]], r2_0=why)
    finding = sharing.hosts(trials, [machine_of(0), machine_of(1), machine_of(2, **other)])
    assert finding.verdict == verdict
    assert said in finding.details[0]
    assert finding.details[0].startswith("ranks 0-1 and rank 2: ")
    assert remedy in (finding.remedy or "")
    assert [line.split()[-3:] for line in finding.details[1:]] == [
        ["0", "1", "2"],
        ["+", "+", "-"],
        ["+", "+", "+"],
        ["-", "+", "+"],
    ]


def test_who_failed_and_where() -> None:
    good, late = Trial(0, "done", construct_s=0.5), Trial(1, "the self-test", "CastTimeoutError: missing:\nrank 2")
    assert sharing.constructed([good]).verdict == "ok"
    finding = sharing.constructed([good, late])
    assert (finding.verdict, finding.found) == ("problem", "rank 1 failed in the self-test")
    assert finding.details == ("rank 1: the self-test: CastTimeoutError: missing: rank 2",)


# The self-test


def test_values_that_differ_are_a_problem_that_names_them() -> None:
    good = Outcome(["bytes", "array"], {}, None)
    assert selftest.correctness({0: good, 1: good}).verdict == "ok"
    finding = selftest.correctness({0: good, 1: Outcome(["bytes", "array"], {"array": "other contents"}, None)})
    assert (finding.verdict, finding.details) == ("problem", ("rank 1: array: other contents",))
    assert finding.found == "rank 1 got something else than was cast"


@pytest.mark.parametrize(
    ("cast_s", "small_s", "one_host", "verdicts"),
    [
        (0.008, 0.001, True, ["ok", "ok"]),
        (0.080, 0.001, True, ["note", "ok"]),
        (0.080, 0.001, False, ["ok", "ok"]),
        (0.008, 0.100, True, ["ok", "note"]),
    ],
)
def test_slow_is_a_note(cast_s: float, small_s: float, one_host: bool, verdicts: list[str]) -> None:
    found = selftest.speed(Speed(64 << 20, cast_s, 0.005, 1024, small_s), one_host=one_host, size=4)
    assert [finding.verdict for finding in found] == verdicts
    assert all((finding.remedy is None) == (finding.verdict == "ok") for finding in found)
    assert f"{cast_s / 0.005:.1f} x one memcpy" in found[0].found


def test_the_payload_is_what_there_is_room_for() -> None:
    assert selftest._affordable(None) == 64 << 20
    assert selftest._affordable(10 * GIB) == 64 << 20
    assert selftest._affordable((64 << 20) + (33 << 20)) == 8 << 20
    assert selftest._affordable(0) == 1 << 20


# The report


def test_the_report_says_verdict_name_and_remedy() -> None:
    findings = [
        Finding("one", "first", "ok", "fine"),
        Finding("two", "second", "problem", "bad " * 30, "do this", ("detail",)),
        Finding("one", "third", "note", "so so", "or that"),
    ]
    text = report.text("2 ranks", findings)
    head, _, *rest = text.splitlines()
    assert head.endswith(": 2 ranks")
    assert rest[:4] == [
        "one",
        "  ok       first           fine",
        "  note     third           so so",
        " " * 27 + "→ or that",
    ]
    assert "  problem  second          bad bad" in text
    assert text.index("detail") < text.index("→ do this")
    assert rest[-1] == "1 problem, 1 note"
    assert report.summary(findings[:1]) == "all is well"
    assert report.summary([findings[2]] * 2) == "2 notes"
