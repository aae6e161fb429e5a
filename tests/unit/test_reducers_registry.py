"""Which reducers are used when: only those of imported libraries, the user's own first, exact types only."""

from __future__ import annotations

import copyreg
import pickle
import subprocess
import sys
from enum import EnumMeta
from typing import Any

import numpy as np
import pytest

import lazycast
from lazycast.codec import pickling, reducers
from lazycast.codec.reducers import Reduction, register_reducer
from tests.unit.test_codec import encode, round_trip


class Frame:
    """A payload type whose bytes pickle by themselves only in band."""

    def __init__(self, pixels: Any, name: str) -> None:
        self.pixels, self.name = pixels, name


class SmallFrame(Frame):
    pass


class Meta(type):
    pass


class WithMeta(metaclass=Meta):
    pass


def reduce_frame(frame: Frame) -> tuple[Any, ...]:
    return Frame, (pickle.PickleBuffer(frame.pixels), frame.name)


@pytest.fixture(autouse=True)
def _forget_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reducers, "_registered", {})


def test_a_registered_reducer_sends_its_buffer_out_of_band() -> None:
    lazycast.register_reducer(Frame, reduce_frame)
    pixels = bytearray(range(256)) * 4
    body, layout = encode([Frame(pixels, "a")])
    assert layout.frames == 1
    (back,) = pickling.decode(body, layout)
    assert (type(back), bytes(back.pixels), back.name) == (Frame, bytes(pixels), "a")
    assert np.shares_memory(np.frombuffer(back.pixels, np.uint8), np.frombuffer(body, np.uint8))
    assert not back.pixels.readonly


def test_a_buffer_of_a_registered_reducer_stays_read_only() -> None:
    register_reducer(Frame, reduce_frame)
    assert round_trip(Frame(b"1234", "a")).pixels.readonly


def test_it_is_used_for_what_only_cloudpickle_can_pickle() -> None:
    register_reducer(Frame, reduce_frame)
    back = round_trip([Frame(b"1234", "a"), lambda: 3])
    assert isinstance(back[0].pixels, memoryview)
    assert back[1]() == 3


def test_subclasses_are_not_included() -> None:
    register_reducer(Frame, reduce_frame)
    back = round_trip(SmallFrame(b"1234", "a"))
    assert (type(back), back.pixels) == (SmallFrame, b"1234")


def test_the_last_registration_counts_even_against_built_in_ones() -> None:
    register_reducer(np.ndarray, lambda array: (list, (array.tolist(),)))
    register_reducer(np.ndarray, lambda array: (tuple, (array.tolist(),)))
    assert round_trip(np.arange(3)) == (0, 1, 2)


def test_registrations_at_copyreg_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(copyreg.dispatch_table, Frame, lambda frame: (str, (frame.name,)))
    assert round_trip(Frame(b"", "by copyreg")) == "by copyreg"


@pytest.mark.parametrize("obj", [Meta, WithMeta, EnumMeta, Frame, len, encode], ids=lambda it: it.__name__)
def test_classes_and_functions_travel_by_name(obj: object) -> None:
    assert round_trip([obj, obj]) == [obj, obj]


@pytest.mark.parametrize(
    ("type_", "reduce", "text"),
    [
        (3, reduce_frame, "needs a type, got 3"),
        ("Frame", reduce_frame, "needs a type, got 'Frame'"),
        (bytes, reduce_frame, "pickle handles bytes by itself"),
        (dict, reduce_frame, "pickle handles dict by itself"),
        (Frame, None, "the reducer of Frame must be callable, got None"),
    ],
)
def test_a_useless_registration_is_refused(type_: Any, reduce: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        register_reducer(type_, reduce)


@pytest.mark.parametrize("type_", sorted(reducers._NEVER_ASKED, key=lambda t: t.__name__), ids=lambda t: t.__name__)
def test_pickle_really_asks_nobody_about_the_refused_types(type_: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def reduce(obj: object) -> tuple[Any, ...]:
        raise AssertionError("asked")

    obj: object = {type(None): None, type: Frame, type(encode): encode}.get(type_)
    obj = type_() if obj is None and type_ is not type(None) else obj
    assert type(obj) is type_
    monkeypatch.setitem(reducers._registered, type_, reduce)
    assert round_trip([obj]) == [obj]


def test_one_encoding_knows_nothing_of_another() -> None:
    first, second = Reduction(), Reduction()
    first[Frame] = reduce_frame
    assert second[Frame] is not reduce_frame


IMPORTS = """
import sys
from lazycast.codec import pickling
import lazycast
payload = {"a": [1, 2.5, b"x" * 100_000], "b": __import__("numpy").arange(9)[::2], "c": slice(3)}

def loaded():
    ours = "lazycast.codec.reducers."
    return sorted(n for n in sys.modules if n in ("torch", "PIL", "PIL.Image") or n.startswith(ours))

before = loaded()
encoded = pickling.encode(payload)
print(before, loaded())
import PIL.Image
image = PIL.Image.new("RGB", (50, 50))
assert pickling.encode([image]).layout.frames == 1
print([n for n in loaded() if "torch" in n])
import torch
assert pickling.encode([torch.zeros(50), image]).layout.frames == 2
print([n for n in loaded() if "torch" in n])
"""


def test_reducers_come_with_their_libraries_even_when_those_come_late() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[] ['lazycast.codec.reducers.builtin_bytes', 'lazycast.codec.reducers.numpy_arrays']",
        "[]",
        "['lazycast.codec.reducers.torch_tensors', 'torch']",
    ]


def test_a_library_whose_import_is_blocked_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setattr(reducers, "_installers", {})
    assert round_trip(slice(3)) == slice(3)
