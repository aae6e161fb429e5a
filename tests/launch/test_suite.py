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
BACKENDS = ("local", "torch", "mpi")


def command(backend: str, ranks: int) -> list[str]:
    if backend == "torch":
        return [warm.torchrun(), "--nproc_per_node", str(ranks), *SUITE, "--backend", "torch"]
    if backend == "mpi":
        mpirun = [str(BIN / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]
        return [*mpirun, PYTHON, *SUITE, "--backend", "mpi"]
    return [PYTHON, *SUITE, "--backend", backend, "--launch", str(ranks)]


def check_suite(backend: str, ranks: int, *, only: str = "", network: bool = False) -> None:
    """Run the suite, or the behaviours whose name contains `only`; check that each was run and has passed."""
    options = ["--only", only, *(["--network"] if network else [])]
    done = run([*command(backend, ranks), *options], timeout_s=380, PYTHONWARNINGS="error::ResourceWarning")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-8000:]
    passed = sorted(re.findall(r"^ok +(\S+)$", done.stdout, re.MULTILINE))
    assert passed == sorted(name for name in map(name_of, behaviours(ranks)) if only in name), output[-8000:]
    assert f"{len(passed)} passed, 0 failed ({backend}, {ranks} ranks)" in done.stdout
    assert "Traceback" not in output, output[-8000:]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("backend", "ranks", "path"),
    [
        ("torch", 4, "network"),
        # On one host all but the contract is the same on every backend, and shows on threads.
        *(
            pytest.param(backend, ranks, path, marks=pytest.mark.exhaustive)
            for backend in BACKENDS
            for ranks, path in ((1, "shared"), (2, "shared"), (4, "shared"), (4, "network"))
            if (backend, path) != ("torch", "network")
        ),
    ],
)
def test_the_suite_passes(backend: str, ranks: int, path: str) -> None:
    check_suite(backend, ranks, network=path == "network")


@pytest.mark.timeout(400)
# The whole suite has torch's above, and `conformance` the local one's.
@pytest.mark.parametrize(
    "backend", [*(pytest.param(it, marks=pytest.mark.exhaustive) for it in ("local", "torch")), "mpi"]
)
def test_the_backend_keeps_its_contract(backend: str) -> None:
    check_suite(backend, 4, only="contract.")
