"""How materializers are named, shipped and loaded."""

from __future__ import annotations

import functools
import importlib
import operator
import pickle
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
from msgspec.structs import astuple

from lazycast.codec.pickling import CannotEncode
from lazycast.materialize import bycode, materializers
from lazycast.materialize.materializers import CodeMissing, Loader, Shipper, import_path, name_of, register_materializer
from lazycast.materialize.staged import Staged
from lazycast.net.wire import MaterializerRef


def function(payload: Any) -> Any:
    return payload


@functools.lru_cache
def cached(payload: Any) -> Any:
    return payload


class Base:
    scale = 1

    @classmethod
    def from_dict(cls, payload: dict[str, Any]) -> Any:
        return cls.__name__, payload

    @staticmethod
    def static(payload: Any) -> Any:
        return payload

    class Inner:
        @classmethod
        def make(cls, payload: Any) -> Any:
            return cls.__name__, payload

    def method(self, payload: Any) -> Any:
        return self.scale, payload

    def __call__(self, payload: Any) -> Any:
        return self.scale, payload


class Derived(Base):
    pass


def _closure(captured: object) -> Callable[[Any], Any]:
    return lambda payload: (captured, payload)


HERE = __name__
IMPORTABLE: dict[str, tuple[Any, tuple[str, str]]] = {
    "function": (function, (HERE, "function")),
    "decorated function": (cached, (HERE, "cached")),
    "class": (Base, (HERE, "Base")),
    "nested class": (Base.Inner, (HERE, "Base.Inner")),
    "class method": (Base.from_dict, (HERE, "Base.from_dict")),
    "inherited class method": (Derived.from_dict, (HERE, "Derived.from_dict")),
    "class method of a nested class": (Base.Inner.make, (HERE, "Base.Inner.make")),
    "static method": (Base.static, (HERE, "Base.static")),
    "builtin": (len, ("builtins", "len")),
    "builtin class": (dict, ("builtins", "dict")),
    "builtin class method": (dict.fromkeys, ("builtins", "dict.fromkeys")),
    "numpy function": (np.sum, ("numpy", "sum")),
    "stdlib function": (textwrap.dedent, ("textwrap", "dedent")),
}
CHANGED = Base()
CHANGED.scale = 7
BY_VALUE: dict[str, Any] = {
    "lambda": lambda payload: payload,
    "closure": _closure(3),
    "partial": functools.partial(function),
    "bound method": CHANGED.method,
    "callable object": CHANGED,
    "method of a builtin": "x".join,
    "partial of a class method": functools.partial(Derived.from_dict),
}


def _shipped(shipper: Shipper, fn: Any) -> tuple[MaterializerRef, bytes | None]:
    """What travels of a materializer in one stage."""
    ref, finish, codes = astuple(shipper.ship(fn))
    assert ref is not None
    assert finish is None
    assert [ident for ident, _ in codes] in ([], [ref.ident])
    return ref, codes[0][1] if codes else None


def _ship(fn: Any) -> tuple[Loader, MaterializerRef]:
    """Ship a callable to a new receiver."""
    ref, code = _shipped(Shipper(), fn)
    loader = Loader()
    if code is not None:
        loader.learn(ref.ident, code)
    return loader, ref


@pytest.mark.parametrize("name", IMPORTABLE)
def test_what_can_be_imported_travels_as_a_path(name: str) -> None:
    fn, path = IMPORTABLE[name]
    assert import_path(fn) == path
    ref, code = _shipped(Shipper(), fn)
    assert (ref.path, ref.name, code) == (path, path[1], None)
    assert Loader().load(ref) == fn


def test_an_inherited_class_method_stays_bound_to_the_subclass() -> None:
    loader, ref = _ship(Derived.from_dict)
    assert loader.load(ref)({"a": 1}) == ("Derived", {"a": 1})
    assert ref.ident != _shipped(Shipper(), Base.from_dict)[0].ident


@pytest.mark.parametrize("name", BY_VALUE)
def test_everything_else_travels_as_code_and_does_the_same(name: str) -> None:
    fn = BY_VALUE[name]
    assert import_path(fn) is None
    loader, ref = _ship(fn)
    assert ref.path is None
    assert ref.ident.startswith("sha256:")
    payload = ["a", "b"]
    assert loader.load(ref)(payload) == fn(payload)


def test_numpy_ufuncs_travel_somehow() -> None:
    loader, ref = _ship(np.negative)
    assert loader.load(ref)(np.arange(3)).tolist() == [0, -1, -2]


def _impostor(payload: Any) -> Any:
    return payload


_impostor.__qualname__ = "function"  # as a decorator without functools.wraps may leave it


