"""Names and types that may not stand in `trust=names`: with one of them, whoever sends a stream has everything.

Guarantees: no error recommends to list what `problem` refuses. `problem` looks at a name alone and imports nothing.
`objection_to` looks at what is found under a name, so that another name for the same thing is no way around.

No list of this kind is complete, and none need be: nothing is allowed but what the user writes down. It keeps us from
recommending a name, and a hurried user from writing one down, that undoes all others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any, Final

#: A class of a module; the last part may have parameters, as pydantic names its generic models: `m.Box[int]`.
_NAME: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+(\[[\w\[\], |]+\])?")

_CODE: Final = "would allow any code: code cannot be allowed by name. Put the function into a module of every rank"
_EVERYTHING: Final = "gives the sender everything that this process may do"
_MEMORY: Final = (
    "takes forged bytes for pointers and sizes, and so gives the sender this process's memory: send plain arrays and "
    "tensors, which need no name, and what makes them more beside them"
)
_FILES: Final = (
    "opens the file whose name it is given: send the bytes of the image's file, or image.copy(), which needs no name"
)
_INNER: Final = "is an inner part of its library, which trusts what it is given"


def _names(module: str, names: str) -> str:
    return rf"{module}\.({'|'.join(names.split())})(\.|$)"


_MODULES: Final = (
    "os posix nt posixpath subprocess _posixsubprocess pty shutil sys importlib _frozen_importlib imp _imp zipimport "
    "runpy pkgutil site pickle _pickle pickletools dill jsonpickle shelve marshal copyreg code codeop ctypes _ctypes "
    "cffi socket _socket socketserver webbrowser multiprocessing threading _thread signal gc inspect operator "
    "_operator functools _functools timeit pdb bdb trace profile cProfile doctest pydoc unittest tempfile io _io mmap "
    "fcntl atexit sqlite3 _sqlite3 tracemalloc"
)
#: Why a name is refused, by what it begins with.
_REFUSED: Final[tuple[tuple[re.Pattern[str], str], ...]] = tuple(
    (re.compile(pattern), why)
    for pattern, why in (
        (r"cloudpickle\.", _CODE),
        (_names("types", "CodeType FunctionType LambdaType"), _CODE),
        (_names("types", "MethodType ModuleType BuiltinFunctionType BuiltinMethodType CellType"), _EVERYTHING),
        (_names("types", "FrameType TracebackType new_class prepare_class resolve_bases coroutine"), _EVERYTHING),
        (
            _names(
                "(builtins|__builtin__|__builtins__)",
                "getattr setattr delattr hasattr eval exec execfile compile open input raw_input __import__ "
                "__build_class__ globals locals vars dir type super property classmethod staticmethod map filter apply "
                "reload breakpoint help exit quit memoryview next",
            ),
            _EVERYTHING,
        ),
        (rf"({'|'.join(_MODULES.split())})\.", _EVERYTHING),
        (r".*(^|\.)__(?!main__\.|mp_main__\.)\w+__(\.|$)", _EVERYTHING),  # attributes that lead everywhere
        (
            _names(
                "numpy",
                "_core core ndarray dtype generic object_ void memmap nditer load loadtxt genfromtxt fromfile save "
                "savez savez_compressed savetxt frompyfunc vectorize apply_along_axis apply_over_axes piecewise "
                "fromfunction fromregex ctypeslib lib testing f2py ma char from_dlpack frombuffer",
            ),
            _MEMORY,
        ),
        (r"numpy\.rec\.(?!recarray$)", _MEMORY),
        (r"torch\.(?!_utils\._rebuild_parameter$)(\w+\.)*_", _INNER),
        (
            _names(
                "torch",
                "load save storage serialization hub jit package ops classes multiprocessing distributed fx export "
                "compile library utils Tensor FloatTensor DoubleTensor HalfTensor BFloat16Tensor ByteTensor CharTensor "
                "ShortTensor IntTensor LongTensor BoolTensor UntypedStorage TypedStorage from_file from_numpy "
                "frombuffer as_strided from_dlpack asarray as_tensor",
            ),
            _MEMORY,
        ),
        (r"PIL\.\w*(Plugin|ImageFile|ImageGrab|ImageShow|ImageFont|ImageMath|_imaging)\b", _FILES),
        (_names(r"PIL\.Image", "Image open fromarray frombuffer new core register_\\w+"), _FILES),
        (r"(pandas|joblib|yaml)\.(\w+\.)*(read_pickle|\w*load\w*|eval)$", _EVERYTHING),
    )
)


def problem(name: object) -> str | None:
    """Say why a name cannot stand in `trust=names`, or None."""
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        return "is not the exact name of a type or function, 'module.qualname'"
    return next((why for pattern, why in _REFUSED if pattern.match(name)), None)


def not_allowed(name: str) -> str:
    """Say that a name is not allowed, and what to do about it; never to list what `problem` refuses."""
    why = problem(name)
    if why is not None:
        return f"is not allowed and cannot be: it {why}"
    return "is not allowed: add it to trust= on every rank, if it is good"


def is_array_class(found: Any) -> bool:
    """Whether this is a subclass of `numpy.ndarray`: to look at an array as one is harmless, to call it is not."""
    array = getattr(sys.modules.get("numpy"), "ndarray", None)
    return array is not None and isinstance(found, type) and issubclass(found, array) and found is not array


def objection_to(found: Any) -> str | None:
    """Say why what was found under a listed name is not the sender's to have, or None."""
    if isinstance(found, type):
        for base in found.__mro__:
            why = _bases().get(base)
            if why is not None:
                return f"is a kind of {base.__module__}.{base.__qualname__}, which {why}"
    module, qualname = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    owner = getattr(found, "__self__", None)
    if module is None and isinstance(owner, type):  # a class method in C
        module = owner.__module__
    why = problem(f"{module}.{qualname}") if isinstance(module, str) and isinstance(qualname, str) else None
    if why is None or why.startswith("is not the exact name"):
        return None
    return f"is {module}.{qualname}, which {why}"


def _bases() -> Mapping[type, str]:
    """The classes whose kinds take state or arguments on trust, as far as their libraries are imported."""
    known: dict[type, str] = {type: _EVERYTHING}
    for module, names, why in (
        ("numpy", "ndarray dtype", _MEMORY),
        ("torch", "Tensor UntypedStorage TypedStorage", _MEMORY),
        ("PIL.Image", "Image", _FILES),
        ("_ctypes", "_SimpleCData Structure Union Array _Pointer CFuncPtr", _MEMORY),
        ("pickle", "Unpickler _Unpickler", _EVERYTHING),
        ("subprocess", "Popen", _EVERYTHING),
        ("functools", "partial", _EVERYTHING),
    ):
        loaded = sys.modules.get(module)
        known.update({kind: why for name in names.split() if isinstance(kind := getattr(loaded, name, None), type)})
    return known
