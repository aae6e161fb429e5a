"""The wire format: every message comes back as it was, a header is bounded, and garbage is a WireError."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazycast.core import failures
from lazycast.net import wire
from lazycast.net.wire import WireError

INT = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
KEYS = st.one_of(TEXT, st.integers(-(2**63), 2**64 - 1), st.binary(max_size=40))
FAILURES = st.builds(
    wire.Failure,
    kind=st.sampled_from(wire.FailureKind.__args__),
    rank=INT,
    host=TEXT,
    message=TEXT,
    traceback=st.none() | TEXT,
    loss=st.none() | st.builds(wire.Loss, by=INT, link=TEXT, reason=TEXT, heard_s=st.none() | st.floats(0, 1e6)),
)
REFS = st.builds(
    wire.MaterializerRef,
    ident=TEXT,
    name=TEXT,
    path=st.none() | st.tuples(TEXT, TEXT),
    part=st.sampled_from([None, "prepare", "finish"]),
)
SIZES = st.integers(0, 2**63 - 1)
SECONDS = st.floats(0, 1e6)
COSTS = st.builds(
    wire.Cost,
    busy_s=SECONDS,
    materialize_s=SECONDS,
    materialize_cpu_s=SECONDS,
    shared_nbytes=SIZES,
    unshared=st.none() | TEXT,
)
MAYBE = st.none() | FAILURES
MESSAGES = st.one_of(
    st.builds(
        wire.Cast,
        seq=INT,
        key=st.none() | KEYS,
        placement=TEXT,
        agree=st.booleans(),
        ref=st.none() | REFS,
        nbytes=SIZES,
        stream_nbytes=SIZES,
        frames=SIZES,
        failure=MAYBE,
        finish=st.none() | REFS,
        turn=SIZES,
        fingerprint=st.none() | st.binary(max_size=16),
        origin=st.none()
        | st.builds(wire.Origin, site=TEXT, label=st.binary(max_size=8), place=st.binary(max_size=8), nth=SIZES),
        trace=st.none() | st.dictionaries(TEXT, TEXT, max_size=2),
    ),
    st.builds(wire.Chunk, seq=INT, offset=SIZES, nbytes=SIZES),
    st.builds(wire.Code, seq=INT, ident=TEXT, nbytes=SIZES, failure=MAYBE),
    st.builds(wire.Verdict, seq=INT, failure=MAYBE),
    st.builds(wire.Drop, seq=INT),
    st.builds(wire.Report, rank=INT, seq=INT, read=st.booleans(), failure=MAYBE, cost=st.none() | COSTS),
    st.builds(
        wire.Value,
        rank=INT,
        seq=INT,
        passes=SIZES,
        nbytes=SIZES,
        stream_nbytes=SIZES,
        frames=SIZES,
        failure=MAYBE,
        unshared=st.none() | TEXT,
    ),
    st.builds(wire.Pass, rank=INT, seq=INT, to=INT, passed=st.lists(INT, max_size=20)),
    st.builds(wire.Read, rank=INT, seqs=st.lists(INT, max_size=20)),
    st.builds(wire.Need, rank=INT, ident=TEXT),
    st.builds(wire.Query, rank=INT, token=INT, seq=st.none() | INT, key=st.none() | KEYS, within_s=SECONDS),
    st.builds(
        wire.Status,
        to=INT,
        token=INT,
        phase=TEXT,
        missing=st.lists(INT, max_size=20),
        answered=st.lists(INT, max_size=20),
        silent=st.lists(st.builds(wire.Silence, rank=INT, silent_s=SECONDS, heard_s=st.none() | SECONDS), max_size=20),
        calls=SIZES,
        recent=st.lists(TEXT, max_size=5),
    ),
    st.builds(wire.Relayed, to=INT, token=INT, by=INT),
    st.just(wire.RollCall()),
    st.builds(wire.Present, rank=INT),
    st.just(wire.Beat()),
    st.builds(
        wire.Figures,
        rank=INT,
        age_s=st.floats(0, 1e9),
        qps=st.floats(0, 1e9),
        counts=st.dictionaries(TEXT, SIZES, max_size=3),
        placements=st.dictionaries(TEXT, SIZES, max_size=3),
        failed=st.dictionaries(TEXT, SIZES, max_size=3),
        timings=st.dictionaries(
            TEXT,
            st.builds(
                wire.Spread,
                total_s=st.floats(0, 1e9),
                max_s=st.floats(0, 1e9),
                first=SIZES,
                counts=st.lists(SIZES, max_size=5),
            ),
            max_size=3,
        ),
        unshared_reason=st.none() | TEXT,
        memo_saved_s=st.floats(0, 1e9),
    ),
    st.builds(wire.Gone, rank=INT, failure=FAILURES),
)


@given(MESSAGES)
def test_every_message_comes_back_as_it_was(message: wire.AnyMessage) -> None:
    back = wire.decode(wire.encode(message))
    assert type(back) is type(message)
    assert back == message


def test_the_strategy_above_knows_all_messages() -> None:
    known = {type(msg) for msg in _one_of_each()}
    assert known == set(wire.AnyMessage.__args__)


def _one_of_each() -> list[wire.AnyMessage]:
    failure = wire.Failure("lost", 1, "h", "m")
    return [
        wire.Cast(1, "k", "every", True, None),
        wire.Chunk(1, 2, 3),
        wire.Code(1, "i"),
        wire.Verdict(1),
        wire.Drop(1),
        wire.Report(1, 2, False),
        wire.Value(1, 2),
        wire.Pass(1, 2, 3, [1]),
        wire.Read(1, [2]),
        wire.Need(1, "i"),
        wire.Query(1, 2, None, None, 0.5),
        wire.Status(1, 2, "p", []),
        wire.Figures(1, 1.0, 1.0, {}, {}, {}, {}),
        wire.Relayed(1, 2, 3),
        wire.RollCall(),
        wire.Present(1),
        wire.Beat(),
        wire.Gone(1, failure),
    ]


@pytest.mark.parametrize("message", _one_of_each(), ids=lambda m: type(m).__name__)
def test_a_message_says_where_it_goes(message: wire.AnyMessage) -> None:
    up = (wire.Report, wire.Read, wire.Need, wire.Query, wire.Present, wire.Figures)
    down = (wire.Cast, wire.Chunk, wire.Code, wire.Verdict, wire.Drop, wire.RollCall)
    host = dict.fromkeys((wire.Value, wire.Pass), "host")
    expected = {
        **dict.fromkeys(up, "up"),
        **dict.fromkeys(down, "down"),
        **host,
        wire.Status: "one",
        wire.Relayed: "one",
        wire.Beat: "next",
        wire.Gone: "flood",
    }
    assert message.route == expected[type(message)]


@given(st.lists(KEYS, min_size=2, max_size=2))
def test_keys_of_different_types_never_meet(keys: list[wire.Key]) -> None:
    a, b = (wire.decode(wire.encode(wire.Cast(1, key, "every", True, None))).key for key in keys)
    assert [type(a), type(b)] == [type(key) for key in keys]
    assert (a == b) == (keys[0] == keys[1])


@pytest.mark.parametrize("key", ["1", 1, b"1", "", b"", 0, -(2**63), 2**64 - 1, "\x00", "ключ", b"\xff"])
def test_a_key_keeps_type_and_value(key: wire.Key) -> None:
    back = wire.decode(wire.encode(wire.Cast(1, key, "every", True, None))).key
    assert (type(back), back) == (type(key), key)


@pytest.mark.parametrize("key", [1.5, True, ["a"], {"a": 1}, ("a", 1)])
def test_a_key_of_another_type_is_refused(key: object) -> None:
    with pytest.raises(WireError, match="a key of type"):
        wire.decode(wire.encode(wire.Cast(1, key, "every", True, None)))


ALPHABETS = {"ascii": "x", "two bytes": "ж", "three bytes": "界", "four bytes": "😀", "surrogates": "\ud800"}


@pytest.mark.parametrize("letter", ALPHABETS.values(), ids=ALPHABETS)
def test_a_header_with_the_longest_failure_and_key_stays_below_its_limit(letter: str) -> None:
    class Talkative(Exception):
        def __str__(self) -> str:
            return letter * 100_000

    try:
        raise Talkative
    except Talkative as exc:
        failure = failures.from_exception("materialize", "materializer " + letter * 5000, exc, rank=7, host="h" * 64)
    key = b"k" * wire.MAX_KEY_NBYTES
    ref = wire.MaterializerRef("sha256:" + "0" * 64, "f" * 200)
    for message in (
        wire.Cast(2**62, key, "every", True, ref, 2**62, 2**62, 2**62, failure),
        wire.Report(2**31, 2**62, True, failure),
        wire.Gone(2**31, failure),
    ):
        header = wire.encode(message)
        assert wire.decode(header) == message
        assert len(header) <= wire.MAX_HEADER_NBYTES


def _layout() -> str:
    """Return all that travels by its place: the fields of every struct, in order, with their types."""
    found = [thing for thing in vars(wire).values() if isinstance(thing, type) and issubclass(thing, msgspec.Struct)]
    return "\n".join(
        f"{struct.__name__}: " + ", ".join(f"{name} {struct.__annotations__[name]}" for name in struct.__annotations__)
        for struct in sorted(found, key=lambda struct: struct.__name__)
    )


def test_a_change_of_any_struct_raises_the_wire_version() -> None:
    """Else ranks with the old one and the new one take each other's fields for what they are not."""
    mark = hashlib.sha256(_layout().encode()).hexdigest()[:12]
    assert (wire.WIRE_VERSION, mark) == (14, "459f896cc957"), (
        f"raise WIRE_VERSION, and note {mark!r} for it:\n{_layout()}"
    )


