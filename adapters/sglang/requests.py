"""Whole requests from the rank that receives them to all others: SGLang's `broadcast_pyobj`, over lazycast.

Guarantees:

* The same semantics: the source gets back what it passed, the others lists of their own; ranks call in the same order.
* A list that is empty, or small, travels as SGLang sends it, by the group's own broadcasts: in one of them what fits,
  where SGLang takes two for all that is not empty. Of a larger one they only say that it comes by lazycast.
* The source waits for none of these broadcasts, short of 16 that are on their way.
* Tensors are not copied into a pickle: on a host they lie once in shared memory, and cross to another host once.
* What the source cannot pickle raises on every rank, instead of leaving the others to wait.
* What is replaced are the calls that bring requests: those of the scheduler's receiver, and in 0.5.23, where both use
  one function, those by which a pipeline stage shares what the stage before it has sent; of the diffusion server, all.
  Whoever else imports `broadcast_pyobj` keeps SGLang's own.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib
import math
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from lazycast import Tuning
from lazycast.api import LazyBroadcast
from lazycast.codec import pickling
from lazycast.start import discovery
from lazycast.watch.stats import Stats

from .binding import UnsupportedReleaseError, release

_FUNCTION = "broadcast_pyobj"
#: The modules that bring requests to the ranks: until 0.5.9 and a while after; in 0.5.23, where the receiver also calls
#: `communication_op.attn_cp_tp_broadcast_pyobj`, as do pipeline stages.
_MODULES = (
    "sglang.srt.managers.scheduler",
    "sglang.srt.managers.scheduler_components.request_receiver",
    "sglang.srt.distributed.communication_op",
)
#: The diffusion server's own, from where its modules import it: a hook comes before they do.
DIFFUSION = f"sglang.multimodal_gen.runtime.distributed.utils.{_FUNCTION}"
_CONSTRUCTION_S = 300.0
_NEVER_S = 1e8  # a server may be idle for as long as it likes; when to warn has to be a finite number
_CLOSE_S = 30.0
_MAX_AHEAD = 16
_SMALL_NBYTES = 64 << 10  # up to here the group's own broadcast is as fast as a cast
#: What the first broadcast has, also where there is nothing to say: the head, and some requests without images. It
#: costs no more than a few bytes do; what is longer takes a second one.
_FIRST_NBYTES = 16 << 10
_HEAD = struct.Struct("<qqq")  # the body's bytes, those of its pickle, and the number of its frames
_BODY_AT = 64  # so that arrays are aligned
_NOTHING, _BY_LAZYCAST = 0, -1  # in the place of a size

_replaced: dict[str, Any] = {}  # by module: its own function
_open: dict[tuple[int, int], tuple[Any, RequestBroadcast]] = {}  # by id of the group, and root; the group, to keep it


class RequestBroadcast:
    """Broadcasts lists of requests over one group.

    Args:
        group: a process group that broadcasts tensors in ordinary memory, such as one of gloo; the default one if None.
        root: the source, group-local.
    Raises: ValueError for a group that cannot; as `LazyBroadcast`; CastTimeoutError after 300 s, naming the ranks that
        have not come.
    Collective: every rank of the group constructs, in the same order. Blocking: until all have come, up to 300 s.
    Threads: one construction at a time on one group; see `broadcast`.
    """

    def __init__(self, group: Any = None, *, root: int = 0) -> None:
        dist = _torch().distributed
        self._group = dist.group.WORLD if group is None else group
        self._source = dist.get_global_rank(self._group, root)
        try:
            self._group._get_backend(_torch().device("cpu"))
        except RuntimeError as exc:
            raise ValueError(f"RequestBroadcast: the group does not broadcast tensors of the CPU: {exc}") from exc
        backend: Callable[[Any], Any] = discovery.by_name("torch")
        self._lazy: LazyBroadcast[Any, list[Any]] = LazyBroadcast(
            backend=backend(group),
            root=root,
            name="sglang-requests",
            placement="every",
            agree=False,
            timeout_s=_CONSTRUCTION_S,
            tuning=Tuning(max_inflight=_MAX_AHEAD, warn_after_s=_NEVER_S),
        )
        self._ahead: deque[Any] = deque()  # the source's broadcasts of the group that may not be done

    def broadcast(self, data: list[Any]) -> list[Any]:
        """Give the source's list to every rank.

        Args:
            data: any picklable objects; ignored except on the source, where the same list comes back.
        Raises: EncodeError on the source, RemoteError on the others, for what does not pickle; DecodeError for what a
            rank cannot rebuild, of a small list what unpickling raises; PeerLostError, ClosedError; RuntimeError where
            the group's own broadcast fails, as for SGLang alone: on the source one of the next calls raises it, or
            `close`. CastTimeoutError only if a rank's engine has stopped: a call itself has no time limit but the
            group's, since a server may be idle.
        Collective: every rank, in the same order, and nothing else of the group meanwhile. Blocking: the source until
            all is on its way, at most 16 lists ahead of the slowest rank; the others until it is here. Threads: one per
            rank.
        """
        if not self._lazy.is_root:
            return self._received()
        cast: list[Any] | pickling.Encoded | None = data or None  # what is large, or does not pickle
        message = bytearray(_FIRST_NBYTES)
        if data:
            with contextlib.suppress(pickling.CannotEncode):
                cast = encoded = pickling.encode(data)
                if encoded.nbytes <= _SMALL_NBYTES:
                    cast, message = None, _message_of(encoded)
        try:
            if cast is not None:  # first: nobody asks for it before the message has come, and then it is there
                _HEAD.pack_into(message, 0, _BY_LAZYCAST, 0, 0)
                self._lazy.broadcast(cast, timeout_s=math.inf)
        finally:
            self._send(memoryview(message)[:_FIRST_NBYTES])
            if len(message) > _FIRST_NBYTES:
                self._send(memoryview(message)[_FIRST_NBYTES:])
        return data

    def _received(self) -> list[Any]:
        message = bytearray(_FIRST_NBYTES)
        self._by_group(memoryview(message), async_op=False)
        nbytes, *layout = _HEAD.unpack_from(message)
        if nbytes == _NOTHING:
            return []
        if nbytes == _BY_LAZYCAST:
            return self._lazy.broadcast(timeout_s=math.inf)
        if _BODY_AT + nbytes > _FIRST_NBYTES:
            first, message = message, bytearray(_BODY_AT + nbytes)
            message[:_FIRST_NBYTES] = first
            self._by_group(memoryview(message)[_FIRST_NBYTES:], async_op=False)
        body = memoryview(message)[_BODY_AT : _BODY_AT + nbytes]
        received: list[Any] = pickling.decode(body, pickling.Layout(*layout))
        return received

    def _send(self, piece: memoryview) -> None:
        """Begin to broadcast a piece of a message over the group; wait for earlier ones only if many are on their way.

        It takes some hundred microseconds, on a thread of the group's.
        """
        ahead = self._ahead
        while ahead and (len(ahead) >= _MAX_AHEAD or ahead[0].is_completed()):
            ahead.popleft().wait()  # which raises what went wrong
        ahead.append(self._by_group(piece, async_op=True))

    def _by_group(self, piece: memoryview, *, async_op: bool) -> Any:
        torch = _torch()
        tensor = torch.frombuffer(piece, dtype=torch.uint8)  # which keeps what it lies in
        return torch.distributed.broadcast(tensor, self._source, self._group, async_op=async_op)

    def stats(self) -> Stats:
        """Return counts and timings of this rank, as `LazyBroadcast.stats` does.

        Collective: no. Blocking: never. Threads: safe.
        """
        return self._lazy.stats()

    def close(self, *, timeout_s: float | None = None) -> None:
        """Say farewell, as `LazyBroadcast.close` does. Twice is fine.

        Args:
            timeout_s: how long pending calls may take (seconds; 30 by default).
        Raises: RuntimeError, once it is closed, where a broadcast of the group has failed, or is not done in time.
        Collective: no, but a call needs all ranks: close when this rank's last one is done. Blocking: twice up to
            `timeout_s`, on the source until the others have what it has sent, and about a round trip. Threads: not
            beside a call.
        """
        ahead, self._ahead = self._ahead, deque()
        end_s = time.monotonic() + min(_NEVER_S, _CLOSE_S if timeout_s is None else timeout_s)
        try:
            for sent in ahead:
                # Of no time at all the group would make no limit.
                sent.wait(datetime.timedelta(seconds=max(0.001, end_s - time.monotonic())))
        finally:
            self._lazy.close(timeout_s=timeout_s)


def _torch() -> Any:
    return importlib.import_module("torch")


def _message_of(encoded: pickling.Encoded) -> bytearray:
    message = bytearray(max(_FIRST_NBYTES, _BODY_AT + encoded.nbytes))
    _HEAD.pack_into(message, 0, encoded.nbytes, encoded.layout.stream_nbytes, encoded.layout.frames)
    encoded.write_into(memoryview(message)[_BODY_AT : _BODY_AT + encoded.nbytes])
    return message


def replacement(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return what takes the place of a `broadcast_pyobj`."""

    @functools.wraps(original)
    def broadcast_pyobj(
        data: Any, rank: int, dist_group: Any = None, src: int = 0, force_cpu_device: bool = True
    ) -> Any:
        if not force_cpu_device:
            return original(data, rank, dist_group, src, force_cpu_device)
        return _of(dist_group, src).broadcast(data)

    return broadcast_pyobj


