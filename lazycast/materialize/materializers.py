"""How a materializer gets from the root to the other ranks: by import path where they can import it, else as code.

Guarantees:

* A function that every rank can import travels as two strings, and so does one of the program that all ranks run.
  Everything else (lambdas, closures, partials, bound methods, callable objects, functions of notebooks) is pickled by
  cloudpickle for each cast, so that state it captured is that of the call, and sent only when its digest is new.
* A rank that lacks code, or cannot import a path, asks the root for it. Nobody assumes what another one remembers.
* What the policy does not allow is neither sent, nor imported or unpickled: whoever is told to raises `TrustError`.
* User code (imports, unpickling) runs in the thread that calls `Loader.load`, never on an engine thread.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import itertools
import pickle
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any, Generic, TypeVar, cast

import cloudpickle
import msgspec

from lazycast.codec.diagnose import describe_unpicklable
from lazycast.codec.pickling import CannotEncode
from lazycast.codec.trust import EVERYTHING, Policy
from lazycast.errors import TrustError
from lazycast.materialize import bycode
from lazycast.materialize.each import Each, Some
from lazycast.materialize.staged import Staged, each_of
from lazycast.net.wire import MaterializerRef
from lazycast.options import exact, is_text, shown

Materializer = Callable[[Any], Any]

_REMEMBERED = 256
_REMEMBERED_NBYTES = 64 << 20  # of code, which may have captured arrays
_MAX_NAME = 200
_MAX_PATH = 1000
T = TypeVar("T")


class CodeMissing(Exception):
    """This rank needs the code of a materializer, named `ident`, from the root."""

    def __init__(self, text: str, ident: str) -> None:
        super().__init__(text)
        self.ident = ident


class Shipped(msgspec.Struct):
    """How a materializer travels: what a cast says of it, and the code to send before it (name and bytes)."""

    ref: MaterializerRef | None
    finish: MaterializerRef | None
    codes: list[tuple[str, bytes]]


class _Recent(Generic[T]):
    """The most recently used things by name, as far as they fit. Not thread-safe."""

    def __init__(self, capacity: int = _REMEMBERED, capacity_nbytes: int = _REMEMBERED_NBYTES) -> None:
        self._things: OrderedDict[str, tuple[T, int]] = OrderedDict()
        self._capacity, self._capacity_nbytes = capacity, capacity_nbytes
        self._nbytes = 0

    def get(self, name: str) -> T | None:
        if name not in self._things:
            return None
        self._things.move_to_end(name)
        return self._things[name][0]

    def put(self, name: str, thing: T, nbytes: int = 0) -> None:
        self.drop(name)
        self._things[name] = thing, nbytes
        self._nbytes += nbytes
        while len(self._things) > self._capacity or (self._nbytes > self._capacity_nbytes and len(self._things) > 1):
            self.drop(next(iter(self._things)))

    def drop(self, name: str) -> None:
        _, nbytes = self._things.pop(name, (None, 0))
        self._nbytes -= nbytes


def name_of(fn: object) -> str:
    """Return how messages call a materializer."""
    if isinstance(fn, (Each, Some)):
        return f"Each({name_of(fn.fn if isinstance(fn, Each) else fn.each.fn)})"
    try:
        name = getattr(fn, "__qualname__", None)
    except Exception:  # whatever a callable's attributes do when they are looked at
        name = None
    text = (name if isinstance(name, str) else type(fn).__qualname__)[-_MAX_NAME:]
    return text.encode("utf-8", "replace").decode()  # plain text that can be sent


def _follow(module_name: str, qualname: str) -> Any:
    thing: Any = importlib.import_module(module_name)
    for part in qualname.split("."):
        thing = getattr(thing, part)
    return thing


def import_path(fn: object, *, same_program: bool = False) -> tuple[str, str] | None:
    """Return (module, qualified name) under which `fn` can be imported, or None.

    Args:
        same_program: whether those who import it run this process's program: see `lazycast.codec.script`.
    """
    try:
        path = _import_path(fn, same_program)
        return None if path is None or not ".".join(path).encode() else path
    except Exception:  # whatever its attributes do when they are looked at; or the path is no text that can be sent
        return None


def _import_path(fn: object, same_program: bool) -> tuple[str, str] | None:
    owner = getattr(fn, "__self__", None)
    module: Any  # a user's object may have anything under these names
    qualname: Any
    if isinstance(owner, type):  # a class method: its own __qualname__ names the class that defined it
        module, qualname = owner.__module__, f"{owner.__qualname__}.{getattr(fn, '__name__', '')}"
    else:
        module, qualname = getattr(fn, "__module__", None), getattr(fn, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualname, str) or len(module) + len(qualname) > _MAX_PATH:
        return None
    if not module or not qualname or "<" in qualname:
        return None
    if module in ("__main__", "__mp_main__"):
        if not same_program:
            return None
        module = "__main__"
    if module not in sys.modules:
        return None
    return (str(exact(module)), str(exact(qualname))) if _follow(module, qualname) == fn else None


_by_value_lock = threading.Lock()


def _pickle_by_value(fn: Materializer) -> bytes:
    """Pickle an importable function as code, for ranks that cannot import it."""
    owner = getattr(fn, "__self__", None)
    classes = owner.__mro__ if isinstance(owner, type) else ()  # an inherited class method needs all of them
    names = {fn.__module__, *(cls.__module__ for cls in classes)} - {"builtins"}
    with _by_value_lock:
        fresh = [sys.modules[n] for n in names - cloudpickle.list_registry_pickle_by_value() if n in sys.modules]
        for module in fresh:
            cloudpickle.register_pickle_by_value(module)
        try:
            return bycode.dumps(fn)
        except Exception as exc:  # described as what it was to be: as code
            raise CannotEncode(describe_unpicklable(fn, exc)) from exc
        finally:
            for module in fresh:
                cloudpickle.unregister_pickle_by_value(module)


def _digest(code: bytes) -> str:
    return "sha256:" + hashlib.sha256(code).hexdigest()


#: Before the digest of code that names things of the program: the same without such names.
_WHOLE = "whole:"
_BY_NAME = (
    "put it into a module that every rank can import, or call lazycast.register_materializer(name, fn) on every rank: "
    "then its name alone travels"
)
_registered: dict[str, Materializer] = {}
_REGISTERED = "registered:"


def register_materializer(name: str, fn: Materializer) -> Materializer:
    """Let `fn` travel by `name`, which every rank that materializes must have registered too, before it is cast.

    Nothing but the name is sent; each rank runs what it has registered itself. A rank without it fails the cast with
    `DecodeError`. Registering a name again replaces it.

    Args:
        name: 1 to 200 characters.
        fn: `callable(payload) -> value`.
    Returns: `fn`.
    Raises: TypeError, ValueError for arguments that make no sense.
    Collective: no, but do it on every rank. Blocking: never. Threads: safe.
    """
    name = exact(name)
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not is_text(name):
        raise ValueError(f"a materializer's name is a string of 1 to {_MAX_NAME} characters, got {shown(name)}")
    if not callable(fn):
        raise TypeError(f"a materializer is callable, got {type(fn).__name__}")
    _registered[name] = fn
    return fn


def _registered_name(fn: object) -> str | None:
    return next((name for name, known in list(_registered.items()) if _same(known, fn)), None)


def _same(a: object, b: object) -> bool:
    """Whether two callables are one. A bound method is another object each time it is looked up."""
    if isinstance(a, Staged) and isinstance(b, Staged):
        return _same(a.prepare, b.prepare) and _same(a.finish, b.finish)
    return a is b or (type(a) in (MethodType, BuiltinMethodType) and type(b) is type(a) and a == b)


def _registered_part(ref: MaterializerRef) -> Materializer:
    try:
        fn = _registered[ref.name]
    except KeyError:
        raise LookupError(
            f"no materializer {ref.name!r} is registered on this rank: call register_materializer({ref.name!r}, fn) on "
            "every rank before it is cast"
        ) from None
    if ref.part == "join":
        each = each_of(fn)
        if each is None:
            raise LookupError(f"materializer {ref.name!r} is registered as an Each on one of root and this rank only")
        return cast(Materializer, each.join)
    if isinstance(fn, Staged) != (ref.part is not None):
        raise LookupError(f"materializer {ref.name!r} is registered with two stages on one of root and this rank only")
    return fn if ref.part is None else getattr(fn, ref.part)


def registered(ref: MaterializerRef) -> Materializer | None:
    """Return what is registered here under the name that `ref` is; None if it is none. Raises LookupError."""
    return _registered_part(ref) if ref.ident.startswith(_REGISTERED) else None


def objection(fn: Materializer, policy: Policy) -> str | None:
    """Say why `fn` may not travel, or None."""
    if policy.paths is None or _registered_name(fn) is not None:
        return None
    parts = (fn.prepare, fn.finish) if isinstance(fn, Staged) else (fn,)
    for part in parts:
        text = policy.objection(name_of(part), import_path(part, same_program=policy.same_program))
        if text is not None:
            return text
    return None


def _is_registered(ref: MaterializerRef) -> bool:
    return ref.path is None and ref.ident.startswith(_REGISTERED)


def _is_same(one: object, other: object) -> bool:
    """Whether two callables are one; a method that is bound to the same object is, too."""
    return one is other or (isinstance(one, MethodType) and isinstance(other, MethodType) and one == other)


class Shipper:
    """The root's side: names materializers and answers for their code. Thread-safe."""

    def __init__(self, policy: Policy = EVERYTHING) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._paths: _Recent[Materializer] = _Recent()
        self._codes: _Recent[bytes] = _Recent()
        self._sources: _Recent[Materializer] = _Recent()  # what code was made of, for ranks that lack what it names
        self._bound: _Recent[tuple[list[object], int]] = _Recent()  # by name: what it stands for, and since which turn
        self._turns = itertools.count(1)
        self._functions: dict[object, MaterializerRef] = {}  # that travel by name, as they were named last

    def ship(self, fn: Materializer, *, prepared: bool = False) -> Shipped:
        """Return the references to send with a cast, and the code to send before it if it is new.

        Args:
            prepared: the first stage of a `Staged` has been run: only the second is needed.
        Raises: CannotEncode naming the captured part that does not pickle; TrustError.
        """
        name = _registered_name(fn) if _registered else None
        if not isinstance(fn, Staged):
            ref, code = (MaterializerRef(_REGISTERED + name, name), None) if name is not None else self._ship(fn)
            return Shipped(ref, None, [] if code is None else [(ref.ident, code)])
        if name is not None:
            first, second = (MaterializerRef(_REGISTERED + name, name, part=part) for part in ("prepare", "finish"))
            return Shipped(None if prepared else first, second, [])
        parts: list[Callable[..., Any]] = [fn.finish] if prepared else [fn.prepare, fn.finish]
        stages = [self._ship(part) for part in parts]
        codes = [(ref.ident, code) for ref, code in stages if code is not None]
        return Shipped(None if prepared else stages[0][0], stages[-1][0], codes)

    def ship_join(self, fn: Materializer) -> tuple[MaterializerRef | None, list[tuple[str, bytes]]]:
        """Return what a cast says of how an `Each` joins, None if to a list, and the code to send before it if new.

        Raises: as `ship`.
        """
        each = each_of(fn)
        if each is None or each.join is list:
            return None, []
        name = _registered_name(fn)
        if name is not None:
            return MaterializerRef(_REGISTERED + name, name, part="join"), []
        ref, code = self._ship(each.join)
        return ref, [] if code is None else [(ref.ident, code)]

    def turns(
        self, fn: Materializer | None, ref: MaterializerRef | None, finish: MaterializerRef | None
    ) -> tuple[int, int]:
        """Number what the names of a materializer's stages stand for: another number once they stand for another.

        A name that is registered again, or imported anew, is the same name. What travels as code has none (0), unless
        it is an `Each` or a `functools.partial` of what has one.
        """
        whole = not isinstance(fn, Staged) or any(one is not None and _is_registered(one) for one in (ref, finish))
        first, second = (fn, fn) if whole else (fn.prepare, fn.finish)  # type: ignore[union-attr]
        return self._turn(first, ref), self._turn(second, finish)

    def _turn(self, fn: object, ref: MaterializerRef | None) -> int:
        if ref is None:
            return 0
        named = [fn] if ref.path is not None or _is_registered(ref) else self._named_in(fn)
        if not named:
            return 0
        with self._lock:
            known = self._bound.get(ref.ident)
            if known is None or len(known[0]) != len(named) or not all(map(_is_same, known[0], named)):
                known = named, next(self._turns)
                self._bound.put(ref.ident, known)
            return known[1]

    def _named_in(self, fn: object) -> list[object]:
        """Return what code names of its own: the functions of an `Each`, or of a partial one, that can be imported."""
        if isinstance(fn, Each):
            return [one for part in (fn.fn, fn.split, fn.join) for one in self._named_in(part)]
        if isinstance(fn, functools.partial):
            return self._named_in(fn.func)
        return [fn] if callable(fn) and import_path(fn, same_program=self._policy.same_program) is not None else []

    def _ship(self, fn: Materializer) -> tuple[MaterializerRef, bytes | None]:
        if type(fn) is FunctionType and (ref := self._functions.get(fn)) is not None and self._still(fn, ref):
            return ref, None
        path = import_path(fn, same_program=self._policy.same_program)
        refused = self._policy.objection(name_of(fn), path)
        if refused is not None:
            raise TrustError(refused)
        if path is not None:
            ident = ":".join(path)
            with self._lock:
                self._paths.put(ident, fn)
                ref = MaterializerRef(ident, path[1][-_MAX_NAME:], path)
                if type(fn) is FunctionType:
                    if len(self._functions) >= _REMEMBERED:
                        self._functions.clear()
                    self._functions[fn] = ref
            return ref, None
        try:
            code = bycode.dumps(fn, same_program=self._policy.same_program)
        except Exception as exc:
            raise CannotEncode(f"materializer {describe_unpicklable(fn, exc)}; {_BY_NAME}") from exc
        ident = _digest(code)
        with self._lock:
            known = self._codes.get(ident) is not None
            self._codes.put(ident, code, len(code))
            if self._policy.same_program:
                self._sources.put(ident, fn, len(code))
        return MaterializerRef(ident, name_of(fn)), None if known else code

    def _still(self, fn: FunctionType, ref: MaterializerRef) -> bool:
        """Whether a function's module still has it under its name: every cast asks, so this looks no further."""
        module, name = ref.path or ("", "")
        names = getattr(sys.modules.get(module), "__dict__", None)
        with self._lock:
            return names is not None and names.get(name) is fn and self._paths.get(ref.ident) is fn

    def code_for(self, ident: str) -> bytes:
        """Return the code a rank asked for. Raises CannotEncode if it cannot be had."""
        if self._policy.paths is not None:
            raise CannotEncode(f"the code of a materializer does not travel with {self._policy.rule}")
        if ident.startswith(_WHOLE):
            return self._whole(ident)
        with self._lock:
            code, fn = self._codes.get(ident), self._paths.get(ident)
        if code is not None:
            return code
        if fn is None:
            raise CannotEncode(f"materializer {ident} is not remembered here any more")
        try:
            return _pickle_by_value(fn)
        except Exception as exc:
            raise CannotEncode(
                f"materializer {ident} cannot be imported by some rank and its code cannot be sent either: "
                f"{exc}; install its module on every rank"
            ) from exc

    def _whole(self, ident: str) -> bytes:
        """Return code that names nothing of the program, for a rank that lacks something that is named."""
        with self._lock:
            fn = self._sources.get(ident.removeprefix(_WHOLE))
        if fn is None or _digest(bycode.dumps(fn, same_program=True)) != ident.removeprefix(_WHOLE):
            raise CannotEncode(
                "a materializer names something of the program that some rank lacks, and has changed since it was "
                "sent: define what it names on every rank, outside of conditions"
            )
        return bycode.dumps(fn)


