"""The ways to make values that are compared. Each is made on every rank, in the same order, for one workload."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import Future
from typing import Any, ClassVar

import lazycast
from lazycast.materialize.each import Each
from lazycast.options import Helpers, Memo
from lazycast.tools.bench.making import by_hand, materializers
from lazycast.tools.bench.qps.ways import Place, Way
from lazycast.tools.bench.qps.workloads import Workload
from lazycast.tools.bench.sync import TIMEOUT_S
from lazycast.watch.stats import Stats

#: What ranks may remember in the chat: some forty of its two hundred photos.
CHAT_NBYTES = 24 << 20
_VALUES_NBYTES = 256 << 20


class Ours(Way):
    """This library."""

    known = False

    def __init__(self, place: Place, workload: Workload, helpers: int) -> None:
        super().__init__(place, workload)
        options = {"materialize": workload.materialize, "timeout_s": TIMEOUT_S, **self.options(helpers)}
        name = f"{self.name} {workload.name}"
        self._lazy: lazycast.LazyBroadcast[Any, Any] = lazycast.LazyBroadcast(name=name, **options)

    @abstractmethod
    def options(self, helpers: int) -> dict[str, Any]:
        """Return what sets this way apart."""

    def start(self, number: int, payload: Any) -> Future[Any]:
        return self._lazy.broadcast_async(payload if self.is_root else None, key=number)

    def stats(self) -> Stats:
        return self._lazy.stats()

    def close(self) -> None:
        self._lazy.close()


class OnHelpers(Ours):
    name = "lazycast-helpers"
    about = "lazycast, where processes that are no ranks make the values"

    def options(self, helpers: int) -> dict[str, Any]:
        return {"placement": Helpers(helpers)}


class OnShard(Ours):
    name = "lazycast-shard"
    about = "lazycast, where one rank of the host makes each value, in turn"

    def options(self, helpers: int) -> dict[str, Any]:
        return {"placement": "shard"}


class OnEvery(Ours):
    name = "lazycast-every"
    about = "lazycast, where every rank makes every value"

    def options(self, helpers: int) -> dict[str, Any]:
        return {"placement": "every"}


class Items(Ours):
    """Of what has items, each is made by itself."""

    name = "lazycast-each"
    about = "lazycast, where helpers make the items of one request between them"
    placement: ClassVar[str | None] = None

    def __init__(self, place: Place, workload: Workload, helpers: int) -> None:
        if workload.name != "album":
            raise ValueError(f"{workload.name} has no items")
        super().__init__(place, workload, helpers)

    def options(self, helpers: int) -> dict[str, Any]:
        return {"materialize": Each(materializers.photo), "placement": self.placement or Helpers(helpers)}


class ItemsOfShards(Items):
    name = "lazycast-each-shard"
    about = "lazycast, where the ranks of the host make the items of one request between them"
    placement = "shard"


class Remembers(Ours):
    name = "lazycast-memo"
    about = "lazycast, where what was made before is not made again"

    def options(self, helpers: int) -> dict[str, Any]:
        nbytes = CHAT_NBYTES if self.workload.name == "chat" else _VALUES_NBYTES
        return {"placement": "shard", "memo": Memo(nbytes)}


class Small(Ours):
    name = "lazycast-small"
    about = "lazycast, a cast of a number that nothing is made of: what a hit is held against"

    def options(self, helpers: int) -> dict[str, Any]:
        return {"materialize": None}


WAYS: dict[str, type[Any]] = {
    way.name: way
    for way in (
        OnHelpers,
        OnShard,
        OnEvery,
        Items,
        ItemsOfShards,
        Remembers,
        Small,
        by_hand.Executor,
        by_hand.Pool,
        by_hand.SharedPool,
    )
}
QUIET, STRANGERS = "quiet", "strangers"
ABOUT: dict[str, str] = {
    QUIET: "no requests at all",
    STRANGERS: "the same load by processes that have nothing to do with the ranks, as nice as helpers",
    **{name: way.about for name, way in WAYS.items()},
}