@pytest.mark.parametrize("version", [0, wire.WIRE_VERSION + 1, 255])
@pytest.mark.parametrize("message", _one_of_each(), ids=lambda m: type(m).__name__)
def test_another_wire_version_is_refused_with_both_numbers(message: wire.AnyMessage, version: int) -> None:
    header = bytes([version]) + wire.encode(message)[1:]
    with pytest.raises(WireError, match=rf"wire version {version}, this rank speaks {wire.WIRE_VERSION}"):
        wire.decode(header)


def test_an_empty_header_is_refused() -> None:
    with pytest.raises(WireError, match="wire version None"):
        wire.decode(b"")


def _decodes_or_wire_error(header: bytes) -> None:
    try:
        message = wire.decode(header)
    except WireError:
        return
    assert isinstance(message, wire.Message)


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_wire_error(garbage: bytes) -> None:
    _decodes_or_wire_error(garbage)
    _decodes_or_wire_error(bytes([wire.WIRE_VERSION]) + garbage)


@given(MESSAGES, st.data())
def test_a_damaged_header_raises_nothing_but_wire_error(message: wire.AnyMessage, data: st.DataObject) -> None:
    header = bytearray(wire.encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        header[data.draw(st.integers(0, len(header) - 1))] = data.draw(st.integers(0, 255))
    _decodes_or_wire_error(bytes(header))
    _decodes_or_wire_error(bytes(header[: data.draw(st.integers(0, len(header)))]))


def _header(*fields: object) -> bytes:
    return bytes([wire.WIRE_VERSION]) + msgspec.msgpack.encode(fields)


def _cast_with_key(packed: bytes) -> bytes:
    array_of_six, rest = b"\x96", b"".join(map(msgspec.msgpack.encode, ("every", True, None)))
    head = b"".join(map(msgspec.msgpack.encode, ("cast", 1)))
    return bytes([wire.WIRE_VERSION]) + array_of_six + head + packed + rest


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(_header("nobody", 1), id="unknown tag"),
        pytest.param(_header("verdict"), id="too few fields"),
        pytest.param(_header("verdict", "one", None), id="wrong type"),
        pytest.param(_header("verdict", 1, ["bored", 0, "h", "m"]), id="unknown kind of failure"),
        pytest.param(_header("cast", 1, "k", "every", 1, None), id="int for a bool"),
        pytest.param(_header("verdict", 1, None) + b"\x00", id="more after the end"),
        pytest.param(bytes([wire.WIRE_VERSION]) + b"\x92\xa1\xff\x01", id="tag that is no UTF-8"),
        pytest.param(_cast_with_key(b"\xa1\xff"), id="key that is no UTF-8"),
        pytest.param(_cast_with_key(b"\x81\x80\x01"), id="unhashable map key"),
        pytest.param(_cast_with_key(b"\xd4\x05\x01"), id="extension type"),
        pytest.param(_cast_with_key(b"\xd6\xff\xff\xff\xff\xff"), id="timestamp"),
        pytest.param(_cast_with_key(b"\x91" * 5000 + b"\xc0"), id="nested too deep"),
    ],
)
def test_a_malformed_header_is_a_wire_error(header: bytes) -> None:
    with pytest.raises(WireError, match="malformed header"):
        wire.decode(header)


