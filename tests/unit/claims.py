"""Sentences of README and docs, each with a check that runs: the page must still say it, and it must still be so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lazycast import LazyBroadcast, launch

ROOT = Path(__file__).resolve().parents[2]

Check = Callable[[], None]


class Claims(list[Any]):
    """The claims of a module, as parameters of a test."""

    def __call__(self, page: str, words: str) -> Callable[[Check], Check]:
        """Decorate what checks that a page's words are true."""

        def add(check: Check) -> Check:
            self.append(pytest.param(page, words, check, id=check.__name__))
            return check

        return add


def judge(page: str, words: str, check: Check) -> None:
    """Raise unless the page says it and it is so."""
    text = " ".join((ROOT / page).read_text().split())
    assert " ".join(words.split()) in text, f"{page} no longer says: {words}"
    check()


def ranks(body: Callable[[LazyBroadcast[Any, Any]], Any], *args: Any, size: int = 3, **options: Any) -> list[Any]:
    """Run `body` on an object of that many ranks, and return what it returned on each."""

    def rank() -> Any:
        with LazyBroadcast(*args, **{"timeout_s": 30, **options}) as lazy:
            return body(lazy)

    return launch(rank, ranks=size, backend="threads", timeout_s=200)


def rooted(lazy: LazyBroadcast[Any, Any], payload: Any) -> Any:
    """Return the payload on the root, None elsewhere."""
    return payload if lazy.is_root else None


def caught(call: Callable[[], Any]) -> BaseException | None:
    """Return what a call raises."""
    try:
        call()
    except Exception as exc:
        return exc
    return None
