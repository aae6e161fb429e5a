"""Options: each bad one has its message, and nothing a user may pass breaks the check itself."""

from __future__ import annotations

import concurrent.futures
import math
from typing import Any

import numpy as np
import pytest

from lazycast.options import (
    DEFAULT_MAX_INFLIGHT_NBYTES,
    PLACEMENTS,
    Auto,
    Helpers,
    Memo,
    Options,
    check,
    debug_wanted,
    flat,
)


def options(**changes: Any) -> Options:
    plain: dict[str, Any] = {
        "materialize": None,
        "root": 0,
        "name": "default",
        "placement": "auto",
        "agree": True,
        "values": "private",
        "trust": "pickle",
        "max_inflight": 64,
        "max_inflight_nbytes": DEFAULT_MAX_INFLIGHT_NBYTES,
        "timeout_s": 300.0,
        "warn_after_s": 30.0,
        "executor": None,
        "arena_nbytes": 1 << 30,
        "shared_memory": "auto",
    }
    return Options(**{**plain, **changes})


GOOD: list[dict[str, Any]] = [
    {},
    {"shared_memory": False},
    {"arena_nbytes": 1},
    {"root": 3},
    {"materialize": len},
    {"trust": "data"},
    {"allow": []},
    {"allow": frozenset({"package.module.Class.method"})},
    {"name": "x" * 200},
    {"values": "copy"},
    {"agree": False},
    {"max_inflight": 1, "max_inflight_nbytes": 1},
    {"timeout_s": 1, "warn_after_s": 1e-3},
    {"warn_after_s": math.inf},
    *({"placement": placement} for placement in PLACEMENTS),
]


def test_good_options_have_no_error() -> None:
    for changes in GOOD:
        assert check(options(**changes), 4) is None, changes


async def asleep() -> None:
    """Nobody would await it."""


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"materialize": 3}, TypeError, "materialize must be callable or None, got int"),
    ({"root": 4}, ValueError, "root=4 is not a rank of this group: 0 to 3 (root is group-local)"),
    ({"root": -1}, ValueError, "root=-1 is not a rank of this group"),
    ({"root": "0"}, ValueError, "root='0' is not a rank of this group"),
    ({"root": True}, ValueError, "root=True is not a rank of this group"),
    ({"root": 0.0}, ValueError, "root=0.0 is not a rank of this group"),
    ({"root": None}, ValueError, "root=None is not a rank of this group"),
    ({"placement": "everywhere"}, ValueError, "unknown placement 'everywhere'; use one of 'every', "),
    ({"placement": None}, ValueError, "unknown placement None"),
    ({"placement": ["every"]}, ValueError, "unknown placement ['every']"),
    ({"name": ""}, ValueError, "name must be a string of 1 to 200 characters, got ''"),
    ({"name": "x" * 201}, ValueError, "name must be a string of 1 to 200 characters"),
    ({"name": 3}, ValueError, "name must be a string of 1 to 200 characters, got 3"),
    ({"values": "shared"}, ValueError, "unknown values 'shared'; use one of 'private', 'readonly', 'copy'"),
    ({"values": None}, ValueError, "unknown values None"),
    ({"trust": "blind"}, ValueError, "unknown trust 'blind'; use one of 'pickle', 'data'"),
    ({"trust": None}, ValueError, "unknown trust None"),
    ({"allow": "a.b"}, ValueError, "trust must be 'pickle', 'data' or a set of names, got 'a.b'"),
    ({"allow": 3}, ValueError, "trust must be 'pickle', 'data' or a set of names"),
    ({"allow": ["numpy"]}, ValueError, "trust: 'numpy' is not the exact name of a type or function"),
    ({"allow": ["a.*"]}, ValueError, "trust: 'a.*' is not the exact name"),
    ({"allow": ["a.f.<locals>.g"]}, ValueError, "is not the exact name"),
    ({"allow": ["a.b", 3]}, ValueError, "trust: 3 is not the exact name"),
    ({"allow": ["cloudpickle.cloudpickle._make_function"]}, ValueError, "would allow any code"),
    ({"max_inflight": 0}, ValueError, "max_inflight must be a positive int, got 0"),
    ({"max_inflight": 1.5}, ValueError, "max_inflight must be a positive int, got 1.5"),
    ({"max_inflight": True}, ValueError, "max_inflight must be a positive int, got True"),
    ({"max_inflight_nbytes": -1}, ValueError, "max_inflight_nbytes must be a positive int, got -1"),
    ({"timeout_s": 0}, ValueError, "timeout_s must be a positive int or float, got 0"),
    ({"timeout_s": None}, ValueError, "timeout_s must be a positive int or float, got None"),
    ({"timeout_s": "5"}, ValueError, "timeout_s must be a positive int or float, got '5'"),
    ({"timeout_s": math.nan}, ValueError, "timeout_s must be a positive"),
    ({"timeout_s": math.inf}, ValueError, "timeout_s must be a positive"),  # no wait of the platform takes it
    ({"warn_after_s": -1.0}, ValueError, "warn_after_s must be a positive int or float, got -1.0"),
    ({"warn_after_s": math.nan}, ValueError, "warn_after_s must be a positive"),
    ({"arena_nbytes": 0}, ValueError, "arena_nbytes must be a positive int, got 0"),
    ({"shared_memory": True}, ValueError, "shared_memory must be 'auto' or False, got True"),
    ({"shared_memory": 0}, ValueError, "shared_memory must be 'auto' or False, got 0"),
    ({"agree": 1}, Exception, "agree"),
    ({"agree": 0}, Exception, "agree"),  # it would travel as an int, which peers refuse
    ({"agree": "yes"}, Exception, "agree"),
    ({"replicated": 1}, ValueError, "replicated must be True or False, got 1"),
    ({"owners": 1}, ValueError, "owners must be a collection of at least one rank, or None, got 1"),
    ({"owners": []}, ValueError, "owners must be a collection of at least one rank"),
    ({"owners": "12"}, ValueError, "owners must be a collection of at least one rank"),
    ({"owners": [0, 4]}, ValueError, "owners: [4] are no ranks of this group: 0 to 3"),
    ({"owners": [True, "a"]}, ValueError, "owners: [True, 'a'] are no ranks"),
    ({"owners": [0], "placement": "root"}, ValueError, "owners are for placement 'shard' or 'auto', not 'root'"),
    ({"executor": "threads"}, TypeError, "executor"),
    ({"placement": "helpers"}, ValueError, "placement 'helpers' needs a number: placement=Helpers(count)"),
    ({"helpers": 2}, TypeError, "helpers must be Helpers(count), got 2"),
    (flat(Auto(helpers=2), "pickle", None), TypeError, "helpers must be Helpers(count), got 2"),  # type: ignore[arg-type]
    (flat(Auto(helpers=Helpers(0)), "pickle", None), ValueError, "Helpers: count must be a positive int, got 0"),
    ({"memo": 1 << 30}, TypeError, "memo must be a Memo or None, got 1073741824"),
    ({"memo": Memo(0)}, ValueError, "Memo: nbytes must be a positive int, got 0"),
    (
        {"memo": Memo((16 << 40) + 1)},
        ValueError,
        "Memo: nbytes must be at most 17592186044416 (16 TiB), got 17592186044417",
    ),
    ({"memo": Memo(1, key="id")}, TypeError, "Memo: key must be callable or None, got str"),
    ({"memo": Memo(1), "agree": False}, ValueError, "memo needs agree=True"),
    ({"memo": Memo(1), "placement": "root"}, ValueError, "and a placement other than 'demand' and 'root'"),
    ({"memo": Memo(1), "replicated": True}, ValueError, "memo is for payloads that are sent"),
    *(
        ({"placement": "helpers", "helpers": Helpers(**{"count": 1, **changes})}, kind, message)
        for changes, kind, message in [
            ({"count": 0}, ValueError, "Helpers: count must be a positive int, got 0"),
            ({"count": -1}, ValueError, "Helpers: count must be a positive int, got -1"),
            ({"count": 1.5}, ValueError, "Helpers: count must be a positive int, got 1.5"),
            ({"count": True}, ValueError, "Helpers: count must be a positive int, got True"),
            ({"limit_s": 0}, ValueError, "Helpers: limit_s must be a positive int or float, got 0"),
            ({"limit_s": math.inf}, ValueError, "Helpers: limit_s must be a positive int or float, got inf"),
            ({"memory_nbytes": "1G"}, ValueError, "Helpers: memory_nbytes must be a positive int, got '1G'"),
            ({"niceness": 20}, ValueError, "Helpers: niceness must be an int from 0 to 19, got 20"),
            ({"niceness": True}, ValueError, "Helpers: niceness must be an int from 0 to 19, got True"),
            ({"cuda": 0}, ValueError, "Helpers: cuda must be True or False, got 0"),
            ({"init": 3}, TypeError, "Helpers: init must be callable, got int"),
            ({"init": asleep}, TypeError, "Helpers: init must give the value, and an async function"),
        ]
    ),
]


