"""Where ranks run different programs, or lack what one of them has: all see the same, by copies."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from .command import run

BIN = Path(sys.executable).parent
MPIRUN = [str(BIN / "mpirun"), "--allow-run-as-root", "--oversubscribe"]

CLASSES = """
import dataclasses, enum, multiprocessing, os, sys, tempfile
from lazycast import LazyBroadcast

class Kind(enum.Enum):
    IMAGE = 1

@dataclasses.dataclass
class Item:
    number: int

def check(item):
    return item["kind"] is Kind.IMAGE, isinstance(item["item"], Item), item["item"] == Item(3)
"""
CASTS = """
def cast():
    seen = []
    for placement in ("every", "shard", "root", "auto"):
        with LazyBroadcast(placement=placement, name=placement) as lazy:
            payload = {"kind": Kind.IMAGE, "item": Item(3)} if lazy.is_root else None
            for _ in range(2):
                seen.append(lazy.broadcast(payload, materialize=check))
                seen.append(lazy.broadcast(payload, materialize=lambda item: check(item)))
    os.write(1, b"seen %s\\n" % str(all(all(found) for found in seen)).encode())  # in one: two write to one pipe
"""
SPAWNED = """
def child(folder):
    os.environ.update(LAZYCAST_RANK="1", LAZYCAST_WORLD_SIZE="2", LAZYCAST_RENDEZVOUS=folder)
    cast()

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        process = multiprocessing.get_context("spawn").Process(target=child, args=(folder,))
        process.start()
        os.environ.update(LAZYCAST_RANK="0", LAZYCAST_WORLD_SIZE="2", LAZYCAST_RENDEZVOUS=folder)
        cast()
        process.join(60)
        assert process.exitcode == 0
"""
CONDITIONAL = """
import os
from lazycast import LazyBroadcast

if os.environ["OMPI_COMM_WORLD_RANK"] == "0":
    def helper(x):
        return x + 1

with LazyBroadcast() as lazy:
    named = helper if lazy.is_root else None
    inside = (lambda x: helper(x)) if lazy.is_root else None
    seen = [lazy.broadcast(1, materialize=fn) for fn in (inside, inside, named, named)]
os.write(1, b"seen %s\\n" % str(seen == [2, 2, 2, 2]).encode())
"""


def _both_see_the_same(command: list[str]) -> None:
    done = run(command, timeout_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.split("\n"))[-2:] == ["seen True", "seen True"], done.stdout + done.stderr


def test_two_programs(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text(CLASSES + CASTS + "cast()\n")
    other.write_text("# another program\n" + CLASSES + CASTS + "cast()\n")
    _both_see_the_same([*MPIRUN, "-n", "1", sys.executable, str(one), ":", "-n", "1", sys.executable, str(other)])


@pytest.mark.exhaustive
def test_a_program_that_is_no_file() -> None:
    _both_see_the_same([*MPIRUN, "-n", "2", sys.executable, "-c", CLASSES + CASTS + "cast()\n"])


@pytest.mark.exhaustive
def test_a_spawned_child_and_its_parent(tmp_path: Path) -> None:
    program = tmp_path / "spawns.py"
    program.write_text(CLASSES + CASTS + SPAWNED)
    _both_see_the_same([sys.executable, str(program)])


@pytest.mark.exhaustive
def test_a_function_that_only_the_root_has(tmp_path: Path) -> None:
    program = tmp_path / "conditional.py"
    program.write_text(CONDITIONAL)
    _both_see_the_same([*MPIRUN, "-n", "2", sys.executable, str(program)])
