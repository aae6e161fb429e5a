"""The example engine on real ranks: what clients see, what every rank has made, what is left when things go wrong."""

from __future__ import annotations

import functools
import json
import os
import queue
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from examples.engine import inputs as engine_inputs
from examples.engine import run as engine_run
from examples.engine.inputs import LazycastInputs, OverloadedError
from examples.engine.load import Arrival, Mix, arrivals, photos_for
from examples.engine.model import Model, fingerprint
from examples.engine.photos import Pixels, develop
from examples.engine.ranks import LocalRanks
from examples.engine.requests import Announced, Payload, Request
from lazycast import CastTimeoutError, LaunchError, launch
from lazycast.errors import MaterializeError, PeerLostError
from tests import warm

from .command import run

pytestmark = pytest.mark.usefixtures("warm_python")
BIN = Path(sys.executable).parent
PYTHON = sys.executable
MIX = Mix(qps=10, seconds=1.5, photos=0.7, aborts=0.25, bad=0.15, seed=5)
LOAD = ["--qps=10", "--seconds=1.5", "--warm-up=0", "--photos=0.7", "--aborts=0.25", "--bad=0.15", "--seed=5"]
STEPS = ["--step-ms=5", "--busy-ms=0.2"]
COMMANDS = {
    "torch-2": lambda: [warm.torchrun(), "--nproc_per_node=2", "-m"],
    "torch-4": lambda: [warm.torchrun(), "--nproc_per_node=4", "-m"],
    "mpi-2": lambda: [str(BIN / "mpirun"), "--allow-run-as-root", "--oversubscribe", "-n", "2", PYTHON, "-m"],
    "local-3": lambda: [sys.executable, "-m"],
}


def serve(name: str, tmp_path: Path, *options: str, timeout_s: float = 110) -> list[dict[str, Any]]:
    """Run the example's command as a user would; return its figures, one dict for each way."""
    figures = tmp_path / "figures.json"
    command = [*COMMANDS[name](), "examples.engine", "--ranks=3", *LOAD, *STEPS, f"--json={figures}", *options]
    root = Path(__file__).parents[2]
    here = os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))
    done = run(command, timeout_s=timeout_s, GLOO_SOCKET_IFNAME="lo", PYTHONPATH=here, PYTHONWARNINGS="error")
    assert done.returncode == 0, done.stdout + done.stderr
    rows: list[dict[str, Any]] = json.loads(figures.read_text())
    for row in rows:
        assert row["way"] in done.stdout
    return rows


@functools.cache
def clients() -> list[Arrival]:
    return arrivals(MIX, photos_for(MIX))


def expected_of(kind: str) -> dict[str, Arrival]:
    """The clients whose requests fail, who leave, and who get everything, by request."""
    by_kind: dict[str, dict[str, Arrival]] = {"failed": {}, "aborted": {}, "finished": {}}
    for client in clients():
        kind_of = "failed" if client.bad else "aborted" if client.leaves_after is not None else "finished"
        by_kind[kind_of][client.request.rid] = client
    assert all(len(of_kind) > 1 for of_kind in by_kind.values()), "the load has some of everything"
    return by_kind[kind]


@functools.cache
def made_alone() -> dict[str, tuple[int, list[int]]]:
    """What each request is answered with by one process: no lazycast, no ranks, no batch."""

    class Alone(LocalRanks):
        def __init__(self) -> None:
            pass

    model, made = Model(Alone(), busy_s=0.0, step_s=0.0), {}
    for rid, client in expected_of("finished").items():
        request = client.request
        crc = 0 if request.payload is None else fingerprint(develop(request.payload))
        states, tokens = Model.prefill(request.prompt, crc)[None], []
        for _ in range(request.max_tokens):
            states, (token,) = model.step(states)
            tokens.append(token)
        made[rid] = (crc, tokens)
    return made


def check(row: dict[str, Any], ranks: int) -> None:
    assert row["counts"] == {kind: len(expected_of(kind)) for kind in ("finished", "aborted", "failed")}
    assert len(row["ranks"]) == ranks
    assert len({rank["digest"] for rank in row["ranks"]}) == 1
    outcomes = row["outcomes"]
    for rank in row["ranks"]:
        assert rank["threads_left"] == []
        assert sum(rank["counts"].values()) == len(outcomes)
        assert rank["iterations"] == row["ranks"][0]["iterations"]
    for rid, (crc, tokens) in made_alone().items():
        assert outcomes[rid] == {"status": "finished", "message": "", "pixels_crc": crc, "tokens": tokens}
    for rid in expected_of("failed"):
        assert outcomes[rid]["status"] == "failed"
        assert re.search(r"photo (\d) of \1 cannot be read$", outcomes[rid]["message"])  # the last one is broken
    # Who leaves before being announced is known to rank 0 alone; who leaves late may have been served by then.
    others = outcomes.keys() - made_alone().keys() - expected_of("failed").keys()
    assert others <= expected_of("aborted").keys()
    assert any(outcomes[rid]["status"] == "aborted" for rid in others)


