"""Broadcast a raw payload plus the callable that makes the object from it; every rank gets the object.

See `LazyBroadcast`. Importing this package imports neither torch nor mpi4py.
"""

from lazycast.api import LazyBroadcast
from lazycast.codec.reducers import register_reducer
from lazycast.core.future import CastFuture
from lazycast.errors import (
    BackendError,
    BackendUnavailableError,
    CastTimeoutError,
    ClosedError,
    ConfigMismatchError,
    DecodeError,
    DivergenceError,
    EncodeError,
    KeyInUseError,
    LaunchError,
    LazycastError,
    MaterializeError,
    PayloadMismatchError,
    PeerLostError,
    ReentrantCallError,
    RemoteError,
    TrustError,
    WouldBlockError,
)
from lazycast.here import cancelled
from lazycast.materialize.each import Each
from lazycast.materialize.materializers import register_materializer
from lazycast.materialize.placement.chooser import PlacementCost, Standing
from lazycast.materialize.staged import Staged
from lazycast.options import Auto, Helpers, Memo, Shard, Tuning
from lazycast.start.launcher import launch
from lazycast.version import __version__
from lazycast.watch.dumps import dump_all
from lazycast.watch.group_stats import GroupStats
from lazycast.watch.stats import Stats
from lazycast.watch.timing import Timing

__all__ = [
    "Auto",
    "BackendError",
    "BackendUnavailableError",
    "CastFuture",
    "CastTimeoutError",
    "ClosedError",
    "ConfigMismatchError",
    "DecodeError",
    "DivergenceError",
    "Each",
    "EncodeError",
    "GroupStats",
    "Helpers",
    "KeyInUseError",
    "LaunchError",
    "LazyBroadcast",
    "LazycastError",
    "MaterializeError",
    "Memo",
    "PayloadMismatchError",
    "PeerLostError",
    "PlacementCost",
    "ReentrantCallError",
    "RemoteError",
    "Shard",
    "Staged",
    "Standing",
    "Stats",
    "Timing",
    "TrustError",
    "Tuning",
    "WouldBlockError",
    "__version__",
    "cancelled",
    "dump_all",
    "launch",
    "register_materializer",
    "register_reducer",
]