def test_a_name_that_leads_to_something_else_is_no_path() -> None:
    assert import_path(_impostor) is None


class Odd:
    """A callable with attributes that are not what their names promise."""

    __qualname__: Any
    __module__: Any

    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)

    def __call__(self, payload: Any) -> Any:
        return payload


@pytest.mark.parametrize(
    "attributes",
    [
        {"__qualname__": 3},
        {"__qualname__": "no.such.thing"},
        {"__qualname__": None, "__module__": None},
        {"__module__": "no_such_module", "__qualname__": "f"},
        {"__module__": ["list"], "__qualname__": "f"},
        {"__self__": Base},
    ],
    ids=str,
)
def test_odd_attributes_of_a_callable_do_no_harm(attributes: dict[str, object]) -> None:
    assert import_path(Odd(**attributes)) is None
    assert isinstance(name_of(Odd(**attributes)), str)


def test_messages_call_a_materializer_by_its_qualified_name() -> None:
    assert name_of(Base.from_dict) == "Base.from_dict"
    assert name_of(functools.partial(function)) == "partial"
    assert name_of(Base()) == "Base"
    assert "<lambda>" in name_of(BY_VALUE["lambda"])


def test_functions_of_main_travel_as_code(run_python: Callable[..., str], tmp_path: Path) -> None:
    code_file = tmp_path / "code"
    sender = """
    import sys
    from lazycast.materialize.materializers import Shipper, import_path
    OFFSET = 5
    def f(payload): return payload + OFFSET
    class Made:
        @classmethod
        def from_dict(cls, payload): return cls.__name__, f(payload)
    assert import_path(f) is None and import_path(Made.from_dict) is None and import_path(Made) is None
    shipped = Shipper().ship(Made.from_dict)
    assert shipped.ref.path is None
    open(sys.argv[1], "wb").write(shipped.codes[0][1])
    """
    run_python(textwrap.dedent(sender), str(code_file))
    loader = Loader()
    loader.learn("i", code_file.read_bytes())
    assert loader.load(MaterializerRef("i", "f"))(1) == ("Made", 6)


# Sent once, then named


def test_code_is_sent_once_and_then_named_by_digest() -> None:
    shipper = Shipper()
    first, code = _shipped(shipper, _closure(3))
    assert code is not None
    again, none = _shipped(shipper, _closure(3))
    assert (again, none) == (first, None)
    assert shipper.code_for(first.ident) == code


@pytest.mark.parametrize("how", ["object", "closure"])
def test_a_change_of_captured_state_is_shipped_anew(how: str) -> None:
    shipper, loader = Shipper(), Loader()
    state = Base()
    fn: Any = state if how == "object" else lambda payload: (state.scale, payload)
    results = []
    for scale in (1, 2, 1):
        state.scale = scale
        ref, code = _shipped(shipper, fn)
        assert (code is None) == (len(results) == 2), "the third is the first again"
        if code is not None:
            loader.learn(ref.ident, code)
        results.append((ref.ident, loader.load(ref)("p")))
    assert [value for _, value in results] == [(1, "p"), (2, "p"), (1, "p")]
    assert results[0][0] == results[2][0] != results[1][0]


def test_the_least_recently_used_code_is_forgotten_and_then_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shipper = Shipper()
    capacity = materializers._REMEMBERED
    oldest, used = _shipped(shipper, _closure("oldest"))[0], _shipped(shipper, _closure("used"))[0]
    for number in range(capacity - 2):
        _shipped(shipper, _closure(number))
    assert _shipped(shipper, _closure("used"))[1] is None
    _shipped(shipper, _closure("one too many"))
    assert shipper.code_for(used.ident)
    with pytest.raises(CannotEncode, match=f"materializer {oldest.ident} is not remembered here any more"):
        shipper.code_for(oldest.ident)
    ref, code = _shipped(shipper, _closure("oldest"))
    assert ref == oldest
    assert code is not None


def test_a_receiver_that_has_forgotten_code_asks_again() -> None:
    loader = Loader()
    refs = []
    for number in range(materializers._REMEMBERED + 1):
        ref, code = _shipped(Shipper(), _closure(number))
        assert code is not None
        loader.learn(ref.ident, code)
        assert loader.load(ref)(0) == (number, 0)
        refs.append(ref)
    with pytest.raises(CodeMissing):
        loader.load(refs[0])
    assert loader.load(refs[1])(0) == (1, 0)


