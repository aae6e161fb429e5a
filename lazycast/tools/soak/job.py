"""One job from outside: starts its processes, stops and kills them as planned, and judges what they have written.

Guarantees: when `run` returns, all processes it started have ended, and what it says holds for every rank: a rank that
has written nothing, or ended otherwise than planned, is not overlooked.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lazycast.start.commands import commands
from lazycast.start.launcher import start_all
from lazycast.tools.soak import oracle
from lazycast.tools.soak.diary import Orders, Reader
from lazycast.tools.soak.plan import CastPlan, JobPlan, Pause, RoundPlan
from lazycast.tools.soak.plan import job as plan_of

_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from lazycast.tools.soak.rank import main; main()"
# The allocator gives large blocks back at once: what a process still has then is a leak.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
_STACKS = 1500  # characters: the end, which is the main thread; the rest is in the file
_POLL_S = 0.005
_START_S = 60.0
_LINGER_S = 3.0  # mpirun, after the last survivor
_EXIT_S = 5.0  # what an exit allows for pending calls
#: A death is told within a second; on a machine that is loaded with more ranks than cores it may be noticed later.
_TOLD_S = 5.0


@dataclass
class Outcome:
    """What came of a job. `wrong`, `hangs` and `leaks` are texts, and must be empty."""

    job: int
    kind: str
    seconds: float = 0.0
    casts: int = 0  # of the root
    outcomes: int = 0  # checked, on all ranks
    injected: Counter[str] = field(default_factory=Counter)
    endings: Counter[str] = field(default_factory=Counter)
    told_s: list[float] = field(default_factory=list)  # how long after a death each survivor knew
    wrong: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.wrong or self.hangs or self.leaks)


class Job:
    """One job. `folder`, which only this job uses, keeps what the ranks have written."""

    def __init__(self, orders: Orders, folder: Path) -> None:
        self._orders, self._folder = orders, folder
        self.plan: JobPlan = plan_of(orders.seed, orders.job, orders.backend, orders.ranks)
        self._outcome = Outcome(orders.job, self.plan.kind)
        ranks = range(orders.ranks)
        self._readers = [Reader(folder, rank) for rank in ranks]
        self._pids: dict[int, int] = {}
        self._begun: dict[int, set[int]] = {}  # by round: the ranks that have
        self._done: dict[int, tuple[str, float]] = {}
        self._lost: dict[int, float] = {}
        self._seen: dict[tuple[int, int], dict[int, str]] = {}  # by round and cast: how it ended on each rank
        self._pauses: list[tuple[float, Pause]] = []
        self._stopped: list[tuple[float, int]] = []
        self._last_s = dict.fromkeys(ranks, time.monotonic() + _START_S)
        self._kill_s: float | None = None
        self._killed_s: float | None = None
        self._first_bad_s: float | None = None

    @property
    def _victim(self) -> int | None:
        last = self.plan.rounds[-1]
        return last.rank if last.ending == "death" else None

    def run(self) -> Outcome:
        """Run it. Blocking: until all processes have ended."""
        began_s = time.monotonic()
        self._orders.write(self._folder)
        worker = [sys.executable, "-c", _BOOT, json.dumps(sys.path), str(self._folder), self._orders.backend]
        outlive = self._victim is not None
        with (self._folder / "output").open("w") as output, tempfile.TemporaryDirectory(prefix="lazycast-") as meeting:
            starts = commands(self._orders.backend, worker, self._orders.ranks, Path(meeting), outlive=outlive)
            processes: list[subprocess.Popen[bytes]] = []
            try:
                start_all(processes, [(c, {**_ENVIRONMENT, **env}) for c, env in starts], output=output)
                self._follow(processes)
            finally:
                self._end(processes)
        self._read()
        self._judge(processes)
        self._outcome.seconds = time.monotonic() - began_s
        return self._outcome

    # While it runs

    def _follow(self, processes: list[subprocess.Popen[bytes]]) -> None:
        while any(process.poll() is None for process in processes):
            self._read()
            self._act()
            late = self._late()
            if late:
                self._dump(late)
                return
            if self._bereaved_is_over():
                return
            if self._died(processes):  # and those that are left wait, or are stuck: have them say where
                self._dump([rank for rank in self._pids if rank not in self._done and self._lives(rank)])
                return
            time.sleep(_POLL_S)

    def _bereaved_is_over(self) -> bool:
        """Whether only a launcher is left: mpirun may wait for ranks that have gone without MPI_Finalize."""
        if self._orders.backend != "mpi" or self._victim is None:
            return False
        survivors = set(range(self._orders.ranks)) - {self._victim}
        over_s = max((at_s for _, at_s in self._done.values()), default=0.0) + _LINGER_S
        return set(self._done) >= survivors and time.monotonic() > over_s

    def _died(self, processes: list[subprocess.Popen[bytes]]) -> bool:
        """Whether a rank has ended that should not have: the others need not be waited for as long as they might."""
        if self._orders.backend == "mpi":
            return False
        bad = [r for r, p in enumerate(processes) if p.poll() not in (None, 0) and r != self._victim]
        if not bad:
            return False
        now_s = time.monotonic()
        if self._first_bad_s is None:
            self._first_bad_s = now_s
        return now_s - self._first_bad_s > 1.5 * self._orders.slack_s  # others may be about to say why

    def _read(self) -> None:
        for rank, reader in enumerate(self._readers):
            for line in reader.new():
                self._last_s[rank] = line["at_s"]
                self._take(rank, line)

    def _take(self, rank: int, line: dict[str, Any]) -> None:
        event, outcome = line["event"], self._outcome
        if event == "here":
            self._pids[rank] = line["pid"]
        elif event == "begin":
            self._begin(rank, line["round"])
        elif event == "ending":
            self._seen.setdefault((line["round"], line["cast"]), {})[rank] = line["ending"]
        elif event == "round":
            outcome.casts += line["casts"] if rank == self.plan.rounds[line["round"]].root else 0
            outcome.outcomes += line["casts"]
            outcome.injected.update(line["injected"])
            outcome.endings.update(line["endings"])
        elif event == "lost":
            self._lost[rank] = min(self._lost.get(rank, line["at_s"]), line["at_s"])
        elif event == "done":
            self._done[rank] = line["how"], line["at_s"]
        elif event in ("wrong", "hang", "leak"):
            found = {"wrong": outcome.wrong, "hang": outcome.hangs, "leak": outcome.leaks}[event]
            found.append(f"{line['where']}: {line['what']}")

    def _begin(self, rank: int, number: int) -> None:
        begun = self._begun.setdefault(number, set())
        begun.add(rank)
        if len(begun) < self._orders.ranks:
            return
        now_s = time.monotonic()
        self._pauses += [(now_s + pause.after_s, pause) for pause in self.plan.pauses if pause.round == number]
        if self.plan.rounds[number].ending == "death":
            self._kill_s = now_s + self.plan.kill_after_s

    def _act(self) -> None:
        """Stop, continue and kill whose time has come."""
        now_s = time.monotonic()
        for due_s, pause in self._pauses[:]:
            if now_s >= due_s:
                self._pauses.remove((due_s, pause))
                if pause.rank not in self._done and self._signal(pause.rank, signal.SIGSTOP):
                    self._outcome.injected["stopped"] += 1
                    self._stopped.append((now_s + pause.for_s, pause.rank))
        for until_s, rank in self._stopped[:]:
            if now_s >= until_s:
                self._stopped.remove((until_s, rank))
                self._signal(rank, signal.SIGCONT)
        if self._kill_s is not None and now_s >= self._kill_s:
            self._kill_s = None
            assert self._victim is not None
            self._killed_s = time.monotonic()
            self._signal(self._victim, signal.SIGKILL)
            self._outcome.injected["killed"] += 1

    def _signal(self, rank: int, number: int) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pids[rank], number)
            return True
        return False

    def _late(self) -> list[int]:
        """Return the ranks that have said nothing for longer than anything may take."""
        now_s = time.monotonic()
        patience_s = self._orders.limit_s + 2 * self._orders.slack_s
        late = []
        for rank, at_s in self._last_s.items():
            exits = rank in self._done
            if rank == self._victim and self._killed_s is not None:
                continue
            if now_s - at_s > (_EXIT_S + self._orders.slack_s if exits else patience_s) and self._lives(rank):
                late.append(rank)
        return late

    def _lives(self, rank: int) -> bool:
        pid = self._pids.get(rank)
        if pid is None:
            return True  # it has not come as far as to say so
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except FileNotFoundError:
            return False

    def _dump(self, late: list[int]) -> None:
        """Ranks hang: have all that live say where they are."""
        for rank in self._pids:
            self._signal(rank, signal.SIGCONT)
            self._signal(rank, signal.SIGUSR1)
        time.sleep(1.0)
        for rank in late:
            stacks = self._folder / f"stacks.{rank}"
            text = stacks.read_text()[-_STACKS:] if stacks.exists() else "no stacks"
            how = "does not end" if rank in self._done else "does not go on"
            self._outcome.hangs.append(f"rank {rank} {how}; its threads:\n{text}")

    def _end(self, processes: list[subprocess.Popen[bytes]]) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in processes:
                if process.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(process.pid, number)
            deadline_s = time.monotonic() + 3.0
            while any(process.poll() is None for process in processes) and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)
        for rank in self._pids:  # of mpirun's, some may be left
            if self._lives(rank) and self._is_ours(rank):
                self._signal(rank, signal.SIGKILL)

    def _is_ours(self, rank: int) -> bool:
        """Whether a process is still the rank that it was: numbers are used again."""
        with contextlib.suppress(FileNotFoundError):
            return str(self._folder) in Path(f"/proc/{self._pids[rank]}/cmdline").read_text()
        return False

    # Afterwards

    def _judge(self, processes: list[subprocess.Popen[bytes]]) -> None:
        outcome = self._outcome
        for rank in range(self._orders.ranks):
            how = self._done.get(rank, ("",))[0]
            if rank == self._victim:
                if how:
                    outcome.wrong.append(f"rank {rank} was to be killed, and was done before")
            elif not how:
                outcome.wrong.append(f"rank {rank} ended without a word: {self._last_words()}")
        if not outcome.hangs:
            self._judge_codes([process.returncode for process in processes])
        self._judge_loss()
        for number, about in enumerate(self.plan.rounds):
            if about.ending == "close":
                self._compare(number, about)

    def _judge_codes(self, codes: list[int]) -> None:
        for rank, code in enumerate(codes):
            if self._orders.backend == "mpi":
                wrong = code != 0 and self._victim is None
            else:
                wrong = code != (-signal.SIGKILL if rank == self._victim else 0)
            if wrong:
                who = "mpirun" if self._orders.backend == "mpi" else f"rank {rank}"
                self._outcome.wrong.append(f"{who} ended with exit code {code}: {self._last_words()}")

    def _last_words(self) -> str:
        return (self._folder / "output").read_text(errors="replace")[-3000:].strip()

    def _judge_loss(self) -> None:
        if self._victim is None or self._killed_s is None:
            return
        for rank in sorted(set(self._done) - set(self._lost)):
            self._outcome.wrong.append(f"rank {rank} was not told of the death")
        for rank, at_s in sorted(self._lost.items()):
            told_s = at_s - self._killed_s
            self._outcome.told_s.append(told_s)
            if told_s > _TOLD_S:
                self._outcome.hangs.append(f"rank {rank} was told of the death after {told_s:.1f} s")

    def _compare(self, number: int, about: RoundPlan) -> None:
        casts: dict[int, CastPlan] = {cast.number: cast for burst in about.bursts for cast in burst.casts}
        for (of_round, cast), seen in self._seen.items():
            if of_round == number and len(seen) == self._orders.ranks:
                problem = oracle.disagreement(casts[cast], about, seen)
                if problem is not None:
                    self._outcome.wrong.append(f"round {number}, cast {cast} ({casts[cast].fault}): {problem}")


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as JSON has it."""
    return asdict(outcome)
