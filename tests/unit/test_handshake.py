"""The handshake: what each rank says, and the one conclusion that all draw from it."""

from __future__ import annotations

import os
import socket
from typing import Any

import msgspec
import pytest

from lazycast.errors import ConfigMismatchError
from lazycast.net.wire import WIRE_VERSION
from lazycast.start import handshake
from lazycast.start.handshake import Hello
from lazycast.version import __version__

OPTIONS: dict[str, object] = {"root": 0, "name": "default", "placement": "auto", "agree": True, "values": "private"}
MAX_EXCHANGE_NBYTES = 64 << 10


def hellos(*changes: dict[str, object], errors: dict[int, Exception] | None = None) -> list[Hello]:
    """What ranks say that have the options above, except for these."""
    said = [handshake.hello(r, {**OPTIONS, **c}, (errors or {}).get(r)) for r, c in enumerate(changes)]
    return [handshake.decode(handshake.encode(h), h.rank) for h in said]


def test_a_rank_describes_itself() -> None:
    (one,) = hellos({})
    assert (one.rank, one.host, one.pid) == (0, socket.gethostname(), os.getpid())
    assert (one.version, one.wire, one.error) == (__version__, WIRE_VERSION, None)
    assert one.options["name"] == "'default'"


def test_an_error_is_told_with_its_class() -> None:
    one, other = hellos({}, {}, errors={1: ValueError("root=9 is no rank")})
    assert one.error is None
    assert other.error == "ValueError: root=9 is no rank"


def test_ranks_that_agree_have_no_error() -> None:
    assert handshake.disagreement(hellos({}, {}, {})) is None
    assert handshake.disagreement(hellos({})) is None


@pytest.mark.parametrize("option", OPTIONS)
def test_a_disagreement_on_any_option_is_told_with_a_table_of_who_said_what(option: str) -> None:
    error = handshake.disagreement(hellos({}, {option: "odd"}, {}))
    assert isinstance(error, ConfigMismatchError)
    first, *rows = str(error).splitlines()
    assert first.startswith(f"ranks disagree on {option}")
    assert first.endswith("give the same on every rank:")
    assert ("constructed in the same order" in first) == (option == "name")
    assert [row.split()[0] for row in rows] == ["rank", "0", "1", "2"]
    assert rows[0].split()[1:] == ["host", "pid", "lazycast", option]
    assert rows[2].split()[-1] == "'odd'"
    assert rows[1].split()[-1] == rows[3].split()[-1] == repr(OPTIONS[option])


def test_all_options_that_differ_are_named() -> None:
    error = handshake.disagreement(hellos({"root": 1}, {"placement": "root"}))
    assert str(error).startswith("ranks disagree on placement, root; ")


def test_values_of_different_types_that_look_alike_differ() -> None:
    assert handshake.disagreement(hellos({"root": 1}, {"root": "1"})) is not None


def test_one_ranks_error_fails_all_and_everybody_reads_it() -> None:
    error = handshake.disagreement(hellos({}, {"root": 9}, {}, errors={1: ValueError("root=9 is not a rank")}))
    assert isinstance(error, ConfigMismatchError)
    text = str(error)
    assert text.startswith("construction failed on rank 1, so on every rank:")
    assert "ValueError: root=9 is not a rank" in text


def test_errors_of_several_ranks_are_all_named() -> None:
    error = handshake.disagreement(hellos({}, {}, {}, errors={0: ValueError("a"), 2: TypeError("b")}))
    assert str(error).startswith("construction failed on rank 0, 2, so on every rank:")


def test_all_ranks_come_to_the_same_conclusion() -> None:
    said = hellos({}, {"root": 1}, {"name": "other"})
    assert len({str(handshake.disagreement(list(said))) for _ in said}) == 1


@pytest.mark.parametrize("also_differs", [{}, {"root": 1}])
def test_another_wire_version_is_told_before_anything_else(also_differs: dict[str, object]) -> None:
    one, other = hellos({}, also_differs)
    other = msgspec.structs.replace(other, wire=WIRE_VERSION + 1, version="9.9.9")
    error = handshake.disagreement([one, other])
    assert isinstance(error, ConfigMismatchError)
    assert f"different wire versions ([{WIRE_VERSION}, {WIRE_VERSION + 1}])" in str(error)
    assert "9.9.9" in str(error)
    assert "install one version" in str(error)


def test_another_version_with_the_same_wire_is_fine() -> None:
    one, other = hellos({}, {})
    assert handshake.disagreement([one, msgspec.structs.replace(other, version="0.9")]) is None


def test_a_version_that_says_more_can_be_read() -> None:
    hello = hellos({})[0]
    said: dict[str, Any] = msgspec.to_builtins(hello)
    assert handshake.decode(msgspec.json.encode({**said, "mood": "fine"}), 0) == hello


@pytest.mark.parametrize("blob", [b"", b"{}", b"not json", b"\xff\xfe", b"[1,2]", b'{"rank": "x"}', b"[" * 100_000])
def test_what_is_no_hello_names_the_rank_it_came_from(blob: bytes) -> None:
    with pytest.raises(ConfigMismatchError, match="rank 5 runs another version of lazycast or something else"):
        handshake.decode(blob, 5)


def test_an_option_that_a_rank_did_not_say_is_a_disagreement() -> None:
    one, other = hellos({}, {})
    fewer = {k: v for k, v in other.options.items() if k != "values"}
    error = handshake.disagreement([one, msgspec.structs.replace(other, options=fewer)])
    assert str(error).splitlines()[-1].split()[-1] == "-"


class NoRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"name": "\ud800"}, None),
        ({"name": "😀" * 10_000}, ValueError("😀" * 10_000)),
        ({}, ValueError("\ud800")),
        ({"root": NoRepr()}, None),
        ({}, NoText()),
    ],
    ids=["surrogate", "huge", "surrogate in an error", "no repr", "no text"],
)
def test_whatever_a_rank_has_to_say_can_be_sent(options: dict[str, object], error: Exception | None) -> None:
    blob = handshake.encode(handshake.hello(0, {**OPTIONS, **options}, error))
    assert len(blob) <= MAX_EXCHANGE_NBYTES
    back = handshake.decode(blob, 0)
    assert set(back.options) == set(OPTIONS)
    assert (back.error is None) == (error is None)
