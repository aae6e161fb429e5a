"""The policy: by which codec objects travel, and which materializers may be sent, and loaded."""

from __future__ import annotations

import functools
import os
import pickle
from typing import Any

import cloudpickle
import pytest

from lazycast import LazyBroadcast, Staged, TrustError, register_materializer
from lazycast.codec import data, pickling
from lazycast.codec.pickling import CannotEncode
from lazycast.codec.trust import EVERYTHING, Policy, policy_of
from lazycast.materialize import materializers
from lazycast.materialize.materializers import CodeMissing, Loader, Shipper, objection
from lazycast.net.wire import MaterializerRef

from .test_options import options


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    monkeypatch.setattr(materializers, "_registered", {})


def plain(payload: Any) -> Any:
    return payload


def finish(payload: Any, hint: Any) -> Any:
    return payload, hint


class Made:
    @classmethod
    def of(cls, payload: Any) -> Made:
        return cls()

    def method(self, payload: Any) -> Any:
        return payload


HERE = plain.__module__
DATA = policy_of(options(trust="data"))
ALLOW = policy_of(options(allow=[f"{HERE}.plain", f"{HERE}.Made.of", "builtins.len", f"{HERE}.missing"]))


def test_the_policy_follows_the_options() -> None:
    assert policy_of(options())[1:] == EVERYTHING[1:]
    assert EVERYTHING.codec is pickling
    assert DATA.codec is data
    assert ALLOW.codec not in (pickling, data)
    assert policy_of(options(allow=[])).paths == frozenset()


LOCAL: Any = lambda payload: payload  # noqa: E731
REFUSED: list[tuple[Policy, Any]] = [
    *(
        (DATA, fn)
        for fn in (plain, Made.of, len, LOCAL, functools.partial(plain), Staged(plain, finish), Made().method)
    ),
    *((ALLOW, fn) for fn in (finish, LOCAL, functools.partial(plain), Staged(plain, finish), Made().method, os.system)),
]


@pytest.mark.parametrize(("policy", "fn"), REFUSED)
def test_what_may_not_travel_is_refused_at_the_root(policy: Policy, fn: Any) -> None:
    why = objection(fn, policy)
    assert why is not None
    assert "is not registered" in why
    assert "register_materializer" in why
    with pytest.raises(TrustError):
        Shipper(policy).ship(fn)
    assert objection(fn, EVERYTHING) is None


@pytest.mark.parametrize("fn", [plain, Made.of, len])
def test_what_is_allowed_travels_by_its_path(fn: Any) -> None:
    assert objection(fn, ALLOW) is None
    shipped = Shipper(ALLOW).ship(fn)
    assert shipped.codes == []
    assert shipped.ref is not None
    assert Loader(ALLOW).load(shipped.ref) == fn
    with pytest.raises(TrustError):
        Loader(DATA).load(shipped.ref)


@pytest.mark.parametrize("policy", [DATA, ALLOW, EVERYTHING])
def test_what_is_registered_travels_by_its_name(policy: Policy) -> None:
    made = Made()
    fns: dict[str, Any] = {
        "function": finish,
        "class method": Made.of,
        "bound method": made.method,
        "lambda": LOCAL,
        "staged": Staged(plain, Made.of),
    }
    for name, fn in fns.items():
        register_materializer(f"test_trust: {name}", fn)
    again: dict[str, Any] = {
        **fns,
        "class method": Made.of,
        "bound method": made.method,
        "staged": Staged(plain, Made.of),
    }
    for name, fn in again.items():
        assert objection(fn, policy) is None
        shipped = Shipper(policy).ship(fn)
        for ref in (shipped.ref, shipped.finish):
            assert ref is None or (ref.name == f"test_trust: {name}" and ref.path is None)
        assert shipped.ref is not None
        Loader(policy).load(shipped.ref)
    assert objection(Made().method, DATA) is not None  # of another object


HOSTILE = {
    "path": MaterializerRef("os:system", "system", ("os", "system")),
    "import": MaterializerRef("this:x", "x", ("this", "x")),
    "dotted": MaterializerRef(f"{HERE}:plain.__globals__", "x", (HERE, "plain.__globals__")),
    "other split": MaterializerRef("x", "x", (f"{HERE}.Made", "of.__func__")),
    "code": MaterializerRef("sha256:0", "f"),
    "path with code": MaterializerRef("sha256:0", "f", ("os", "system")),
    "empty": MaterializerRef("", "", ("", "")),
}


@pytest.mark.parametrize("policy", [DATA, ALLOW], ids=["data", "allow"])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_reference_is_refused_and_loads_nothing(policy: Policy, name: str, capsys: Any) -> None:
    loader = Loader(policy)
    loader.learn("sha256:0", cloudpickle.dumps(lambda payload: print("harmed"), protocol=5))
    with pytest.raises(TrustError, match="is not registered"):
        loader.load(HOSTILE[name])
    assert capsys.readouterr().out == ""  # `import this` says something


class Bomb:
    def __reduce__(self) -> Any:
        return print, ("harmed",)


def test_a_hostile_code_message_for_an_allowed_path_is_dropped(capsys: Any) -> None:
    for policy in (DATA, ALLOW):
        loader = Loader(policy)
        loader.learn(f"{HERE}:plain", pickle.dumps(Bomb(), 5))
        ref = MaterializerRef(f"{HERE}:plain", "plain", (HERE, "plain"))
        if policy is ALLOW:
            assert loader.load(ref) is plain
        else:
            with pytest.raises(TrustError):
                loader.load(ref)
    assert capsys.readouterr().out == ""


def test_an_allowed_path_that_cannot_be_imported_asks_for_no_code() -> None:
    ref = MaterializerRef(f"{HERE}:missing", "missing", (HERE, "missing"))
    with pytest.raises(AttributeError):
        Loader(ALLOW).load(ref)
    with pytest.raises(CodeMissing):
        Loader().load(ref)
    shipper = Shipper(ALLOW)
    shipper.ship(plain)
    with pytest.raises(CannotEncode, match="does not travel with allow="):
        shipper.code_for(f"{HERE}:plain")


def test_a_name_that_is_not_registered_here_says_what_to_do() -> None:
    with pytest.raises(LookupError, match=r"no materializer 'nobody'.*call register_materializer\('nobody', fn\)"):
        Loader(DATA).load(MaterializerRef("registered:nobody", "nobody"))


def test_a_group_of_one_keeps_the_rule() -> None:
    with LazyBroadcast(LOCAL_2, backend="local", trust="data") as lazy:
        with pytest.raises(TrustError, match=r"cast on rank 0 of 1, root 0: .* is not registered"):
            lazy.broadcast(1)
        register_materializer("test_trust: 2", LOCAL_2)
        assert lazy.broadcast(1) == 2


LOCAL_2: Any = lambda payload: payload + 1  # noqa: E731
