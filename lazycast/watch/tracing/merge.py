"""Makes one trace of what the ranks have written: one clock, one process for each rank, arrows from the root's casts.

Guarantees: a file that was cut off is used as far as it goes, and said to be; a span without an end gets none made up.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lazycast.watch.tracing import clocks, events
from lazycast.watch.tracing.clocks import Offset
from lazycast.watch.tracing.events import Event, Trace, TraceError

#: The slices that casts leave from, and those they arrive in.
_FROM, _TO = "send", "arrive"
_FROM_OWNER, _TO_PEER = "share", "arrive value"
#: More threads than one rank has.
_THREADS = 10_000

#: Is told what is done from now on.
Say = Callable[[str], object]


def silent(what: str) -> None:
    """For callers whom nobody watches."""


@dataclass
class Merged:
    """What `merge` returns.

    Attributes:
        events: all of them, by the clock of the first root, from the first event on.
        offsets: of each file's clock.
        notes: what whoever reads the trace should know.
        base_ns: when moment 0 was (nanoseconds since 1970), by that root's clock of day when its trace began.
    """

    events: list[Event]
    offsets: dict[Path, Offset]
    notes: list[str] = field(default_factory=list)
    base_ns: int = 0


class _Move(NamedTuple):
    """What becomes of the events of a file: a number of its own for its ids and threads, a process, a clock.

    `by_us` is whole nanoseconds, as all moments are: what nests or ends together still does so on the other clock.
    """

    number: int
    pid: int
    by_us: float

    def tid(self, tid: int) -> int:
        """Return a number for a thread that no other thread of the trace has, and no process.

        Perfetto finds the thread to name by it alone, and takes one with its process's number for the main one.
        """
        return self.number * _THREADS + tid


def read_all(folder: Path, say: Say = silent) -> tuple[list[Trace], list[str]]:
    """Read every trace in a folder; return them by object and rank, and what is wrong with some.

    Args:
        say: is told of each file.
    Raises: TraceError if there is none.
    """
    traces, notes = [], []
    paths = sorted(folder.glob("*.json"))
    for number, path in enumerate(paths, 1):
        say(f"reading {path.name}, {number} of {len(paths)}")
        try:
            traces.append(events.read(path))
        except TraceError as exc:
            notes.append(f"left out: {exc}")
    if not traces:
        raise TraceError(f"there is no trace in {folder}")
    for trace in traces:
        if not trace.whole:
            notes.append(f"{trace.path.name} has no end: its process died or still runs")
        if trace.damaged:
            notes.append(f"{trace.path.name}: {trace.damaged} lines could not be read")
    return sorted(traces, key=lambda trace: (trace.about["name"], trace.about["object"], trace.about["rank"])), notes


def merge(traces: Sequence[Trace], notes: Iterable[str] = (), say: Say = silent) -> Merged:
    """Merge the traces of one job. Traces of the same object and rank, one after the other, become one process.

    Args:
        notes: what `read_all` has found.
        say: is told of each object.
    """
    merged = Merged([], {}, list(notes))
    groups: dict[str, list[Trace]] = defaultdict(list)
    for trace in traces:
        groups[trace.about["object"]].append(trace)
    pids: dict[tuple[str, int], int] = {}
    moves: dict[Path, _Move] = {}
    shifts = _between_objects(list(groups.values()))
    for number, ((ident, group), shift_us) in enumerate(zip(groups.items(), shifts, strict=True), 1):
        say(f"aligning {group[0].about['name']!r}, object {number} of {len(groups)}")
        chief = _chief(group)
        roots = [trace for trace in group if trace.about["rank"] == chief["rank"] and _leads(trace.about, group)]
        if not roots:
            merged.notes.append(f"object {group[0].about['name']!r}: the trace of its root is missing")
        for trace in group:
            rank = trace.about["rank"]
            pid = pids.setdefault((ident, rank), len(pids) + 1)
            offset = _offset(trace, group, roots, merged.notes)
            merged.offsets[trace.path] = offset
            moves[trace.path] = move = _Move(len(moves) + 1, pid, round(offset.us + shift_us, 3))
            merged.events += _shifted(trace, move)
        merged.events += _links(ident, group, moves)
    say(f"sorting {len(merged.events)} events")
    _number_flows(merged.events)
    begin_us = min((event["ts"] for event in merged.events if event["ph"] != "M"), default=0.0)
    for event in merged.events:
        event["ts"] = 0 if event["ph"] == "M" else round(event["ts"] - begin_us, 3)
    chief = _chief(next(iter(groups.values())))
    merged.base_ns = round((begin_us + chief["wall_us"] - chief["monotonic_us"]) * 1e3)
    merged.events.sort(key=_order)
    return merged


def _order(event: Event) -> tuple[bool, float, bool, float]:
    """Names first, then by time; of what begins together slices first, the outer one before the inner ones.

    Perfetto drops a slice that outlives the one it begins in, and binds an arrow to a slice that it has seen.
    """
    return event["ph"] != "M", event["ts"], event["ph"] != "X", -event.get("dur", 0.0)


def _number_flows(found: list[Event]) -> None:
    """Give arrows integers for names: Perfetto reads others as hexadecimal numbers, and drops what is none."""
    numbers: dict[str, int] = {}
    for event in found:
        if event["ph"] in "sf":
            event["id"] = numbers.setdefault(event["id"], len(numbers) + 1)


def _between_objects(groups: list[list[Trace]]) -> list[float]:
    """Bring objects to the clock of the first one's root: mostly the same; else by the clocks of day."""
    base = _chief(groups[0])
    return [0.0 if _chief(g)["clock"] == base["clock"] else _by_day(_chief(g), base) for g in groups]