def test_decoding_runs_no_code() -> None:
    evil = b"cos\nsystem\n(S'exit 1'\ntR."
    with pytest.raises(WireError):
        wire.decode(evil)
    assert wire.decode(_cast_with_key(msgspec.msgpack.encode(evil))).key == evil


#: What moves a cursor, ends a line of a log, or turns the direction of what follows.
BAD = ["\x1b[2J", "\r", "\x07", "\x00", "\x9b31m", "\u202e", "\u2028", "\x7f", "\x08", "\u200b", "\x0c", "\x85"]


@pytest.mark.parametrize("bad", BAD, ids=ascii)
def test_texts_of_others_are_printable(bad: str) -> None:
    text, clean = f"a{bad}b", f"a{bad.encode('unicode_escape').decode()}b"
    loss = ["x", text, text, None]
    said = ["materialize", 1, text, f"one\n{text}", f"two\n\t{text}", loss, [text, []]]
    failure = _as_sent(["report", 1, 2, True, said]).failure
    assert (failure.host, failure.message, failure.traceback) == (clean, f"one\n{clean}", f"two\n\t{clean}")
    assert failure.overdue.phase == clean
    ended = _as_sent(["gone", 1, ["lost", 1, text, f"one\n{text}", None, [1, text, f"{text}\n", None]]]).failure
    assert (ended.host, ended.message) == (clean, f"one\\n{clean}"), "said in one line"
    assert (ended.loss.link, ended.loss.reason) == (clean, f"{clean}\\n")
    status = _as_sent(["status", 1, 2, text, [], [], [], 0, [text]])
    assert (status.phase, status.recent) == (clean, [clean])
    assert _as_sent(["present", 1, text]).holders == clean
    figures = _as_sent(["figures", 1, 0.0, 0.0, {text: 1}, {text: 1}, {text: 1}, {}, 0.0, text])
    assert (figures.counts, figures.failed, figures.unshared_reason) == ({clean: 1}, {clean: 1}, clean)


def _as_sent(fields: list[Any]) -> Any:
    """What arrives of what somebody has written who does not use our structs."""
    if fields[0] == "report":
        fields[4][5] = None  # a report has no loss
    return wire.decode(bytes([wire.WIRE_VERSION]) + msgspec.msgpack.encode(fields))


def test_honest_texts_stay_as_they_are() -> None:
    failure = wire.Failure("materialize", 1, "höst", "Fehler: „ä“\n\t日本", "Traceback\n  x = 1\n")
    assert (failure.host, failure.message, failure.traceback) == ("höst", "Fehler: „ä“\n\t日本", "Traceback\n  x = 1\n")
