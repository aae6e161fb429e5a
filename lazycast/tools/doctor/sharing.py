"""Who shares memory with whom, and why some do not: what the ranks' trials and their places come to."""

from __future__ import annotations

from collections.abc import Sequence

from lazycast.start.meeting import LABEL
from lazycast.tools.doctor.finding import Finding, Verdict, ranks_text
from lazycast.tools.doctor.machine import Machine
from lazycast.tools.doctor.trial import Trial


def matrix(reached: Sequence[Sequence[int]]) -> list[list[bool]]:
    """Return, for each rank and each other, whether a descriptor has passed between them. Symmetric."""
    size = len(reached)
    return [[a == b or min(a, b) in reached[max(a, b)] for b in range(size)] for a in range(size)]


def hosts(trials: Sequence[Trial], machines: Sequence[Machine]) -> Finding:
    """Which ranks form a host, and whether those of one machine are one.

    Args:
        trials: of all ranks, in order; they have met.
        machines: the same ranks' places, in order.
    """
    found = trials[0].hosts
    names = [f"{machines[host[0]].host}: {ranks_text(host)}" for host in found]
    text = f"{len(found)} host{'s' if len(found) != 1 else ''} ({'; '.join(names)})"
    if len(found) == 1:
        shares = "; memory is shared by all" if len(trials) > 1 else ""
        return Finding("ranks", "hosts", "ok", text + shares)
    details: list[str] = []
    remedies: dict[str, None] = {}
    verdict: Verdict = "ok"
    for index, host in enumerate(found):
        for other in found[:index]:
            line, remedy, grade = _between(other, host, trials, machines)
            details.append(line)
            if remedy is not None:
                remedies[remedy] = None
            verdict = grade if _RANKING.index(grade) > _RANKING.index(verdict) else verdict
    if len(trials) <= _MATRIX:
        details += _drawn(matrix(trials[0].reached))
    return Finding("ranks", "hosts", verdict, text, "; ".join(remedies) or None, tuple(details))


_ONE_NAMESPACE = (
    "run the ranks of a machine in one container, or let their containers share the network namespace (docker run "
    "--network container:NAME or host; a Kubernetes pod does)"
)
_RANKING: tuple[Verdict, ...] = ("ok", "note", "problem")
_MATRIX = 16  # ranks: more do not fit a line


def _between(
    host: Sequence[int], other: Sequence[int], trials: Sequence[Trial], machines: Sequence[Machine]
) -> tuple[str, str | None, Verdict]:
    """Say why two hosts are two, what to do about it, and how bad it is."""
    pair = next(
        ((min(a, b), max(a, b)) for a in host for b in other if min(a, b) not in trials[0].reached[max(a, b)]), None
    )
    who = f"{ranks_text(host)} and {ranks_text(other)}"
    if pair is None:
        return f"{who}: reach each other, but not all ranks between do", None, "note"
    low, high = pair
    a, b, why = machines[low], machines[high], trials[high].refused.get(low, "they could not reach each other")
    if a.boot != b.boot:
        return f"{who}: on two machines", None, "ok"
    if why.startswith(LABEL):
        return f"{who}: kept apart: {why}", f"unset {LABEL} to let them share", "note"
    if a.refusal or b.refusal:
        return f"{who}: {why}", "see the line on shared memory", "problem"
    if a.namespaces.get("net") != b.namespaces.get("net"):
        return (
            f"{who}: on one machine, in two network namespaces ({why})",
            _ONE_NAMESPACE,
            "problem",
        )
    if a.uid != b.uid:
        return f"{who}: run by two users, {a.uid} and {b.uid}", "run all ranks as one user", "problem"
    return f"{who}: {why}", "a sandbox may forbid it: let the ranks pass descriptors over Unix sockets", "problem"


def _drawn(passes: list[list[bool]]) -> list[str]:
    width = len(str(len(passes) - 1))
    numbers = " ".join(f"{rank:>{width}}" for rank in range(len(passes)))
    lines = [f"descriptors pass: {'':>{width}} {numbers}"]
    for rank, row in enumerate(passes):
        marks = " ".join(f"{'+' if good else '-':>{width}}" for good in row)
        lines.append(f"{'':>17} {rank:>{width}} {marks}")
    return lines


def constructed(trials: Sequence[Trial]) -> Finding:
    """Whether every rank got as far as it should."""
    failed = [trial for trial in trials if trial.error is not None]
    if not failed:
        took_s = max(trial.construct_s for trial in trials)
        return Finding("ranks", "group", "ok", f"{len(trials)} ranks constructed a LazyBroadcast in {took_s:.2f} s")
    said: dict[str, list[int]] = {}
    for trial in failed:
        said.setdefault(f"{trial.step}: {trial.error}", []).append(trial.rank)
    details = tuple(f"{ranks_text(ranks)}: {' '.join(text.split())}" for text, ranks in said.items())
    found = f"{ranks_text([trial.rank for trial in failed])} failed in {failed[0].step}"
    remedy = "look the message up in the docs, under Troubleshooting (docs/how-to/troubleshooting.md)"
    return Finding("ranks", "group", "problem", found, remedy, details)
