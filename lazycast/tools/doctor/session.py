"""A doctor's visit on a rank that a launcher has started: look, answer the roll call, try to work together, report.

Guarantees:

* Every wait has a time limit. Who has not answered in time is named, and the others are told to stop.
* When the launcher ends the job, as torchrun does when a rank dies, rank 0 says what it knows first.
* Only rank 0 has an examination to show.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec

from lazycast.errors import LazycastError
from lazycast.start import discovery
from lazycast.tools.doctor import facts, job, libraries, trial
from lazycast.tools.doctor.facts import Facts
from lazycast.tools.doctor.finding import Finding
from lazycast.tools.doctor.guard import Guard
from lazycast.tools.doctor.job import Launcher
from lazycast.tools.doctor.judge import Examination
from lazycast.tools.doctor.posts import Gathering, Post
from lazycast.tools.doctor.trial import Trial
from lazycast.tools.doctor.watch import Watch

#: Longer than rank 0 needs to try the backends that this job does not use, before it calls the roll (seconds).
_PROBES_S = 60.0
_SLACK_S = 10.0
_GO, _STOP = b"go", b"stop"
_JOINING = {
    "torch": "reaching the store at MASTER_ADDR",
    "mpi": "starting MPI, which waits for all ranks",
    "local": "opening the rendezvous folder",
}


def visit(
    found: Launcher,
    *,
    self_test: bool,
    timeout_s: float,
    say: Callable[[str], None],
    text: Callable[[Examination], str],
) -> Examination | None:
    """Examine the job that this process is a rank of.

    Args:
        say: told what is under way, on rank 0.
        text: puts into words what is known, in case that this process is about to be ended. Called from any thread.
    Returns: what there is to report on rank 0; None elsewhere.
    """
    if found.rank == 0:
        return _lead(found, self_test, timeout_s, say, text)
    _follow(found, self_test, timeout_s)
    return None


def _lead(
    found: Launcher, self_test: bool, timeout_s: float, say: Callable[[str], None], text: Callable[[Examination], str]
) -> Examination:
    exam = Examination(f"started by {found.name}", found.name, found.backend, found.size)
    with Watch(lambda why: print(text(_ended(exam, why)), flush=True)) as watch:

        def step(what: str, limit_s: float) -> None:
            say(what)
            # Each wait has a limit of its own; this one ends a hang inside a library that knows none.
            watch.step(what, limit_s + _SLACK_S)

        for name in discovery.names():
            if name not in (found.backend, "local"):
                step(f"trying the backend {name!r}", _PROBES_S)
                exam.probes.append(libraries.probe(name, timeout_s=_PROBES_S))
        step(_JOINING[found.backend], timeout_s)
        try:
            here = _join(found, exam, timeout_s, text)
        except LazycastError as exc:
            remedy = libraries.REMEDIES.get(found.backend, "see the message")
            exam.ended = Finding("ranks", "joining", "problem", str(exc), remedy)
            return exam
        exam.facts = [facts.look(0, here.post.size, backend=found.backend)]
        if found.size in (None, here.post.size):  # else they are strangers to each other: nothing can be asked
            exam.title = f"{here.post.size} ranks, started by {found.name}"
            _ask(exam, here, self_test, timeout_s, step)
    return exam


def _join(found: Launcher, exam: Examination, timeout_s: float, text: Callable[[Examination], str]) -> job.Job:
    if found.backend != "mpi":
        return job.join(found, timeout_s)
    why = f"rank 0 could not start MPI, within {timeout_s:g} s or before it was ended: MPI waits for all ranks"
    with Guard(text(_ended(msgspec.structs.replace(exam), why)), timeout_s):
        return job.join(found, timeout_s)


def _ask(
    exam: Examination, here: job.Job, self_test: bool, timeout_s: float, step: Callable[[str, float], None]
) -> None:
    post, others = here.post, list(range(1, here.post.size))
    gathering = Gathering(post, exam.silent)
    exam.awaited = "the roll call"
    step("calling the roll", timeout_s)
    blobs = gathering.collect(others, timeout_s)
    exam.facts += [msgspec.json.decode(blobs[rank], type=Facts) for rank in sorted(blobs)]
    for rank in others:
        post.send(rank, _STOP if exam.silent else _GO)
    if not exam.silent:
        exam.awaited = "what became of the trial"
        # Connecting, meeting, constructing, and some casts that may each come near their limit.
        step("casting among all ranks" if self_test else "constructing a LazyBroadcast", 8 * timeout_s)
        exam.trials = [_try(here, 0, self_test, timeout_s)]
        limit_s = 2 * timeout_s + _SLACK_S
        step("hearing what became of it", limit_s)
        blobs = gathering.collect(others, limit_s)
        exam.trials += [msgspec.json.decode(blobs[rank], type=Trial) for rank in sorted(blobs)]
        step("leaving", timeout_s)
        here.leave()
    post.flush(_SLACK_S)


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
    word = Gathering(post).collect([0], timeout_s).get(0)
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


def _ended(exam: Examination, why: str) -> Examination:
    remedy = "see the launcher's output, and that of the other ranks: which one died or hangs, and why"
    exam.ended = Finding("ranks", "job", "problem", why, remedy)
    return exam