def test_each_bad_option_has_its_message() -> None:
    for changes, kind, message in BAD:
        error = check(options(**changes), 4)
        assert isinstance(error, kind), changes
        assert message in str(error), changes


class NoRepr:
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


ODD = {"no repr": NoRepr(), "array": np.arange(3), "nan": math.nan, "surrogate": "\ud800", "type": int}


@pytest.mark.parametrize("name", sorted(vars(options())))
def test_checking_returns_and_never_raises_whatever_was_passed(name: str) -> None:
    # A rank that raised here, before it has met the others, would leave them waiting.
    for what, odd in ODD.items():
        error = check(options(**{name: odd}), 4)
        options(**{name: odd}).agreed()
        assert error is None or isinstance(error, Exception), what


def test_a_process_pool_is_refused() -> None:
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        error = check(options(executor=pool), 4)
    assert isinstance(error, TypeError)
    assert "must run in this process" in str(error)
    assert "use placement=Helpers(count)" in str(error)
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        assert check(options(executor=threads), 4) is None


def test_what_ranks_must_agree_on_is_shared_and_what_may_differ_is_not() -> None:
    assert set(options().agreed()) == {
        "root",
        "name",
        "placement",
        "agree",
        "values",
        "trust",
        "owners",
        "replicated",
        "roots",
        "allow",
        "LAZYCAST_DEBUG",
        "memo",
    }
    assert options(allow=["b.b", "a.a", "b.b"]).agreed() == options(allow={"a.a", "b.b"}).agreed()
    assert options(allow=["a.a"]).agreed() != options(allow=None).agreed()
    long = [f"module.name{n}" for n in range(1000)]
    assert options(allow=long).agreed() == options(allow=long[::-1]).agreed()
    assert options(allow=long).agreed() != options(allow=[*long[:-1], "module.other"]).agreed()
    assert len(str(options(allow=long).agreed()["allow"])) < 100  # it is clipped when it is sent
    assert options(owners={2, 1}).agreed()["owners"] == [1, 2]
    assert options(root=2, materialize=len, timeout_s=1.0).agreed()["root"] == 2


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_debug_mode_is_asked_for_in_the_environment(
    value: str | None, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LAZYCAST_DEBUG", raising=False)
    if value is not None:
        monkeypatch.setenv("LAZYCAST_DEBUG", value)
    assert debug_wanted() is wanted
