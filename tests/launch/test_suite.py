"""The conformance suite as a third party runs it: under torchrun, under mpirun, and on local processes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lazycast.testing.kit import behaviours, name_of
from tests import warm

from .command import run

BIN = Path(sys.executable).parent
PYTHON = str(BIN / "python")
SUITE = ["-m", "lazycast.testing"]
PARTS = str(Path(__file__).parent / "programs" / "suite_in_parts.py")
BACKENDS = ("local", "torch", "mpi")
#: What depends on what connects hosts, and on how ranks part. `conformance` has the others over a network.
OVER_TORCH = ("contract.", "values.", "diagnosis.", "pressure.", "lifecycle.", "observing.")


def command(backend: str, ranks: int) -> list[str]:
    if backend == "torch":
        return [warm.torchrun(), "--nproc_per_node", str(ranks), *SUITE, "--backend", "torch"]
    if backend == "mpi":
        mpirun = [str(BIN / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]
        return [*mpirun, warm.python(), *SUITE, "--backend", "mpi"]
    return [PYTHON, *SUITE, "--backend", backend, "--launch", str(ranks)]


def check_suite(backend: str, ranks: int, *, only: str = "", network: bool = False) -> None:
    """Run the suite, or the behaviours whose name contains `only`; check that each was run and has passed."""
    options = ["--only", only, *(["--network"] if network else [])]
    check([*command(backend, ranks), *options], (only,), backend, ranks)


def check(command: list[str], parts: tuple[str, ...], backend: str, ranks: int) -> None:
    """Run a command; check that each behaviour whose name contains one of `parts` was run and has passed."""
    done = run(command, timeout_s=380, PYTHONWARNINGS="error::ResourceWarning")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-8000:]
    passed = sorted(re.findall(r"^ok +(\S+)$", done.stdout, re.MULTILINE))
    expected = [name for name in map(name_of, behaviours(ranks)) if any(part in name for part in parts)]
    assert passed == sorted(expected), output[-8000:]
    assert f"{len(passed)} passed, 0 failed ({backend}, {ranks} ranks)" in done.stdout
    assert "Traceback" not in output, output[-8000:]


@pytest.mark.timeout(400)
def test_torch_carries_what_is_sent_over_a_network() -> None:
    check([warm.torchrun(), "--nproc_per_node", "3", PARTS, *OVER_TORCH], OVER_TORCH, "torch", 3)


#: CI runs no more of them: one and two ranks it has as threads, local processes on three hosts (`test_two_hosts`).
ONCE = {("torch", 4, "network"), ("mpi", 4, "shared")}
WHOLE = [
    (backend, ranks, path)
    for backend in BACKENDS
    for ranks, path in ((1, "shared"), (2, "shared"), (4, "shared"), (4, "network"))
]


@pytest.mark.exhaustive  # on one host all but the contract is the same on every backend, and shows on threads
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("backend", "ranks", "path"), [it if it in ONCE else pytest.param(*it, marks=pytest.mark.long) for it in WHOLE]
)
def test_the_suite_passes(backend: str, ranks: int, path: str) -> None:
    check_suite(backend, ranks, network=path == "network")


@pytest.mark.timeout(400)
# That of torch is above, and `conformance` has the local one's.
@pytest.mark.parametrize(
    "backend", [*(pytest.param(it, marks=pytest.mark.exhaustive) for it in ("local", "torch")), "mpi"]
)
def test_the_backend_keeps_its_contract(backend: str) -> None:
    check_suite(backend, 4, only="contract.")
