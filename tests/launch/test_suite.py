"""The conformance suite as a third party runs it: under torchrun, under mpirun, and on local processes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from lazycast.testing.kit import behaviours, name_of

from .command import run

BIN = Path(sys.executable).parent
PYTHON = str(BIN / "python")
SUITE = ["-m", "lazycast.testing"]
BACKENDS = ("local", "torch", "mpi")


def command(backend: str, ranks: int) -> list[str]:
    if backend == "torch":
        return [str(BIN / "torchrun"), "--nproc_per_node", str(ranks), *SUITE, "--backend", "torch"]
    if backend == "mpi":
        mpirun = [str(BIN / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", str(ranks)]
        return [*mpirun, PYTHON, *SUITE, "--backend", "mpi"]
    return [PYTHON, *SUITE, "--backend", backend, "--launch", str(ranks)]


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("backend", "ranks", "path"),
    [
        *((backend, ranks, "shared") for backend in BACKENDS for ranks in (1, 4)),
        *((backend, 4, "network") for backend in BACKENDS),
        # What is the backend's own shows with more ranks, and what two ranks mean to the rest shows on threads.
        *(pytest.param(backend, 2, "shared", marks=pytest.mark.exhaustive) for backend in BACKENDS),
    ],
)
def test_the_suite_passes(backend: str, ranks: int, path: str) -> None:
    options = ["--network"] if path == "network" else []
    done = run([*command(backend, ranks), *options], timeout_s=380, PYTHONWARNINGS="error::ResourceWarning")
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-8000:]
    passed = sorted(re.findall(r"^ok +(\S+)$", done.stdout, re.MULTILINE))
    assert passed == sorted(name_of(fn) for fn in behaviours(ranks)), output[-8000:]
    assert f"{len(passed)} passed, 0 failed ({backend}, {ranks} ranks)" in done.stdout
    assert "Traceback" not in output, output[-8000:]