def test_a_receiver_keeps_what_it_uses() -> None:
    loader, used = _ship(_closure("used"))
    for number in range(materializers._REMEMBERED + 1):
        ref, code = _shipped(Shipper(), _closure(number))
        assert code is not None
        loader.learn(ref.ident, code)
        loader.load(ref)
        assert loader.load(used)(0) == ("used", 0)


def test_a_loaded_callable_is_kept() -> None:
    loader, ref = _ship(_closure([]))
    assert loader.load(ref) is loader.load(ref)


@pytest.mark.parametrize(
    "ref",
    [
        MaterializerRef("sha256:0", "f"),
        MaterializerRef("no_such_module:f", "f", ("no_such_module", "f")),
        MaterializerRef("textwrap:gone", "gone", ("textwrap", "gone")),
    ],
    ids=["code", "module", "attribute"],
)
def test_missing_code_is_to_be_asked_for(ref: MaterializerRef) -> None:
    loader = Loader()
    with pytest.raises(CodeMissing, match=r"is not here|cannot be imported here"):
        loader.load(ref)
    loader.learn(ref.ident, cloudpickle.dumps(_closure("by value")))
    assert loader.load(ref)(1) == ("by value", 1)


def test_what_unpickling_raises_comes_through_and_is_not_remembered() -> None:
    loader = Loader()
    loader.learn("i", b"not a pickle")
    with pytest.raises(Exception, match=r"pickle|opcode|invalid"):
        loader.load(MaterializerRef("i", "f"))
    loader.learn("i", cloudpickle.dumps(function))
    assert loader.load(MaterializerRef("i", "f")) is function


@pytest.mark.parametrize(
    ("fn", "part"),
    [
        (_closure(threading.Lock()), "captured variable 'captured' (a lock)"),
        (functools.partial(function, threading.Lock()), "partial.args[0] (a lock)"),
        (functools.partial(function, x={"deep": threading.Lock()}), "partial.keywords['x']['deep'] (a lock)"),
    ],
    ids=["closure", "partial", "deep"],
)
def test_a_capture_that_does_not_pickle_is_named(fn: Any, part: str) -> None:
    with pytest.raises(CannotEncode) as caught:
        _shipped(Shipper(), fn)
    assert str(caught.value).startswith("materializer ")
    assert part in str(caught.value)


# Functions that a rank cannot import


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Write modules that only this process can import."""
    folder = tmp_path / "only_here"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    names: list[str] = []

    def make(name: str, source: str) -> Any:
        (folder / f"{name}.py").write_text(textwrap.dedent(source))
        names.append(name)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield make
    for name in names:
        sys.modules.pop(name, None)


RECEIVER = """
import sys
from lazycast.materialize.materializers import CodeMissing, Loader
from lazycast.materialize.staged import Staged
from lazycast.net.wire import MaterializerRef
ref = MaterializerRef(sys.argv[1], "f", tuple(sys.argv[1].split(":")))
loader = Loader()
try:
    loader.load(ref)
except CodeMissing as exc:
    assert "cannot be imported here" in str(exc), exc
else:
    raise AssertionError("it was there")
loader.learn(ref.ident, open(sys.argv[2], "rb").read())
print(loader.load(ref)({"a": 1}))
"""


def _loaded_elsewhere(fn: Any, run_python: Callable[..., str], tmp_path: Path, *path: Path) -> str:
    shipper = Shipper()
    ref, code = _shipped(shipper, fn)
    assert ref.path is not None
    assert code is None
    code_file = tmp_path / "code"
    code_file.write_bytes(shipper.code_for(ref.ident))
    return run_python(RECEIVER, ref.ident, str(code_file), path=path).strip()


SOURCE = """
SCALE = 10

def helper(payload):
    return {key: value * SCALE for key, value in payload.items()}

def function(payload):
    return helper(payload)

class Made:
    def __init__(self, payload):
        self.payload = payload

    def __repr__(self):
        return f"{type(self).__name__} of {helper(self.payload)}"

    @classmethod
    def from_dict(cls, payload):
        return cls(payload)

class Derived(Made):
    pass
