"""The format of a trace: Chrome's trace events, as a JSON array with one event on each line.

Guarantees: the line ends are the only ones, so a file that was cut off anywhere is whole up to its last line; the
readers of this format (Perfetto, chrome://tracing) put up with a missing end of the array.

Times are microseconds of CLOCK_MONOTONIC of the process that writes, in a merged trace of the root's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

Event = dict[str, Any]

#: What each event must have, by its phase (`ph`): spans on a thread, pairs of an own track, moments, names, arrows.
REQUIRED = {
    "X": ("name", "cat", "pid", "tid", "ts", "dur"),
    "b": ("name", "cat", "pid", "tid", "ts", "id"),
    "e": ("name", "cat", "pid", "tid", "ts", "id"),
    "i": ("name", "cat", "pid", "tid", "ts", "s"),
    "M": ("name", "pid", "args"),
    "s": ("name", "cat", "pid", "tid", "ts", "id"),
    "f": ("name", "cat", "pid", "tid", "ts", "id", "bp"),
}

#: The name of the event that says what a file is: object, rank, clock.
ABOUT = "lazycast"

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Event).decode


def line(event: Event) -> bytes:
    """Return an event as a line of a file that goes on."""
    return _encode(event) + b",\n"


@dataclass
class Trace:
    """What was read from one file.

    Attributes:
        about: the arguments of its event `ABOUT`.
        whole: whether the file has its end; otherwise its process died or still writes.
        damaged: lines that could not be read.
    """

    path: Path
    about: dict[str, Any]
    events: list[Event] = field(default_factory=list)
    whole: bool = False
    damaged: int = 0


class TraceError(ValueError):
    """A file that is no trace, or of no use."""


def read(path: Path) -> Trace:
    """Read what one rank has written, as far as it goes. Raises TraceError if it does not begin as a trace."""
    trace: Trace | None = None
    events: list[Event] = []
    whole, damaged = False, 0
    with path.open("rb") as lines:
        for raw in lines:
            text = raw.strip().rstrip(b",")
            if text in (b"[", b"]", b""):
                whole = text == b"]" or whole
                continue
            try:
                event = _decode(text)
            except msgspec.DecodeError:
                damaged += 1
                continue
            if trace is None and event.get("name") == ABOUT:
                trace = Trace(path, event["args"])
            events.append(event)
    if trace is None:
        raise TraceError(f"{path} is not a trace that lazycast has written")
    trace.events, trace.whole, trace.damaged = events, whole, damaged
    return trace


def load(path: Path) -> list[Event]:
    """Read a merged trace. Raises TraceError if it is none."""
    try:
        said = msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as exc:
        raise TraceError(f"{path} is not JSON: {exc}") from exc
    events = said.get("traceEvents") if isinstance(said, dict) else said
    if not isinstance(events, list) or not all(isinstance(event, dict) for event in events):
        raise TraceError(f"{path} holds no trace events")
    return events


def problems(events: Sequence[Event]) -> Iterator[str]:
    """Say what is wrong with the events of a whole trace: missing fields, negative times, pairs that are none."""
    open_spans: dict[tuple[Any, ...], int] = {}
    flows: dict[Any, list[str]] = {}
    for number, event in enumerate(events):
        ph = event.get("ph")
        if ph not in REQUIRED:
            yield f"event {number} has phase {ph!r}"
            continue
        missing = [name for name in REQUIRED[ph] if name not in event]
        if missing:
            yield f"event {number} ({ph} {event.get('name')}) lacks {', '.join(missing)}"
            continue
        if ph != "M" and not (isinstance(event["ts"], (int, float)) and event["ts"] >= 0):
            yield f"event {number} ({event['name']}) begins at {event['ts']}"
        if ph == "X" and event["dur"] < 0:
            yield f"event {number} ({event['name']}) takes {event['dur']} µs"
        if ph in "be":
            span = event["pid"], event["cat"], event["id"], event["name"]
            open_spans[span] = open_spans.get(span, 0) + (1 if ph == "b" else -1)
        if ph in "sf":
            flows.setdefault(event["id"], []).append(ph)
            if not isinstance(event["id"], int):
                yield f"event {number} is of flow {event['id']!r}, which is no integer"
    yield from (
        f"span {span} has {'no end' if left > 0 else 'no beginning'}" for span, left in open_spans.items() if left
    )
    yield from (
        f"flow {name} is {ends}, not one beginning and one end"
        for name, ends in flows.items()
        if sorted(ends) != ["f", "s"]
    )
    yield from _misnamed(events)
    yield from _misnested(events)


def _misnamed(events: Sequence[Event]) -> Iterator[str]:
    names: dict[tuple[Any, Any], str] = {}
    for event in events:
        if event.get("ph") == "M" and event.get("name") == "thread_name":
            thread, name = (event.get("pid"), event.get("tid")), event["args"]["name"]
            if names.setdefault(thread, name) != name:
                yield f"thread {thread} is named {names[thread]!r} and {name!r}"


def _misnested(events: Sequence[Event]) -> Iterator[str]:
    """Go through the slices of a thread as Perfetto does: one that begins inside another must end inside it."""
    stacks: dict[tuple[Any, Any], list[tuple[int, str]]] = {}  # the ends of those that are open
    whole = [e for e in events if e.get("ph") == "X" and all(name in e for name in REQUIRED["X"])]
    for event in sorted(whole, key=lambda event: event["ts"]):  # it keeps the order of what begins together
        begin_ns, end_ns = round(event["ts"] * 1e3), round(event["ts"] * 1e3) + round(event["dur"] * 1e3)
        stack = stacks.setdefault((event["pid"], event["tid"]), [])
        while stack and stack[-1][0] <= begin_ns:
            stack.pop()
        if stack and stack[-1][0] < end_ns:
            yield f"slice {event['name']} at {event['ts']} is not inside {stack[-1][1]}, in which it begins"
        stack.append((end_ns, event["name"]))