def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call what takes the place of a `broadcast_pyobj`, as SGLang's hooks do."""
    return replacement(original)(*args, **kwargs)


def _of(group: Any, src: int) -> RequestBroadcast:
    import torch.distributed as dist

    key = id(group), src
    if key not in _open:
        root = src if group is None else dist.get_group_rank(group, src)  # which is a global rank
        _open[key] = group, RequestBroadcast(group, root=root)
    return _open[key][1]


def install_requests() -> None:
    """Let requests travel by lazycast; a second time does nothing. Every rank of a server has to, or none.

    Raises: UnsupportedReleaseError if this release receives requests in another way.
    Collective: no; the ranks meet at their first requests, for up to 300 s. Blocking: never. Threads: one at a time,
        before the first request.
    """
    if _replaced:
        return
    found = {}
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        if hasattr(module, _FUNCTION):
            found[name] = module
    if not found:
        raise UnsupportedReleaseError(
            f"SGLang {release()} has no {_FUNCTION} where lazycast looks for it: {', '.join(_MODULES)}"
        )
    for name, module in found.items():
        _replaced[name] = getattr(module, _FUNCTION)
        setattr(module, _FUNCTION, replacement(_replaced[name]))


def uninstall_requests() -> None:
    """Undo `install_requests`, and close what was made.

    Collective: no, but do it on every rank. Blocking: as `RequestBroadcast.close`, for each group. Threads: one at a
        time, while no rank receives.
    """
    for name, original in _replaced.items():
        setattr(importlib.import_module(name), _FUNCTION, original)
    _replaced.clear()
    with contextlib.ExitStack() as closing:
        for _, requests in _open.values():
            closing.callback(requests.close)
        _open.clear()