def _chief(group: list[Trace]) -> dict[str, Any]:
    return next((t.about for t in group if _leads(t.about, group)), group[0].about)


def _leads(about: dict[str, Any], group: list[Trace]) -> bool:
    """Whether a rank has the clock of its group: the root, or where every rank is one, the first that was traced."""
    if about.get("roots") == "any":
        return bool(about["rank"] == min(trace.about["rank"] for trace in group))
    return bool(about["rank"] == about["root"])


def _by_day(about: dict[str, Any], root: dict[str, Any]) -> float:
    """What to add to a rank's moments to get the root's, if the clocks of day were right."""
    return float((about["wall_us"] - about["monotonic_us"]) - (root["wall_us"] - root["monotonic_us"]))


def _offset(trace: Trace, group: list[Trace], roots: list[Trace], notes: list[str]) -> Offset:
    """Return what to add to a rank's moments. What ranks that share its clock have told counts, too.

    What most of a machine's ranks tell reaches the root in the words of the one that leads them.
    """
    if not roots or trace.about["clock"] == roots[0].about["clock"]:
        return clocks.SAME
    rank = trace.about["rank"]
    alike = [one for one in group if one.about["clock"] == trace.about["clock"]]
    sent = {event["args"]["seq"]: event["ts"] for root in roots for event in root.events if event["name"] == _FROM}
    came = [(event["args"]["seq"], event["ts"]) for one in alike for event in one.events if event["name"] == _TO]
    down = [(sent[seq], at) for seq, at in came if seq in sent]
    said, heard = _once("said", alike), _once("heard", roots)
    up = [(at, heard[word]) for word, at in said.items() if word in heard]
    offset = clocks.estimate(down, up, wall_us=_by_day(trace.about, roots[0].about))
    error = "unknown" if offset.error_us is None else f"at most {offset.error_us:.0f} µs"
    notes.append(f"rank {rank} on {trace.about['host']} has another clock: aligned by {offset.how}, error {error}")
    return offset