def _unpickled(code: bytes, ref: MaterializerRef) -> Materializer:
    """Rebuild a callable from its code. Raises CodeMissing if it names what this rank's program lacks."""
    try:
        fn: Materializer = pickle.loads(code)
    except AttributeError as exc:
        if not any(name in str(exc) for name in ("'__main__'", "'__mp_main__'")):
            raise
        raise CodeMissing(f"{ref.name}: {exc}", _WHOLE + ref.ident) from exc
    return fn


class Loader:
    """A receiver's side: turns references into callables. Thread-safe."""

    def __init__(self, policy: Policy = EVERYTHING) -> None:
        self._policy = policy
        self._lock = threading.Lock()
        self._codes: _Recent[bytes] = _Recent()
        self._loaded: _Recent[Materializer] = _Recent()
        self.hits = self.loads = 0  # materializers that were loaded already, and that were loaded then

    def learn(self, ident: str, code: bytes) -> None:
        """Remember code that arrived from the root, if any may."""
        if self._policy.paths is not None:
            return
        with self._lock:
            self._codes.put(ident, code, len(code))

    def code(self, ident: str) -> bytes:
        """Return code that has arrived, for another process to load. Raises CodeMissing if the root must be asked."""
        with self._lock:
            code = self._codes.get(ident)
        if code is None:
            raise CodeMissing(f"the code of a materializer is not here: {ident}", ident)
        return code

    def load(self, ref: MaterializerRef) -> Materializer:
        """Return the callable. Runs imports and unpickling, if the policy allows them.

        Raises: CodeMissing if the root must be asked; TrustError; whatever importing and unpickling raise.
        """
        if ref.ident.startswith(_REGISTERED):
            return _registered_part(ref)
        if self._policy.paths is not None and (refused := self._policy.objection(ref.name, ref.path)) is not None:
            raise TrustError(refused)
        with self._lock:
            loaded = self._loaded.get(ref.ident)
            if loaded is not None:
                self.hits += 1
                return loaded
            code, whole = self._codes.get(ref.ident), self._codes.get(_WHOLE + ref.ident)
        if code is not None:
            fn: Materializer = _unpickled(code, ref) if whole is None else pickle.loads(whole)
        elif ref.path is not None:
            try:
                fn = _follow(*ref.path)
            except (ImportError, AttributeError) as exc:
                if self._policy.paths is not None:
                    raise
                raise CodeMissing(f"{ref.ident} cannot be imported here: {exc}", ref.ident) from exc
        else:
            raise CodeMissing(f"the code of materializer {ref.name!r} is not here", ref.ident)
        with self._lock:
            self.loads += 1
            self._loaded.put(ref.ident, fn, len(code or b""))
            self._codes.drop(ref.ident)  # one of the two is enough
        return fn