def _killed(tmp_path: Path, seconds: float, every_s: float) -> int:
    """Serve a load while helpers are killed: who stays gets every token. Return how many were killed."""
    load = [f"--seconds={seconds}", "--aborts=0", "--bad=0", "--qps=1.5"]
    options = ["--multimodal=lazycast", "--helpers=2", f"--kill-every={every_s}", *load]
    (row,) = serve("local-3", tmp_path, *options, timeout_s=110 + 4 * seconds)
    failed = {rid: said["message"] for rid, said in row["outcomes"].items() if said["status"] != "finished"}
    assert failed == {}, "no request is lost"
    assert row["counts"]["finished"] >= 0.5 * seconds
    assert len({rank["digest"] for rank in row["ranks"]}) == 1
    assert [rank["threads_left"] for rank in row["ranks"]] == [[], [], []]
    killed: int = row["ranks"][0]["killed"]
    return killed


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
def test_no_request_is_lost_while_helpers_are_killed(tmp_path: Path) -> None:
    assert _killed(tmp_path, 2.0, 0.5) >= 1


@pytest.mark.exhaustive
@pytest.mark.long
@pytest.mark.timeout(400)
def test_no_request_is_lost_in_a_minute_in_which_a_helper_is_killed_each_second(tmp_path: Path) -> None:
    assert _killed(tmp_path, 60.0, 1.0) > 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", COMMANDS)
def test_every_request_ends_as_it_should_on_every_rank(name: str, tmp_path: Path) -> None:
    ranks = int(name.rpartition("-")[2])
    rows = {row["way"]: row for row in serve(name, tmp_path)}
    assert list(rows) == ["lazycast", "object-list", "itself"]
    if name.startswith("local"):
        assert "use torch or MPI" in rows.pop("object-list")["error"]
    for row in rows.values():
        check(row, ranks)


@pytest.mark.exhaustive
def test_a_burst_beyond_max_inflight_waits_and_nothing_is_lost(tmp_path: Path) -> None:
    (row,) = serve("torch-2", tmp_path, "--multimodal=lazycast", "--max-inflight=1", "--max-batch=2")
    check(row, 2)


@pytest.mark.exhaustive
def test_a_full_engine_rejects_and_serves_the_others(tmp_path: Path) -> None:
    options = ["--multimodal=lazycast", "--max-open=2", "--step-ms=40"]
    (row,) = serve("local-3", tmp_path, *options)
    counts = row["counts"]
    assert counts["rejected"] > 0
    assert counts["finished"] > 0
    assert sum(counts.values()) == len(clients())
    assert any("2 requests are under way" in message for message in row["messages"])
    assert len({rank["digest"] for rank in row["ranks"]}) == 1
    assert all(rank["threads_left"] == [] for rank in row["ranks"])


def _pressed() -> str:
    """Rank 0 casts more than the others ask for."""
    ranks = LocalRanks()
    inputs = LazycastInputs(ranks, lambda: None, max_inflight=2, timeout_s=6.0)
    jpegs = photos_for(MIX)[:1]
    requests = [Request(f"r{n}", "", 1, {"jpegs": jpegs}) for n in range(4)]
    named = [Announced(r.rid, r.prompt, r.max_tokens, True) for r in requests]
    try:
        if ranks.rank == 0:
            for r in requests[:2]:
                inputs.cast(r)
            said = ""
            try:
                inputs.cast(requests[2])  # the others have asked for nothing
            except OverloadedError as exc:
                said = str(exc)
            inputs.discard("r2")
        ranks.gather("go on")  # all meet
        for r, name in zip(requests[:2], named, strict=False):
            inputs.expect(name)
            assert inputs.take(name).shape[0] == 1, r
        if ranks.rank != 0:
            inputs.discard("r2")
            said = "discarded"
        ranks.gather("the others have read")
        if ranks.rank == 0:
            inputs.cast(requests[3])
        inputs.expect(named[3])
        assert inputs.take(named[3]).shape[0] == 1
        ranks.gather("all have it")  # a cast needs all ranks: none may close before
        assert not inputs._futures
        return said
    finally:
        inputs.close()


def test_a_cast_beyond_back_pressure_is_refused_and_the_next_one_works() -> None:
    said = launch(_pressed, ranks=3, timeout_s=200)
    assert "held back by max_inflight=2" in said[0]
    assert "rank 1 has not asked for 2 casts: #1 key 'r0', #2 key 'r1'" in said[0]
    assert said[1:] == ["discarded", "discarded"]


