"""NumPy's dtypes as data: a short text, or a list for structures and sub-arrays. Never one with objects in it."""

from __future__ import annotations

import functools
import re
from typing import Any

import numpy as np

Dtype = np.dtype[Any]
Description = str | list[Any]

_MAX_DEPTH = 16
_MAX_LENGTH = 4096  # of a list of sizes or offsets: to multiply many long numbers takes long
_UNIT = r"(\[([1-9]\d{0,8})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?"  # without is without; division by 0 of one is SIGFPE
_SIMPLE = re.compile(
    r"\|(b1|[iu]1|[SV][1-9]\d{0,9})|[<>]([iu][248]|f(2|4|8|12|16)|c(8|16|24|32)|U[1-9]\d{0,9}|[mM]8" + _UNIT + ")"
)
_STRUCTURE, _SUBARRAY = "{}", "[]"


def describe(dtype: Dtype) -> Description:
    """Return what `read` makes the dtype of. Raises ValueError for one that is not plain data."""
    if dtype.names is None and dtype.subdtype is None:
        return _describe_simple(dtype)
    if dtype.hasobject:
        raise ValueError(f"dtype {dtype} has objects in it")
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        description: Description = [_SUBARRAY, describe(base), list(shape)]
    else:
        known: Any = dtype.fields
        fields = [(name, *known[name]) for name in dtype.names or ()]
        rows = [[name, title[0] if title else None, offset, describe(of)] for name, of, offset, *title in fields]
        description = [_STRUCTURE, dtype.itemsize, dtype.isalignedstruct, rows]
    _check(dtype, description)
    return description


@functools.lru_cache(256)
def _describe_simple(dtype: Dtype) -> str:
    _check(dtype, dtype.str)
    text: str = dtype.str
    return text


def _check(dtype: Dtype, description: Description) -> None:
    """Make sure that a dtype would come back: those of other libraries, or with a class of their own, do not."""
    if dtype.hasobject:
        raise ValueError(f"dtype {dtype} has objects in it")
    try:
        back = read(description)
        good = back == dtype and (dtype.names is None or back.type is dtype.type)
    except (ValueError, TypeError):
        good = False
    if not good:
        raise ValueError(f"dtype {dtype} cannot be described as data")


def read(description: object, depth: int = 0) -> Dtype:
    """Make a dtype of its description. Raises ValueError, or TypeError from NumPy."""
    if isinstance(description, str):
        if _SIMPLE.fullmatch(description) is None:
            raise ValueError(f"{description!r:.100} describes no dtype of plain data")
        dtype = np.dtype(description)
    elif depth > _MAX_DEPTH or not isinstance(description, list):
        raise ValueError("no description of a dtype")
    elif description[:1] == [_SUBARRAY]:
        _, base, shape = description
        dtype = np.dtype((read(base, depth + 1), sizes(shape)))
    elif description[:1] == [_STRUCTURE]:
        _, itemsize, aligned, rows = description
        dtype = _read_structure(itemsize, aligned, rows, depth=depth)
    else:
        raise ValueError("no description of a dtype")
    if dtype.itemsize == 0 or dtype.hasobject:
        raise ValueError("a dtype without bytes, or with objects")
    return dtype


def _read_structure(itemsize: Any, aligned: Any, rows: list[Any], *, depth: int) -> Dtype:
    names, titles, offsets, formats = zip(*rows, strict=True)
    texts = [*names, *(title for title in titles if title is not None)]
    if not all(type(text) is str for text in texts):
        raise ValueError("the name of a field is no text")
    spec: Any = {
        "names": list(names),
        "formats": [read(description, depth + 1) for description in formats],
        "offsets": list(sizes(list(offsets))),
        "itemsize": sizes([itemsize])[0],
    }
    if any(title is not None for title in titles):
        spec["titles"] = list(titles)
    made: Dtype = np.dtype(spec, align=bool(aligned))
    return made


def sizes(numbers: object) -> tuple[int, ...]:
    """Check a list of sizes, as they arrive. Raises ValueError."""
    if (
        not isinstance(numbers, list)
        or len(numbers) > _MAX_LENGTH
        or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers)
    ):
        raise ValueError(f"{numbers!r:.100} are no sizes")
    return tuple(numbers)
