"""Broadcast a raw payload plus the callable that makes the object from it; every rank gets the object.

See `LazyBroadcast`. Importing this package imports neither torch nor mpi4py.
"""

from lazycast.api import LazyBroadcast
from lazycast.dumps import dump_all
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
)
from lazycast.future import CastFuture
from lazycast.group_stats import GroupStats
from lazycast.launcher import launch
from lazycast.materializers import register_materializer
from lazycast.placement.chooser import PlacementCost, Standing
from lazycast.reducers import register_reducer
from lazycast.staged import Staged
from lazycast.stats import Stats
from lazycast.timing import Timing
from lazycast.version import __version__

__all__ = [
    "BackendError",
    "BackendUnavailableError",
    "CastFuture",
    "CastTimeoutError",
    "ClosedError",
    "ConfigMismatchError",
    "DecodeError",
    "DivergenceError",
    "EncodeError",
    "GroupStats",
    "KeyInUseError",
    "LaunchError",
    "LazyBroadcast",
    "LazycastError",
    "MaterializeError",
    "PayloadMismatchError",
    "PeerLostError",
    "PlacementCost",
    "ReentrantCallError",
    "RemoteError",
    "Staged",
    "Standing",
    "Stats",
    "Timing",
    "TrustError",
    "__version__",
    "dump_all",
    "launch",
    "register_materializer",
    "register_reducer",
]