def _abandoned() -> list[str]:
    """Requests that are dropped in each phase; then bad photos, for which every rank has the same error."""
    ranks = LocalRanks()
    woken = threading.Event()
    inputs = LazycastInputs(ranks, woken.set, max_inflight=8, timeout_s=30.0)
    jpegs = photos_for(MIX)
    good = {"jpegs": jpegs[:4]}
    payloads = {"asked": good, "unasked": good, "bad": {"jpegs": [b"no photo"]}, "last": good}
    named = {rid: Announced(rid, "", 1, True) for rid in payloads}
    lines = []
    try:
        if ranks.rank == 0:
            for rid, payload in payloads.items():
                inputs.cast(Request(rid, "", 1, payload))
        inputs.expect(named["asked"])
        inputs.drop("asked")
        inputs.discard("unasked")
        for rid in ("bad", "last"):
            inputs.expect(named[rid])
        if ranks.rank == 0:
            while (said := inputs.settled("bad")) is None:
                woken.wait(30)
                woken.clear()
            lines.append(said.error.rpartition(": ")[2])
            inputs.drop("bad")
        else:
            try:
                inputs.take(named["bad"])
            except MaterializeError as exc:
                lines.append(exc.message.rpartition(": ")[2])
        lines.append(str(inputs.take(named["last"]).shape))
        while not inputs.idle():
            woken.wait(0.1)
        ranks.gather("all have it")
        assert not inputs._futures
        return lines
    finally:
        inputs.close()


def test_requests_can_be_dropped_in_every_phase_and_bad_photos_fail_everywhere() -> None:
    assert launch(_abandoned, ranks=2, timeout_s=200) == [["photo 1 of 1 cannot be read", "(4, 3, 448, 448)"]] * 2


def _overdue() -> list[str]:
    """Photos that take longer than rank 0 waits for them: what each rank is told."""

    def develop_slowly(payload: Payload) -> Pixels:
        time.sleep(6.0)
        return develop(payload)

    engine_inputs.develop = develop_slowly  # type: ignore[assignment]
    ranks = LocalRanks()
    woken = threading.Event()
    inputs = LazycastInputs(ranks, woken.set, max_inflight=8, timeout_s=3.0)
    try:
        if ranks.rank == 0:
            inputs.cast(Request("late", "", 1, {"jpegs": photos_for(MIX)[:1]}))
        inputs.expect(Announced("late", "", 1, True))
        while ranks.rank == 0 and inputs.settled("late") is None:
            woken.wait(30)
            woken.clear()
        failure = inputs._futures["late"].exception(30)
        assert isinstance(failure, CastTimeoutError), failure
        inputs.drop("late")
        while not inputs.idle():
            woken.wait(0.1)
        ranks.gather("all were told")
        return [f"rank {failure.rank}"]
    finally:
        inputs.close()


@pytest.mark.exhaustive
def test_when_rank_0_waits_no_longer_every_rank_is_told_so() -> None:
    said = launch(_overdue, ranks=3, timeout_s=200)
    assert said[1:] == [["rank 0"]] * 2, "not that their own time, twice as long, was over"


def _bereaved(folder: str) -> None:
    """Serve on three ranks, one of which is killed; write down what happened to this one."""
    ranks = LocalRanks()
    mix = Mix(qps=20, seconds=3.0, aborts=0.0, bad=0.0)
    plan = engine_run.Plan(("lazycast",), mix, 0.0, 0.02, 8, 256, 64)

    class Mortal(Model):
        def step(self, states: Any) -> Any:
            if ranks.rank == 2 and any(outcome.status == "finished" for outcome in engine.books.outcomes.values()):
                os.kill(os.getpid(), signal.SIGKILL)
            return super().step(states)

    inbox: Any = queue.Queue()
    photos = engine_run.inputs.make("lazycast", ranks, lambda: inbox.put(engine_run.Woken()))
    clients = engine_run._Clients(plan, photos_for(mix), photos, inbox) if ranks.rank == 0 else None
    deliver = clients.front.deliver if clients is not None else lambda replies: None
    model = Mortal(ranks, busy_s=0.0, step_s=0.02)
    engine = engine_run.Engine(ranks, model, photos, inbox, deliver, max_batch=8)
    said = {}
    if clients is not None:
        clients.start()
    try:
        engine.run()
    except PeerLostError as exc:
        said["error"] = exc.message
        if clients is not None:
            clients.front.fail(f"the engine has broken down: {exc.message}")
    photos.close()
    engine.close()
    if clients is not None:
        seen = clients.join()
        said["statuses"] = sorted({record.status for record in seen.records.values()})
        said["messages"] = sorted({record.message for record in seen.records.values()})
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(said))


def test_when_a_rank_is_killed_every_client_is_told_and_every_rank_ends(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="rank 2 was killed by signal 9"):
        launch(_bereaved, ranks=3, args=(str(tmp_path),), timeout_s=200)
    said = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert sorted(said) == ["0", "1"]
    for rank in said.values():
        assert "rank 2" in rank["error"]
        assert "was lost" in rank["error"]
    assert said["0"]["statuses"] == ["failed", "finished"]
    assert any("rank 2" in message for message in said["0"]["messages"])
