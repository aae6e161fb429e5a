"""Every Python block in the README and the docs runs, as its reader would run it.

A block is a program. `<!-- run: torchrun --nproc_per_node 4 -->` above it names another launcher than `python`.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import warm

from .command import run

pytestmark = pytest.mark.usefixtures("warm_python")
ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"(?:<!-- run: (?P<launcher>[^>]+?) -->\s*)?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)

#: A piece of a program that is shown elsewhere, and compared with it there.
PIECE = re.compile(r"^<!-- from examples/[^>]+ -->\s*^```python\n.*?^```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    name: str
    launcher: str | None
    code: str


def blocks() -> list[Block]:
    found = []
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]:
        text = PIECE.sub("", page.read_text())
        for number, match in enumerate(BLOCK.finditer(text)):
            name = f"{page.relative_to(ROOT)}:{number}"
            found.append(Block(name, match["launcher"], match["code"]))
    return found


@pytest.mark.cold
def test_the_pages_have_blocks() -> None:
    assert {block.name.partition(":")[0] for block in blocks()} >= {"README.md", "docs/concepts.md"}


#: Of these pages every block is run by `make test`, and one under each launcher.
OFTEN = (
    "README.md",
    "docs/concepts.md",
    "docs/index.md",
    "docs/quick-start.md",
    "docs/backends.md:1",
    "docs/errors.md",
    "docs/how-to/mpirun.md",
)


def weighed() -> list[Any]:
    return [
        pytest.param(block, id=block.name, marks=[] if block.name.startswith(OFTEN) else [pytest.mark.exhaustive])
        for block in blocks()
    ]


@pytest.mark.parametrize("block", weighed())
def test_block_runs(block: Block, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(block.code)
    if block.launcher is None:
        command = [sys.executable]
    else:
        launcher, *options = block.launcher.split()
        if launcher == "mpirun":  # test machines have few cores and, in containers, only root
            options = ["--allow-run-as-root", "--oversubscribe", *options]
        command = [warm.torchrun() if launcher == "torchrun" else str(BIN / launcher), *options]
    done = run([*command, str(program)], timeout_s=200, PATH=f"{BIN}{os.pathsep}{os.environ['PATH']}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.strip(), "a block shows something"
