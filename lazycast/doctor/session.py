"""A doctor's visit on a rank that a launcher has started: look, answer the roll call, try to work together, report.

Guarantees:

* Every wait has a time limit. Who has not answered in time is named, and the others are told to stop.
* When the launcher ends the job, as torchrun does when a rank dies, rank 0 says what it knows first.
* Only rank 0 has an examination to show.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import msgspec

from lazycast import discovery
from lazycast.doctor import facts, job, libraries, trial
from lazycast.doctor.facts import Facts
from lazycast.doctor.finding import Finding
from lazycast.doctor.job import Launcher
from lazycast.doctor.judge import Examination
from lazycast.doctor.posts import Gathering, Post
from lazycast.doctor.trial import Trial
from lazycast.doctor.watch import Watch
from lazycast.errors import LazycastError

#: Longer than rank 0 needs to try the backends that this job does not use, before it calls the roll (seconds).
_PROBES_S = 60.0
_SLACK_S = 10.0
_GO, _STOP = b"go", b"stop"


def visit(
    found: Launcher,
    *,
    self_test: bool,
    timeout_s: float,
    say: Callable[[str], None],
    end: Callable[[Examination], None],
) -> Examination | None:
    """Examine the job that this process is a rank of.

    Args:
        say: told what is under way, on rank 0.
        end: shows what is known, in case that this process is about to be ended. Called from another thread.
    Returns: what there is to report on rank 0; None elsewhere.
    """
    if found.rank == 0:
        return _lead(found, self_test, timeout_s, say, end)
    _follow(found, self_test, timeout_s)
    return None


def _lead(
    found: Launcher, self_test: bool, timeout_s: float, say: Callable[[str], None], end: Callable[[Examination], None]
) -> Examination:
    exam = Examination(f"started by {found.name}", found.name, found.backend, found.size)
    for name in discovery.names():
        if name not in (found.backend, "local"):
            say(f"trying the backend {name!r}")
            exam.probes.append(libraries.probe(name, timeout_s=_PROBES_S))
    try:
        here = job.join(found, timeout_s)
    except LazycastError as exc:
        remedy = libraries.REMEDIES.get(found.backend, "see the message")
        exam.ended = Finding("ranks", "joining", "problem", str(exc), remedy)
        return exam
    post, gathering = here.post, Gathering(here.post)
    # Each step has its own limit; this one ends a hang inside a library that knows none.
    with Watch(limit_s=10 * timeout_s + 2 * _PROBES_S, ended=lambda why: _ended(exam, gathering, why, end)):
        own = facts.look(0, post.size, backend=found.backend)
        exam.facts, others = [own], list(range(1, post.size))
        if found.backend == "mpi" and found.size not in (None, post.size):
            return exam  # strangers to each other: nothing can be asked
        exam.title = f"{post.size} ranks, started by {found.name}"
        exam.awaited = "the roll call"
        say(f"calling {post.size} ranks")
        blobs = gathering.collect(others, timeout_s)
        exam.facts += [msgspec.json.decode(blobs[rank], type=Facts) for rank in sorted(blobs)]
        exam.silent = list(gathering.missing)
        for rank in others:
            post.send(rank, _STOP if exam.silent else _GO)
        if not exam.silent:
            say("casting among all ranks" if self_test else "constructing a LazyBroadcast")
            exam.trials = [_try(here, 0, self_test, timeout_s)]
            exam.awaited = "what became of the trial"
            blobs = gathering.collect(others, 2 * timeout_s + _SLACK_S)
            exam.trials += [msgspec.json.decode(blobs[rank], type=Trial) for rank in sorted(blobs)]
            exam.silent = list(gathering.missing)
            here.leave()
        post.flush(_SLACK_S)
    return exam


def _follow(found: Launcher, self_test: bool, timeout_s: float) -> None:
    try:
        here = job.join(found, timeout_s + _PROBES_S)
        post = here.post
        if post.rank == 0:
            return  # MPI does not know of the other ranks; the one that its launcher calls 0 says so
        post.send(0, msgspec.json.encode(facts.look(post.rank, post.size, backend=found.backend)))
        if not _told_to_go(post, timeout_s + 2 * _PROBES_S):
            return
        post.send(0, msgspec.json.encode(_try(here, post.rank, self_test, timeout_s)))
        post.flush(_SLACK_S)
        here.leave()
    except LazycastError as exc:
        print(f"lazycast doctor: rank {found.rank}: {type(exc).__name__}: {exc}", file=sys.stderr)


def _told_to_go(post: Post, timeout_s: float) -> bool:
    gathering = Gathering(post)
    word = gathering.collect([0], timeout_s).get(0)
    if word is None:
        print(f"lazycast doctor: rank {post.rank}: rank 0 has said nothing for {timeout_s:g} s", file=sys.stderr)
    return word == _GO


def _try(here: job.Job, rank: int, self_test: bool, timeout_s: float) -> Trial:
    tried = Trial(rank)
    try:
        backend = here.connect(timeout_s)
    except LazycastError as exc:
        tried.error = f"{type(exc).__name__}: {exc}"
        return tried
    trial.run(tried, backend, self_test=self_test, timeout_s=timeout_s)
    return tried


def _ended(exam: Examination, gathering: Gathering, why: str, end: Callable[[Examination], None]) -> None:
    exam.silent = list(gathering.missing)
    remedy = "see the launcher's own output: it says which rank died, and of what"
    exam.ended = Finding("ranks", "job", "problem", f"{why}, at {time.strftime('%H:%M:%S')}", remedy)
    end(exam)
