"""How helpers begin while an object is constructed: whether their `init` can travel, and whether it did what it should.

Guarantees: whatever is wrong with it on one rank is an error on every rank.
"""

from __future__ import annotations

import logging
import time

import msgspec

from lazycast.codec.diagnose import describe_unpicklable
from lazycast.core import failures
from lazycast.core.engine import Engine
from lazycast.core.performer import Group
from lazycast.errors import EncodeError, LazycastError
from lazycast.materialize import bycode
from lazycast.materialize.cores import together
from lazycast.net.backend import Context
from lazycast.net.wire import Failure
from lazycast.options import Options

logger = logging.getLogger("lazycast")

#: How long after a rank's time is over it still waits to be told what has come of the helpers of others (seconds).
_SAYS_S = 5.0


def objection(options: Options) -> LazycastError | None:
    """Return the error that an `init` deserves which cannot travel, or None."""
    init = options.helpers.init if options.helpers is not None else None
    if init is None:
        return None
    try:
        bycode.dumps(init)
    except Exception as exc:
        return EncodeError(f"Helpers: init cannot travel to helpers: {describe_unpicklable(init, exc)}")
    return None


def begin(engine: Engine, group: Group, options: Options, context: Context, deadline_s: float) -> None:
    """Begin to start helpers, where this rank has some; with an `init`, wait until it has been called in all.

    Raises: MaterializeError on every rank, if one could not begin.
    Collective: with an `init`. Blocking: then, up to the deadline (monotonic seconds), and some seconds more for what
    other ranks say of theirs.
    """
    helpers = options.helpers
    if helpers is None:
        return
    _warn_of_cores(group, helpers.count)
    began_s = time.monotonic()
    failure = engine.begin_helpers(max(0.001, deadline_s - began_s))
    if helpers.init is None:
        return
    found = [failure]
    if group.size > 1:
        # Those without helpers wait for those that have some, which may take all the time there is, began later than
        # the others, and then say what they lack.
        left_s = max(0.0, deadline_s - time.monotonic()) + _SAYS_S
        blobs = context.exchange(msgspec.msgpack.encode(failure), timeout_s=left_s)
        found = [msgspec.msgpack.decode(blob, type=Failure | None) for blob in blobs]
    first = next((one for one in found if one is not None), None)
    if first is not None:
        label = f"lazycast {options.name!r}: its helpers could not begin"
        exc = failures.to_exception(first, label=label, rank=group.rank)
        exc.remote_traceback = first.traceback
        raise exc


def _warn_of_cores(group: Group, count: int) -> None:
    host = group.hosts[group.rank]
    beside = [rank for rank in range(group.size) if group.hosts[rank] == host]
    cores = together([group.cores[rank] for rank in beside])
    if count > cores and group.rank == beside[0]:
        text = "lazycast: Helpers(%d) on %s, where the %d ranks and their helpers may use %.3g cores: they share these"
        logger.warning(text, count, host, len(beside), cores)
