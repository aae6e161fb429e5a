"""Arrays that NumPy pickles in band or loses the read-only flag of; the others are in test_codec."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lazycast.codec import pickling
from tests.unit.test_codec import encode, round_trip

LAYOUTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as it is": lambda a: a,
    "fortran": lambda a: a.copy("F"),
    "every other": lambda a: a[..., ::2] if a.ndim else a,
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
}


@given(
    hnp.arrays(
        hnp.datetime64_dtypes(endianness="=") | hnp.timedelta64_dtypes(endianness="="),
        hnp.array_shapes(min_dims=0, min_side=0),
    ),
    st.sampled_from(sorted(LAYOUTS)),
    st.booleans(),
)
def test_dates_travel_out_of_band(dates: np.ndarray, layout: str, writeable: bool) -> None:
    dates = LAYOUTS[layout](dates)
    dates.flags.writeable = writeable
    body, lay = encode([dates])
    back = pickling.decode(body, lay)[0]
    assert lay.frames == 1
    assert (back.dtype, back.shape, back.flags.writeable) == (dates.dtype, dates.shape, writeable)
    assert back.tobytes() == dates.tobytes()
    if dates.size:
        assert np.shares_memory(back, np.frombuffer(body, np.uint8))


def test_a_strided_array_travels_out_of_band_and_only_what_it_shows() -> None:
    whole = np.arange(100_000.0)
    encoded = pickling.encode(whole[::100])
    assert encoded.layout.frames == 1
    assert encoded.nbytes < 10_000
    assert np.array_equal(round_trip(whole[::100]), whole[::100])


OBJECTS = {
    "objects": np.array([1, "a", None], dtype=object),
    "strided objects": np.array([1, "a", None, 3], dtype=object)[::2],
    "a structure with objects": np.array([(1, "a"), (2, None)], [("n", "i4"), ("o", "O")]),
    "a structure with dates": np.zeros(3, [("n", "i4"), ("d", "M8[s]")]),
    "0-d object": np.array({"a": 1}, dtype=object),
    "no objects": np.array([], dtype=object),
}


@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize("name", OBJECTS)
def test_arrays_that_must_go_in_band_come_back_as_they_were(name: str, writeable: bool) -> None:
    array = OBJECTS[name].copy()
    array.flags.writeable = writeable
    a, b = round_trip([array, array])
    assert a is b
    assert (a.dtype, a.shape, a.flags.writeable) == (array.dtype, array.shape, writeable)
    assert a.tolist() == array.tolist()


def test_an_array_of_arrays_sends_those_out_of_band() -> None:
    outer = np.empty(2, object)
    outer[:] = [np.arange(1000), np.arange(500)[::2]]
    encoded = pickling.encode(outer)
    assert encoded.layout.frames == 2
    assert [inner.tolist() for inner in round_trip(outer)] == [inner.tolist() for inner in outer]