def _once(name: str, traces: list[Trace]) -> dict[tuple[int, str, int], float]:
    """Return when each word was said, or heard. What was said again is left out: which was heard is unknown."""
    words: dict[tuple[int, str, int], list[float]] = {}
    for trace in traces:
        for event in trace.events:
            if event["name"] == name:
                said = event["args"]
                words.setdefault((said["rank"], said["kind"], said["seq"]), []).append(event["ts"])
    return {word: times[0] for word, times in words.items() if len(times) == 1}


def _shifted(trace: Trace, move: _Move) -> list[Event]:
    """Return the events of one rank as a process, on the common clock; spans that have no end are left out."""
    ends = {event["id"] for event in trace.events if event["ph"] == "e"}
    found = []
    for event in trace.events:
        if event["name"] in (events.ABOUT, "end") or (event["ph"] == "b" and event["id"] not in ends):
            continue
        moved = {**event, "pid": move.pid, "tid": move.tid(event["tid"])}
        if event["ph"] != "M":
            moved["ts"] = event["ts"] + move.by_us
        if "id" in event:
            moved["id"] = f"{move.number}.{event['id']}"  # a rank may have been traced twice
        found.append(moved)
    return found


def _links(ident: str, group: list[Trace], moves: dict[Path, _Move]) -> list[Event]:
    """Draw an arrow from where each cast, and each owner's value, left to each rank where it arrived."""
    found: list[Event] = []
    for leaving, arriving in ((_FROM, _TO), (_FROM_OWNER, _TO_PEER)):
        left: dict[tuple[int, int], tuple[Trace, Event]] = {}
        for trace in group:
            left |= {(e["args"]["seq"], trace.about["rank"]): (trace, e) for e in trace.events if e["name"] == leaving}
        for trace in group:
            for event in trace.events:
                if event["name"] != arriving:
                    continue
                seq = event["args"]["seq"]
                start = left.get((seq, event["args"].get("owner", _root_of(trace.about, seq))))
                if start is None:
                    continue
                found += _arrow(f"{ident[:8]}.{leaving}.{seq}.{trace.about['rank']}", start, (trace, event), moves)
    return found


def _root_of(about: dict[str, Any], seq: int) -> int:
    """Return whose cast has this number: where every rank is a root, they take their numbers in turn."""
    return int((seq - 1) % about["size"] if about.get("roots") == "any" else about["root"])


def _arrow(
    ident: str,
    start: tuple[Trace, Event],
    stop: tuple[Trace, Event],
    moves: dict[Path, _Move],
) -> list[Event]:
    """Return both ends of an arrow between two slices, and the transfer that no rank could time by itself."""
    begin, end = _place(*start, moves[start[0].path]), _place(*stop, moves[stop[0].path])
    name = start[1]["name"]
    if name == _FROM_OWNER:  # a value leaves when it is encoded: at the end, or just before it is here
        begin["ts"] += max(0.0, min(start[1]["dur"], end["ts"] - begin["ts"]))
    arrow = {"name": "cast" if name == _FROM else "value", "cat": "flow", "id": ident}
    found = [{**arrow, "ph": "s", **begin}, {**arrow, "ph": "f", "bp": "e", **end, "ts": max(end["ts"], begin["ts"])}]
    if name == _FROM and start[0].about["clock"] != stop[0].about["clock"]:
        found += _transfer(ident, stop[1], begin["ts"], end)
    return found


def _place(trace: Trace, event: Event, move: _Move) -> dict[str, Any]:
    return {"pid": move.pid, "tid": move.tid(event["tid"]), "ts": event["ts"] + move.by_us}


def _transfer(name: str, arrive: Event, begin_us: float, end: dict[str, Any]) -> list[Event]:
    """The time between, where a rank could not tell it by itself, since its clock is another one."""
    span = {"name": "transfer", "cat": "wait", "id": name, "pid": end["pid"], "tid": end["tid"]}
    args = {**arrive["args"], "estimated": True}
    ends = {**span, "ph": "e", "ts": max(end["ts"], begin_us)}
    return [{**span, "ph": "b", "ts": begin_us, "args": args}, ends]
