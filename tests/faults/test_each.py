"""Casts whose items several make, when one of these dies, hangs or is ended."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from lazycast import Each, Helpers, LazyBroadcast, MaterializeError, PeerLostError, launch
from tests import helped

pytestmark = pytest.mark.usefixtures("warm_python")  # for ranks: helpers are interpreters of their own
LIMIT_S = 60.0
SELDOM = pytest.mark.exhaustive


def lazy_of(fn: Any, placement: Any) -> LazyBroadcast[Any, Any]:
    return LazyBroadcast(fn, placement=placement, timeout_s=LIMIT_S)


def value_of(lazy: LazyBroadcast[Any, Any], payload: Any, **more: Any) -> Any:
    return lazy.broadcast(payload if lazy.is_root else None, **more)


def _dies_once(marker: str) -> tuple[Any, int]:
    with lazy_of(Each(helped.item_that_kills_once), Helpers(2)) as lazy:
        payload = ["", "", "", marker, "", *[""] * 20]
        assert value_of(lazy, payload) == payload
        until_s = time.monotonic() + LIMIT_S
        while lazy.is_root and not lazy.stats().helpers_lost:  # the other one may be quicker than the news of the death
            assert time.monotonic() < until_s
            time.sleep(0.01)
        return value_of(lazy, [""]), lazy.stats().helpers_lost


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=SELDOM), 3])
def test_items_of_a_helper_that_dies_go_to_another(ranks: int, tmp_path: Path) -> None:
    found = launch(_dies_once, ranks=ranks, backend="threads", args=(str(tmp_path / "marker"),), timeout_s=200)
    assert found == [([""], 1), *[([""], 0)] * (ranks - 1)]


def _kills_each() -> str:
    with lazy_of(Each(helped.crash_or), Helpers(2)) as lazy:
        with pytest.raises(MaterializeError) as caught:
            value_of(lazy, [1, "crash", 3])
        assert [made["payload"] for made in value_of(lazy, [1, 2, 3])] == [1, 2, 3]
        return str(caught.value)


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=SELDOM), 2])
def test_an_item_that_kills_two_helpers_is_an_error_that_names_it(ranks: int) -> None:
    for text in launch(_kills_each, ranks=ranks, backend="threads", timeout_s=200):
        assert "materializer 'Each(crash_or)' was not done: helper" in text
        assert text.count("was killed by SIGSEGV at item 1 or soon after") == 2


def _overruns() -> str:
    with lazy_of(Each(helped.pause_at), Helpers(1, limit_s=4.0)) as lazy:
        # Both parts of it take longer than the limit, and none of their items does, on a busy machine either.
        assert value_of(lazy, [0.3] * 32) == [0.3] * 32
        with pytest.raises(MaterializeError) as caught:
            value_of(lazy, [0.0, 0.0, 0.0, 0.0, LIMIT_S, 0.0])
        assert value_of(lazy, [0.0]) == [0.0]
        return str(caught.value)


def test_the_limit_is_that_of_an_item() -> None:
    for text in launch(_overruns, ranks=2, backend="threads", timeout_s=200):
        assert "was not done at item" in text
        assert "it had taken longer than limit_s=4, and helper 0 was ended" in text


def _loses_a_rank(folder: str) -> str:
    with lazy_of(Each(helped.slow_item), "shard") as lazy:
        future = lazy.broadcast_async([(folder, n) for n in range(4)] if lazy.is_root else None)
        begun = Path(folder) / "begun"
        while not begun.exists() or len(begun.read_text().split()) < lazy.size:
            time.sleep(0.01)
        if lazy.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(PeerLostError) as caught:
            future.result(LIMIT_S)
        return str(caught.value)


def _survives(folder: str) -> None:
    text = _loses_a_rank(folder)
    Path(folder, f"survivor {os.environ['LAZYCAST_RANK']}").write_text(text)


def test_a_rank_that_dies_with_its_items_fails_the_cast_on_the_others(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="rank 1"):
        launch(_survives, ranks=3, args=(str(tmp_path),), timeout_s=200)
    for rank in (0, 2):
        until = time.monotonic() + LIMIT_S
        said = tmp_path / f"survivor {rank}"
        while not said.exists() and time.monotonic() < until:
            time.sleep(0.01)
        assert "rank 1" in said.read_text()
