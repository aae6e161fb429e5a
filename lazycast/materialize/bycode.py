"""Pickling functions and classes as code.

cloudpickle 3.1.3 began to put `<dynamic-code>` where a function's file was named. A traceback from another rank would
then not say which file a line number is of, and on the same machine not show the line. Here the file keeps its name.
"""

import io
import types
from typing import Any

import cloudpickle

from lazycast.codec import script

_UNNAMED = "<dynamic-code>"


def dumps(obj: Any, *, same_program: bool = False) -> bytes:
    """Pickle `obj` as `cloudpickle.dumps` does, with protocol 5 and the file names of its code.

    Args:
        same_program: what belongs to this process's program travels by name: see `lazycast.codec.script`.
    """
    stream = io.BytesIO()
    (_SharedPickler if same_program else _Pickler)(stream, protocol=5).dump(obj)
    return stream.getvalue()


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    make, args = _cloudpickle_reduce(code)
    # A string of its own for each, as cloudpickle has it: else what pickle finds to be one string, and so the bytes,
    # would depend on how the interpreter came by the names.
    return make, tuple("".join(list(code.co_filename)) if _is_unnamed(arg) else arg for arg in args)


def _is_unnamed(arg: Any) -> bool:
    return type(arg) is str and arg == _UNNAMED


_cloudpickle_reduce = cloudpickle.Pickler.dispatch_table[types.CodeType]


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # it has no types
    dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({types.CodeType: _reduce_code})


class _SharedPickler(script.Shared, _Pickler):
    """The same where all ranks run one program."""