"""


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("function", "{'a': 10}"),
        ("Made", "Made of {'a': 10}"),
        ("Made.from_dict", "Made of {'a': 10}"),
        ("Derived.from_dict", "Derived of {'a': 10}"),
    ],
)
def test_a_rank_without_the_module_gets_the_code(
    name: str, made: str, modules: Callable[..., Any], run_python: Callable[..., str], tmp_path: Path
) -> None:
    fn: Any = modules("only_here_module", SOURCE)
    for part in name.split("."):
        fn = getattr(fn, part)
    assert _loaded_elsewhere(fn, run_python, tmp_path) == made


def test_a_class_method_inherited_from_another_module_is_sent_with_its_own_class(
    modules: Callable[..., Any], run_python: Callable[..., str], tmp_path: Path
) -> None:
    modules("only_here_base", SOURCE)
    derived = modules("only_here_derived", "from only_here_base import Made\nclass Special(Made): pass\n")
    assert _loaded_elsewhere(derived.Special.from_dict, run_python, tmp_path) == "Special of {'a': 10}"


def test_a_class_method_is_sent_to_a_rank_that_has_the_base_module_only(
    modules: Callable[..., Any], run_python: Callable[..., str], tmp_path: Path
) -> None:
    shared = tmp_path / "everywhere"
    shared.mkdir()
    (shared / "here_too_base.py").write_text(textwrap.dedent(SOURCE))
    modules("here_too_base", SOURCE)
    derived = modules("only_here_derived", "from here_too_base import Made\nclass Special(Made): pass\n")
    assert _loaded_elsewhere(derived.Special.from_dict, run_python, tmp_path, shared) == "Special of {'a': 10}"


def _reduced_without_a_file(code: types.CodeType) -> tuple[Any, ...]:
    """As cloudpickle 3.1.3 does it."""
    make, args = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    return make, tuple("<dynamic-code>" if arg == code.co_filename else arg for arg in args)


@pytest.mark.parametrize("reduce", [None, _reduced_without_a_file], ids=["as installed", "3.1.3"])
def test_code_that_travels_says_which_file_it_is_from(
    reduce: Callable[[types.CodeType], tuple[Any, ...]] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reduce is not None:
        monkeypatch.setattr(bycode, "_cloudpickle_reduce", reduce)
    code = bycode.dumps(_closure("here"))
    assert pickle.loads(code).__code__.co_filename == __file__
    assert bycode.dumps(_closure("here")) == code, "the same function is the same code, and is sent once"


def test_pickling_by_value_leaves_no_trace_in_cloudpickle(modules: Callable[..., Any]) -> None:
    module = modules("only_here_module", SOURCE)
    shipper = Shipper()
    ref, _ = _shipped(shipper, module.function)
    shipper.code_for(ref.ident)
    assert "only_here_module" not in cloudpickle.list_registry_pickle_by_value()
    cloudpickle.register_pickle_by_value(module)
    try:
        shipper.code_for(ref.ident)
        assert "only_here_module" in cloudpickle.list_registry_pickle_by_value(), "the user's registration stays"
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def test_code_that_cannot_be_sent_either_is_explained(modules: Callable[..., Any]) -> None:
    source = "import threading\nLOCK = threading.Lock()\ndef f(payload):\n    with LOCK: return payload\n"
    module = modules("only_here_locked", source)
    shipper = Shipper()
    ref, _ = _shipped(shipper, module.f)
    with pytest.raises(CannotEncode, match=r"cannot be imported by some rank .*'s global 'LOCK'.* on every rank"):
        shipper.code_for(ref.ident)


def _prepare(payload: int) -> int:
    return payload + 1


def _load(loader: Loader, ref: MaterializerRef | None, codes: list[tuple[str, bytes]]) -> Any:
    assert ref is not None
    for ident, code in codes:
        loader.learn(ident, code)
    return loader.load(ref)


def test_two_stages_travel_each_by_the_shortest_way() -> None:
    shipper, loader = Shipper(), Loader()
    local = 3
    staged: Staged[int, int, int] = Staged(operator.neg, lambda payload, hint: payload * hint * local)
    ref, finish, codes = astuple(shipper.ship(staged))
    assert ref is not None
    assert ref.path is not None
    assert len(codes) == 1
    prepare, second = _load(loader, ref, []), _load(loader, finish, codes)
    assert second(2, prepare(5)) == -30
    assert staged(5) == -75
    assert shipper.ship(staged).codes == []
    assert shipper.ship(staged, prepared=True).ref is None


def test_two_stages_are_registered_under_one_name() -> None:
    staged: Staged[int, int, int] = Staged(_prepare, pow)
    register_materializer("unit.staged", staged)
    shipped = Shipper().ship(staged)
    assert shipped.codes == []
    assert _load(Loader(), shipped.ref, []) is _prepare
    assert _load(Loader(), shipped.finish, []) is pow
    register_materializer("unit.staged", len)
    with pytest.raises(LookupError, match="registered with two stages on one of root and this rank only"):
        _load(Loader(), shipped.ref, [])


@pytest.mark.parametrize("stages", [(3, len), (len, None)])
def test_stages_are_callable(stages: Any) -> None:
    with pytest.raises(TypeError, match=r"Staged: (prepare|finish) must be callable"):
        Staged(*stages)
