"""What was cast before is there again on every rank, and nobody sees what others have done to theirs."""

from __future__ import annotations

from typing import Any

import numpy as np

from lazycast.errors import MaterializeError
from lazycast.options import Memo
from lazycast.testing.kit import Rank, behaviour, check, raises, same

_NBYTES = 3_000_000


def grown(payload: Any) -> dict[str, Any]:
    return {"payload": payload, "large": np.zeros(150_000)}


def fails(payload: Any) -> None:
    raise ValueError("never remembered")


@behaviour()
def what_was_cast_before_is_there_again_and_private(rank: Rank) -> None:
    for placement in ("every", "shard"):
        with rank.lazy(grown, placement=placement, memo=Memo(_NBYTES), root=rank.last) as lazy:
            for turn in range(9):
                payload = f"picture {turn % 3}"
                value = lazy.broadcast(payload if lazy.is_root else None)
                same(value["payload"], payload)
                check(not value["large"].any(), "what was written to another value is seen")
                value["large"] += 1 + rank.rank
                same(lazy.stats().casts, turn + 1, "casts")
                rank.meet()
            del value
            # Two fit, and three take turns: none is ever there again, and the one that comes twice in a row is.
            lazy.broadcast("picture 2" if lazy.is_root else None)
            rank.meet()
            same(lazy.stats().memo_hits, 1, "hits")
            raises(MaterializeError, "never remembered", lambda: lazy.broadcast("picture 2", materialize=fails))
            raises(MaterializeError, "never remembered", lambda: lazy.broadcast("picture 2", materialize=fails))
            rank.meet()
            same(lazy.stats().memo_hits, 1, "hits")
