"""The simulation of large groups (`tools/simulation`): messages by formula, times by hand, ends of ranks, by seed."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lazycast.net import wire
from lazycast.net.wire import Cast, Report
from tools.simulation.group import REF, Group, Outcome, Plan
from tools.simulation.machine import Machines, Speeds
from tools.simulation.measure import MANY, TWO, fitted, predicted

ROOT = Path(__file__).resolve().parents[2]


def run(plan: Plan) -> Outcome:
    group = Group(plan)
    out = group.run()
    if plan.dies is None:
        assert group.books() == 0
    return out


@pytest.mark.parametrize(("ranks", "far"), [(2, 0), (8, 0), (16, 1), (30, 3), (64, 3), (200, 3)])
@pytest.mark.parametrize("casts", [1, 3])
def test_the_root_gets_a_report_from_each_neighbour_or_from_each_rank(ranks: int, far: int, casts: int) -> None:
    neighbours = min(ranks, 8) - 1 + far
    combined, plain = (run(Plan(ranks, casts=casts, combined=flag)) for flag in (True, False))
    assert combined.root_got == {"Report": casts * neighbours}
    assert plain.root_got == {"Report": casts * (ranks - 1)}
    assert combined.root_sent == plain.root_sent == {"Cast": casts * neighbours, "Verdict": casts * neighbours}
    assert None not in combined.value_s + combined.verdict_s
    assert len(combined.verdict_s) == casts


def test_without_agreement_reads_are_gathered_and_there_is_no_verdict() -> None:
    plan = Plan(64, casts=4, every_s=1e-3, agree=False)  # all within the time that reads are gathered
    combined, plain = run(plan), run(dataclasses.replace(plan, combined=False))
    assert combined.verdict_s == [None] * 4
    assert plain.root_got == {"Read": 2 * 63}, "the first is told at once, the others together"
    assert 10 <= combined.root_got["Read"] < 63
    assert combined.root_sent == {"Cast": 40}


def test_times_of_two_hosts_by_hand() -> None:
    speeds = Speeds(send_s=1.0, receive_s=10.0, far_latency_s=100.0, bandwidth=1.0, frame_nbytes=0)
    out = run(Plan(2, per_host=1, nbytes=500, make_s=0.0, speeds=speeds))
    cast = len(wire.encode(Cast(1, None, "every", True, REF, nbytes=500))) + 500
    report = len(wire.encode(Report(1, 1, True, cost=wire.Cost(0.0, 0.0))))
    verdict = len(wire.encode(wire.Verdict(1)))
    hop = 1.0 + 100.0 + 10.0
    assert out.value_s == [pytest.approx(hop + cast)]
    assert out.verdict_s == [pytest.approx(3 * hop + cast + report + verdict)]
    assert out.root_cpu_s == pytest.approx(2 * 1.0 + 10.0)


def test_a_leader_passes_pieces_on_before_the_last_has_come() -> None:
    free = Speeds(send_s=0.0, receive_s=0.0, far_latency_s=0.0, bandwidth=1.0, frame_nbytes=0)
    plan = Plan(13, per_host=1, nbytes=300_000, make_s=0.0, speeds=free)  # rank 12 is two hops from the root
    whole, pieces = (run(dataclasses.replace(plan, chunk_nbytes=nbytes)).value_s[0] for nbytes in (300_000, 10_000))
    assert whole == pytest.approx(6 * 300_000, rel=0.01)  # three copies leave the root, three more its third child
    assert pieces == pytest.approx(3 * 300_000 + 3 * 10_000, rel=0.05)


def test_ranks_share_the_cores_of_their_host() -> None:
    machines = Machines([[0, 1, 2], [3]], Speeds(cores=2))
    assert [machines.work(rank, 1.0) for rank in (0, 1, 2, 3)] == [1.0, 1.0, 2.0, 1.0]
    assert machines.spend(3, 0.5) == 0.5  # the second core
    assert machines.spend(3, 0.75) == 1.25  # a rank's messages wait for each other
    assert machines.cpu_s == {0: 0.0, 1: 0.0, 2: 0.0, 3: 1.25}


@pytest.mark.parametrize("combined", [True, False])
@pytest.mark.parametrize("dies", [1, 8, 63])  # beside the root; a leader with hosts below it; the last of a far host
def test_everybody_hears_of_a_death_and_no_verdict_is_good(dies: int, combined: bool) -> None:
    out = run(Plan(64, dies=dies, combined=combined))
    assert out.news_s is not None
    assert Speeds().notice_s <= out.news_s < Speeds().notice_s + 0.01
    assert out.verdict_s == [None]
    assert "Verdict" not in out.root_sent
    # A leaf of the tree of hosts takes nobody's value with it; a leader that dies as the cast leaves takes its host's.
    assert (out.value_s == [None]) == (dies == 8)


def test_what_a_leader_holds_goes_up_when_a_rank_has_died() -> None:
    """Rank 14 is on the host of leader 8: the seven others' reports arrive one by one."""
    out = run(Plan(16, dies=14, dies_s=0.0))
    assert out.root_got == {"Report": 7 + 7, "Read": 1, "Gone": 7 + 1}  # what was read is told beside


