"""Every example runs as its docstring says, and every rank gets the same pixels as plain Python."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests import warm

ROOT = Path(__file__).parents[2]
BACKEND = ROOT / "examples" / "tcp_backend.py"  # it has tests of its own
EXAMPLES = sorted(set((ROOT / "examples").glob("*.py")) - {BACKEND})
BIN = Path(sys.executable).parent
LINE = re.compile(r"^rank (\d+) of 4: (?:\S+ )?(\w+\.jpg) \(3, 448, 448\) sha256 ([0-9a-f]{16})$", re.MULTILINE)


def command_of(example: Path) -> list[str]:
    """The one command line in an example's docstring, with the programs of this environment."""
    text = ast.get_docstring(ast.parse(example.read_text())) or ""
    (line,) = re.findall(r"^ {4}\$ (.+)$", text, re.MULTILINE)
    program, *arguments = shlex.split(line)
    if program == "mpirun":  # test machines have few cores and, in containers, only root
        arguments = ["--allow-run-as-root", "--oversubscribe", *arguments]
    forked = {"torchrun": warm.torchrun, "python": warm.python}
    return [forked[program]() if program in forked else str(BIN / program), *arguments]


def output_of(example: Path) -> str:
    """Run an example in the repository's root and return its standard output. It must exit with 0."""
    command = command_of(example)
    beside = Path(warm.python()).parent  # the `python` that mpirun starts
    env = {**os.environ, "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}", "GLOO_SOCKET_IFNAME": "lo"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=200)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, f"{command} exited with {process.returncode}\n{out}\n{err}"
    return out


def expected(name: str) -> str:
    """The digest of a photo's pixels, without NumPy and without lazycast."""
    spec = find_spec("sklearn")
    assert spec is not None
    assert spec.submodule_search_locations
    jpeg = (Path(spec.submodule_search_locations[0]) / "datasets/images" / name).read_bytes()
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((448, 448))
    # A quotient of two float32 numbers, made in double precision and then rounded, is the float32 quotient.
    table = [struct.pack("=f", value / 255) for value in range(256)]
    hashed = hashlib.sha256()
    for channel in image.split():
        hashed.update(b"".join(map(table.__getitem__, channel.tobytes())))
    return hashed.hexdigest()[:16]


def local_launch_shows_the_failure_on_every_rank(out: str) -> None:
    failed = re.findall(r"^rank (\d) of 4: china\.jpg .* raised on rank 2 .*: MemoryError: no room", out, re.MULTILINE)
    assert failed == ["0", "1", "2", "3"], out


def asyncio_requests_cancels_a_waiting_task_only(out: str) -> None:
    cancelled = re.findall(r"^rank (\d) of 4: the impatient client of req-2 got CancelledError$", out, re.MULTILINE)
    assert cancelled == ["0", "1", "2", "3"], out
    assert len(re.findall(r"^rank \d of 4: req-2 flower\.jpg ", out, re.MULTILINE)) == 4, out


def helpers_shows_a_crash_that_no_rank_dies_of(out: str) -> None:
    crashed = re.findall(r"^rank (\d) of 4: crash\.jpg .*killed by SIGSEGV, and then .*SIGSEGV", out, re.MULTILINE)
    assert crashed == ["0", "1", "2", "3"], out
    assert len(re.findall(r"^rank \d of 4: made a picture itself: False$", out, re.MULTILINE)) == 4, out


#: What an example shows besides pixels.
ALSO = {
    "helpers": helpers_shows_a_crash_that_no_rank_dies_of,
    "local_launch": local_launch_shows_the_failure_on_every_rank,
    "asyncio_requests": asyncio_requests_cancels_a_waiting_task_only,
}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example(example: Path) -> None:
    out = output_of(example)
    seen: dict[str, dict[int, set[str]]] = {}
    for rank, name, digest in LINE.findall(out):
        seen.setdefault(name, {}).setdefault(int(rank), set()).add(digest)
    names = {"flower.jpg"} if example.stem == "local_launch" else {"china.jpg", "flower.jpg"}
    assert seen == {name: {rank: {expected(name)} for rank in range(4)} for name in names}, out
    if example.stem in ALSO:
        ALSO[example.stem](out)


def test_examples_are_all_here() -> None:
    assert [path.stem for path in EXAMPLES] == [
        "asyncio_requests",
        "helpers",
        "local_launch",
        "mpirun_images",
        "threads",
        "torchrun_images",
    ]
    assert BACKEND.exists()
    # The first runs in `test_engine.py`, the next two in `test_loop_examples.py` and in
    # `tests/unit/test_operations_example.py`, the last where SGLang is installed, with the tests of its adapter.
    assert sorted({path.parent.name for path in (ROOT / "examples").rglob("*/*.py")}) == [
        "engine",
        "loop",
        "operations",
        "sglang",
    ]
