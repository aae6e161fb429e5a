"""A doctor's visit without a launcher: small jobs of its own on this machine, one for each backend."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from lazycast.api import LazyBroadcast
from lazycast.errors import BackendUnavailableError, LazycastError
from lazycast.options import Tuning
from lazycast.start import discovery
from lazycast.start.launcher import launch
from lazycast.testing.kit import same
from lazycast.tools.doctor import facts, libraries, trial
from lazycast.tools.doctor.facts import Facts
from lazycast.tools.doctor.finding import Finding
from lazycast.tools.doctor.judge import Examination
from lazycast.tools.doctor.libraries import MPI, Probe
from lazycast.tools.doctor.trial import Trial

#: The backends that `launch` can start ranks for, beside the local one.
_LAUNCHED = ("torch", "mpi")


def ranks_here() -> int:
    """Return how many ranks to try: as many as there are cores, but two to four."""
    return min(4, max(2, len(os.sched_getaffinity(0))))


def visit(*, ranks: int, self_test: bool, timeout_s: float, say: Callable[[str], None]) -> Examination:
    """Examine this machine."""
    exam = Examination(f"{ranks} local ranks on this machine", None, "local", ranks)
    for name in discovery.names():
        if name != "local":
            say(f"trying the backend {name!r}")
            exam.probes.append(_carry(name, timeout_s) if self_test else libraries.probe(name, timeout_s=timeout_s))
    say(f"casting among {ranks} local ranks" if self_test else f"starting {ranks} local ranks")
    try:
        answers = launch(_examine, ranks=ranks, backend="local", args=(self_test, timeout_s), timeout_s=8 * timeout_s)
    except LazycastError as exc:
        text = f"a job of {ranks} local ranks failed: {type(exc).__name__}: {exc.message}"
        exam.ended = Finding(
            "ranks", "local job", "problem", text, "look the message up in the docs, under Troubleshooting"
        )
        exam.facts = [facts.look(0, 1, backend="local")]
    else:
        exam.facts = [answer[0] for answer in answers]
        exam.trials = [answer[1] for answer in answers]
    return exam


def _examine(self_test: bool, timeout_s: float) -> tuple[Facts, Trial]:
    """On each rank of the local job."""
    backend = discovery.resolve("auto")
    tried = Trial(backend.rank)
    found = facts.look(backend.rank, backend.size, backend="local")
    trial.run(tried, backend, self_test=self_test, timeout_s=timeout_s)
    return found, tried


def _carry(name: str, timeout_s: float) -> Probe:
    """Let two ranks cast over a backend; load it only, if there is no way to start such ranks here."""
    if name not in _LAUNCHED:
        return libraries.probe(name, timeout_s=timeout_s)
    try:
        answers = launch(_cast_over, ranks=2, backend=name, args=(name, timeout_s), timeout_s=3 * timeout_s)
    except BackendUnavailableError as exc:
        return Probe(name, str(exc))
    except LazycastError as exc:
        return Probe(name, f"two ranks could not cast over it: {type(exc).__name__}: {exc.message}")
    return Probe(name, None, answers[0], "two ranks have cast over it")


def _cast_over(name: str, timeout_s: float) -> MPI | None:
    """On each of two ranks: cast over the backend itself, without shared memory."""
    payload = np.arange(300_000)
    with LazyBroadcast[object, object](
        name="doctor-carry", tuning=Tuning(shared_memory=False), timeout_s=timeout_s
    ) as lazy:
        same(lazy.broadcast(payload if lazy.is_root else None), payload)
    return libraries.look_at_mpi(lazy.rank) if name == "mpi" else None