def test_the_root_and_ranks_that_are_not_there_cannot_die() -> None:
    for rank in (0, 8, -1):
        with pytest.raises(ValueError, match=rf"dies={rank}: a rank beside the root, below 8"):
            Group(Plan(8, dies=rank))


def test_slow_ranks_are_waited_for() -> None:
    quick, slow = (run(Plan(64, slow=share, slow_factor=50.0)).verdict_s[0] for share in (0.0, 0.2))
    assert quick is not None
    assert slow is not None
    assert slow > 50 * Plan(64).make_s > quick


def test_the_same_seed_gives_the_same_times_and_another_one_others() -> None:
    plan = Plan(64, casts=2, slow=0.1)
    first, again, other = run(plan), run(plan), run(dataclasses.replace(plan, seed=1))
    assert (first.value_s, first.verdict_s) == (again.value_s, again.verdict_s)
    assert first.value_s != other.value_s


def test_the_command_prints_a_table_and_writes_what_it_found(tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    command = [sys.executable, "-m", "tools.simulation", "--ranks", "8,16", "--casts", "2", "--json", str(target)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    found = json.loads(target.read_text())
    assert [(row["ranks"], row["combined"], row["root_gets"]) for row in found["rows"]] == [
        (8, True, 7),
        (8, False, 7),
        (16, True, 8),
        (16, False, 15),
    ]
    assert len(done.stdout.splitlines()) == 2 + 4


def test_hosts_that_are_labels_share_the_cores_of_their_machine() -> None:
    speeds = Speeds(cores=2)
    apart = Machines([[0], [1], [2]], speeds)
    shared = Machines([[0], [1], [2]], dataclasses.replace(speeds, one_machine=True))
    assert [apart.work(rank, 1.0) for rank in range(3)] == [1.0, 1.0, 1.0]
    assert [shared.work(rank, 1.0) for rank in range(3)] == [1.0, 1.0, 2.0]


@pytest.mark.exhaustive
def test_two_groups_tell_what_a_message_costs_and_how_long_a_rank_takes_to_wake() -> None:
    speeds = fitted(5e-3, 12e-3, cores=2)
    assert predicted(*TWO, speeds)["verdict_s"] == pytest.approx(5e-3, rel=1e-3)
    assert predicted(*MANY, speeds)["verdict_s"] == pytest.approx(12e-3, rel=1e-3)
    # A cast, a report and a verdict, one after another; each has the way between two ranks.
    assert 3 * (speeds.send_s + speeds.receive_s + speeds.latency_s) == pytest.approx(5e-3, rel=1e-3)
    assert speeds.latency_s > 10 * speeds.receive_s, "what two ranks take, and many hardly more, is no work"


@pytest.mark.exhaustive
def test_where_many_take_much_longer_than_two_messages_are_work() -> None:
    speeds = fitted(5e-3, 80e-3, cores=2)
    assert speeds.latency_s < speeds.receive_s


@pytest.mark.parametrize(("two_s", "many_s"), [(1e-6, 1e6), (1e6, 1.0), (5e-3, 1e-3)])
def test_times_that_no_cost_explains_are_refused(two_s: float, many_s: float) -> None:
    with pytest.raises(ValueError, match="no cost of a message explains that"):
        fitted(two_s, many_s, cores=2)
