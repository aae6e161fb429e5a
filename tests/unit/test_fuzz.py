"""Valid messages that were damaged on the way: only the errors that are documented come out, and nothing huge is made.

Beside flipped and missing bytes, which the tests of each format try: parts of two messages put together, and sizes that
claim more than there is, at every place where a size can stand.
"""

from __future__ import annotations

import pickle
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.codec import data, pickling
from lazycast.codec.pickling import Layout
from lazycast.net import wire
from lazycast.net.wire import WireError

from .test_relay import Node
from .test_wire import MESSAGES, _one_of_each

#: Starts of msgpack values that claim 4 GiB: array, map, text, bytes, extension.
CLAIMS = [bytes([kind]) + b"\xff\xff\xff\xff" for kind in (0xDD, 0xDF, 0xDB, 0xC6, 0xC9)]
LARGE_NBYTES = 1 << 20


@contextmanager
def nothing_huge(limit_nbytes: int = LARGE_NBYTES) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit_nbytes, f"{peak} bytes were allocated"


def decodes_or(error: type[Exception], decode: Callable[[], Any]) -> None:
    with nothing_huge():
        try:
            decode()
        except error:
            return


@pytest.mark.parametrize("message", _one_of_each(), ids=lambda m: type(m).__name__)
@pytest.mark.parametrize("claim", CLAIMS, ids=["array", "map", "text", "bytes", "extension"])
def test_a_header_that_claims_four_gigabytes_anywhere_is_a_wire_error(message: wire.AnyMessage, claim: bytes) -> None:
    header = wire.encode(message)
    for at in range(1, len(header)):
        for damaged in (header[:at] + claim, header[:at] + claim + header[at:], header[:at] + claim + header[at + 1 :]):
            decodes_or(WireError, lambda damaged=damaged: wire.decode(damaged))
        if not (isinstance(message, wire.Query) and len(header) - at <= 8):  # the bytes of a float may be any
            with pytest.raises(WireError):
                wire.decode(header[:at] + claim)


@given(MESSAGES, MESSAGES, st.data())
def test_two_headers_put_together_are_one_message_or_a_wire_error(
    one: wire.AnyMessage, other: wire.AnyMessage, draw: st.DataObject
) -> None:
    head, tail = wire.encode(one), wire.encode(other)
    cut, again = draw.draw(st.integers(0, len(head))), draw.draw(st.integers(0, len(tail)))
    decodes_or(WireError, lambda: wire.decode(head[:cut] + tail[again:]))


@given(MESSAGES, st.integers(0, 100), st.data())
def test_a_relay_takes_a_damaged_message_or_says_wire_error(
    message: wire.AnyMessage, nbytes: int, draw: st.DataObject
) -> None:
    """And then goes on: the next good message is delivered."""
    node = Node(1, 5)
    header = bytearray(wire.encode(message))
    for _ in range(draw.draw(st.integers(0, 2))):
        header[draw.draw(st.integers(0, len(header) - 1))] = draw.draw(st.integers(0, 255))
    try:
        node.receive(0, bytes(header), b"x" * nbytes)
    except (WireError, MemoryError):
        pass
    else:
        before = len(node.inbox.messages)
        node.receive(0, wire.Verdict(7))
        assert [m for m, _ in node.inbox.messages[before:]] == [wire.Verdict(7)]


PAYLOADS = [
    {"pixels": np.arange(400.0), "id": 7, "file": b"x" * 100},
    [np.zeros(0), np.arange(3)],
    "text only",
    b"y" * (70 << 10),
]
CODECS = {"data": data, "pickle": pickling}


def encoded(payload: Any, kind: Any) -> tuple[bytearray, Layout]:
    made = kind.encode(payload)
    body = bytearray(made.nbytes)
    made.write_into(memoryview(body))
    return body, made.layout


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.parametrize("payload", range(len(PAYLOADS)))
def test_a_body_whose_sizes_lie_is_refused(payload: int, kind: str) -> None:
    """The table of frames, and what the header says of the body. With pickle, any error is a `DecodeError` later on."""
    body, layout = encoded(PAYLOADS[payload], CODECS[kind])
    for size in (1 << 20, 1 << 40, (1 << 63) - 1, (1 << 64) - 1):
        for frame in range(layout.frames):
            damaged = bytearray(body)
            damaged[8 * frame : 8 * frame + 8] = size.to_bytes(8, "little")
            with nothing_huge(), pytest.raises((ValueError, OverflowError)):
                CODECS[kind].decode(memoryview(damaged), layout)
    for lie in (Layout(1 << 40, layout.frames), Layout(layout.stream_nbytes, 1 << 30)):
        if kind == "pickle" and not lie.frames:
            continue  # a pickle says itself where it ends
        with nothing_huge(), pytest.raises((ValueError, EOFError, pickle.UnpicklingError, TypeError)):
            CODECS[kind].decode(memoryview(body), lie)


@pytest.mark.parametrize("claim", CLAIMS, ids=["array", "map", "text", "bytes", "extension"])
@pytest.mark.parametrize("payload", range(len(PAYLOADS) - 1))
def test_a_stream_that_claims_four_gigabytes_anywhere_is_no_data(payload: int, claim: bytes) -> None:
    body, layout = encoded(PAYLOADS[payload], data)
    start = pickling.aligned(8 * layout.frames)
    for at in range(start + 1, start + layout.stream_nbytes):
        damaged = bytearray(body[:at] + claim + body[at + len(claim) :])
        decodes_or(ValueError, lambda damaged=damaged: data.decode(memoryview(damaged), layout))


@given(st.integers(0, len(PAYLOADS) - 1), st.integers(0, len(PAYLOADS) - 1), st.data())
def test_two_bodies_put_together_decode_or_are_no_data(one: int, other: int, draw: st.DataObject) -> None:
    head, layout = encoded(PAYLOADS[one], data)
    tail, _ = encoded(PAYLOADS[other], data)
    cut, again = draw.draw(st.integers(0, len(head))), draw.draw(st.integers(0, len(tail)))
    decodes_or(ValueError, lambda: data.decode(memoryview(head[:cut] + tail[again:]), layout))
