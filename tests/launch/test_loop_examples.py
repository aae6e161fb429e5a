"""The programs of an engine's loop, in `examples/loop`, under the launchers that they name."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.launch.command import run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PHOTOS = {"cd984445", "1a79a5d0"}  # digests of the two
SERVICE = re.compile(r"^rank (\d) of 4: developed (\d+); (.*)$", re.MULTILINE)
STEP = re.compile(r"^(1 KiB|images) +(\w+) +p50 +(\d+) p99 +(\d+)$", re.MULTILINE)


def launched(launcher: str) -> list[str]:
    if launcher == "mpirun":
        path = f"PATH={BIN}:/usr/bin:/bin"
        return ["env", path, str(BIN / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", "4", sys.executable]
    return [warm.torchrun(), "--nproc_per_node", "4"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("launcher", ["torchrun", "mpirun"])
def test_aborts_a_damaged_photo_and_a_slow_rank_are_the_same_for_all(launcher: str) -> None:
    done = run([*launched(launcher), str(ROOT / "examples/loop/service.py")], timeout_s=200, GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stdout + done.stderr
    said = {int(rank): (int(developed), endings.split()) for rank, developed, endings in SERVICE.findall(done.stdout)}
    assert sorted(said) == [0, 1, 2, 3], done.stdout
    text = " ".join(said[0][1]).replace(" on rank ", "@")
    endings = dict(ending.split(":", 1) for ending in text.split())
    assert all(rank[1] == said[0][1] for rank in said.values()), done.stdout
    assert len(endings) == 24
    aborted = {n for n, ending in endings.items() if ending == "aborted"}
    # The first ones may be whole before they are given up; what was given up while it waited is made nowhere.
    assert {n for n in endings if int(n) % 3 == 1} >= aborted
    assert len(aborted) >= 4, done.stdout
    assert endings["6"].startswith("builtins.OSError@"), done.stdout
    assert {ending for n, ending in endings.items() if n not in aborted | {"6"}} <= PHOTOS
    workers = 4  # of all ranks: what runs already is made
    assert sum(developed for developed, _ in said.values()) <= 24 - 1 - len(aborted) + workers, done.stdout


@pytest.mark.exhaustive
def test_a_receive_path_takes_up_what_every_rank_has() -> None:
    script = str(ROOT / "examples/loop/receive_path.py")
    done = run([warm.torchrun(), "--nproc_per_node", "2", script, "1"], timeout_s=200, GLOO_SOCKET_IFNAME="lo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {(what, path) for what, path, *_ in STEP.findall(done.stdout)} == {
        (what, path) for what in ("1 KiB", "images") for path in ("lazycast", "broadcast_object_list")
    }, done.stdout


@pytest.mark.parametrize("clients", [200, pytest.param(1000, marks=pytest.mark.exhaustive)])
def test_a_front_serves_many_clients_while_the_other_ranks_loop(clients: int) -> None:
    done = run([warm.python(), str(ROOT / "examples/loop/front.py"), "--clients", str(clients)], timeout_s=200)
    assert done.returncode == 0, done.stdout + done.stderr
    answers = re.findall(rf"^rank (\d): \{{'answers': {clients}, 'kinds': 2", done.stdout, re.MULTILINE)
    assert answers == ["0", "1", "2"], done.stdout
