"""How the constructor is spelled, and what it says to who spells it as it was once."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from lazycast import Auto, LazyBroadcast, Shard, Tuning
from lazycast.options import Options, flat


@pytest.mark.parametrize(
    ("keyword", "spelled"),
    [
        *((field.name, f"tuning=Tuning({field.name}=...)") for field in dataclasses.fields(Tuning)),
        ("owners", "placement=Shard(owners=...)"),
        ("allow", "trust={...}"),
    ],
)
def test_an_old_keyword_is_refused_with_the_new_spelling(keyword: str, spelled: str) -> None:
    old: dict[str, Any] = {keyword: 1}
    with pytest.raises(TypeError) as raised:
        LazyBroadcast(**old)
    assert str(raised.value).startswith(f"LazyBroadcast() has no {keyword}=: write {spelled}")


def test_a_keyword_that_never_was_is_pythons_error() -> None:
    wrong: dict[str, Any] = {"rooot": 1}
    with pytest.raises(TypeError, match="unexpected keyword argument 'rooot'"):
        LazyBroadcast(**wrong)


def test_the_old_name_of_a_method_says_what_it_is_now() -> None:
    with LazyBroadcast(backend="local") as lazy:
        with pytest.raises(AttributeError, match=r"write stats\(group=True\)"):
            lazy.group_stats()
        with pytest.raises(AttributeError, match="'LazyBroadcast' object has no attribute 'grup_stats'"):
            lazy.grup_stats()
        assert list(lazy.stats(group=True).ranks) == [0]


def test_there_are_few_keywords_and_tools_see_them() -> None:
    parameters = inspect.signature(LazyBroadcast).parameters
    assert next(iter(parameters)) == "materialize"
    assert len(parameters) <= 13
    assert not any(p.kind is p.VAR_KEYWORD for p in parameters.values())


@pytest.mark.parametrize(
    ("placement", "trust", "expected"),
    [
        ("every", "data", ("every", None, "data", None)),
        (Shard({1, 2}), "pickle", ("shard", {1, 2}, "pickle", None)),
        (Auto([0]), {"a.B"}, ("auto", [0], "pickle", {"a.B"})),
        (Shard(), ["a.B"], ("shard", None, "pickle", ["a.B"])),
        (Shard, "a.B", (Shard, None, "a.B", None)),
        (7, b"x", (7, None, b"x", None)),
    ],
)
def test_what_belongs_together_is_taken_apart(placement: Any, trust: Any, expected: Any) -> None:
    found = flat(placement, trust, Tuning(max_inflight=3))
    assert (found["placement"], found["owners"], found["trust"], found["allow"]) == expected
    assert found["max_inflight"] == 3
    assert set(found) < {field.name for field in dataclasses.fields(Options)}
