"""All that is known about a job, and what it comes to: one list of findings."""

from __future__ import annotations

from typing import Any

import msgspec

from lazycast.materialize import cores
from lazycast.tools.doctor import libraries, limits, machine, network, processors, selftest, sharing
from lazycast.tools.doctor.facts import Facts
from lazycast.tools.doctor.finding import Finding, ranks_text, worst
from lazycast.tools.doctor.libraries import Probe
from lazycast.tools.doctor.trial import Trial
from lazycast.version import __version__


class Examination(msgspec.Struct):
    """What rank 0 has learned so far. It may end at any time, and what is there is judged then.

    Attributes:
        title: what is examined, for a human.
        launcher, backend: who started the ranks, None for nobody; how they talk.
        launched: how many ranks the launcher says there are, if it says so.
        facts, trials: of those ranks that have answered.
        silent: ranks that have not, and what they were asked for.
        ended: what kept it from going on, if so.
    """

    title: str
    launcher: str | None
    backend: str
    launched: int | None = None
    facts: list[Facts] = []
    trials: list[Trial] = []
    probes: list[Probe] = []
    silent: list[int] = []
    awaited: str = ""
    ended: Finding | None = None

    @property
    def abandoned(self) -> bool:
        """Whether something may still be under way in this process that nothing can end."""
        return bool(self.silent) or self.ended is not None


def findings(exam: Examination) -> list[Finding]:
    """Judge what is known."""
    found: list[Finding] = []
    if exam.facts:
        found.append(libraries.versions([facts.versions for facts in exam.facts]))
    if exam.trials and not any(trial.error for trial in exam.trials):
        found.append(libraries.backend(Probe(exam.backend, None, seen="these ranks have met over it"), wanted=True))
    found += [libraries.backend(probe, wanted=probe.name == exam.backend) for probe in exam.probes]
    mpi = [facts.mpi for facts in exam.facts if facts.mpi is not None]
    if mpi:
        found.append(libraries.mpi_threads(mpi, exam.launched))
    found += _of_the_group(exam)
    if exam.facts:
        found += _of_the_hosts(exam.facts, uses_torch=exam.backend == "torch")
    outcomes = {trial.rank: trial.outcome for trial in exam.trials if trial.outcome is not None}
    if outcomes:
        found.append(selftest.correctness(outcomes))
    for outcome in outcomes.values():
        if outcome.speed is not None:
            one_host = len(exam.trials[0].hosts) == 1
            found += selftest.speed(outcome.speed, one_host=one_host, size=len(exam.trials))
    return found


def _of_the_group(exam: Examination) -> list[Finding]:
    found = []
    if exam.silent:
        remedy = "see that rank's own output: it may have died, hang, or not have been started"
        text = f"{ranks_text(exam.silent)} did not answer ({exam.awaited})"
        found.append(Finding("ranks", "answers", "problem", text, remedy))
    if exam.ended is not None:
        found.append(exam.ended)
    if exam.trials:
        found.append(sharing.constructed(exam.trials))
        complete = len(exam.trials) == len(exam.facts) and all(trial.hosts for trial in exam.trials)
        if complete:
            found.append(sharing.hosts(exam.trials, [facts.machine for facts in exam.facts]))
    return found


def _of_the_hosts(facts: list[Facts], *, uses_torch: bool) -> list[Finding]:
    machines, bounds = [f.machine for f in facts], [f.limits for f in facts]
    found = [
        machine.shared_memory(machines),
        machine.place(machines),
        processors.per_rank([m.host for m in machines], [f.cores for f in facts]),
        processors.for_helpers([m.host for m in machines], [f.cores for f in facts]),
        limits.memory(bounds),
        limits.address_space(bounds),
        limits.open_files(bounds),
    ]
    if uses_torch or all("torch" in f.versions.packages for f in facts):
        found.append(network.gloo([f.interface for f in facts]))
    return found


def as_data(exam: Examination) -> dict[str, Any]:
    """Return everything, for programs."""
    found = findings(exam)
    complete = len(exam.trials) == len(exam.facts) and all(trial.reached for trial in exam.trials)
    speeds = [trial.outcome.speed for trial in exam.trials if trial.outcome and trial.outcome.speed]
    return {
        "lazycast": __version__,
        "launcher": exam.launcher,
        "backend": exam.backend,
        "ranks": len(exam.facts) + len(exam.silent),
        "silent": exam.silent,
        "verdict": worst(found),
        "findings": msgspec.to_builtins(found),
        "hosts": exam.trials[0].hosts if exam.trials else [],
        "descriptors_pass": sharing.matrix(exam.trials[0].reached) if complete and exam.trials else [],
        "speed": {**msgspec.to_builtins(speeds[0]), "ratio": speeds[0].ratio} if speeds else None,
        "cores": cores.together([facts.cores for facts in exam.facts]) if exam.facts else None,
        "facts": msgspec.to_builtins(exam.facts),
    }
