"""Deferred admission: a scheduler puts requests aside while their inputs are made, and goes on.

On receipt every rank starts the cast of a request's inputs and puts the request aside. When the entry rank's future is
done, all ranks have the inputs; it says so with what SGLang itself broadcasts to begin the next iteration, and in that
iteration every rank hands the request, with its inputs, to SGLang's own dispatcher. No other message is sent.

Guarantees:

* All ranks put the same requests aside, hand them on and drop them in the same iteration, in the same order: waiting
  queues stay identical.
* Requests are handed on as `Aside` says; what is not put aside goes on at once, so it may overtake. Sessions, batches
  and what lies on a device are not put aside.
* An abort or a time-out ends what is aside on every rank in the same iteration, and withdraws its cast.
* A request whose inputs cannot be made ends with status 500. An error of one rank alone, where the entry rank has said
  that all have their inputs, is raised: the ranks would diverge.
* The scheduler's thread alone calls this.
"""

from __future__ import annotations

import importlib
import inspect
import logging
from http import HTTPStatus
from typing import Any

from lazycast.errors import LazycastError

from .aside import Admission, Aside, Kept
from .binding import setting
from .broadcast import SGLangBroadcast
from .features import leave, leave_unopened
from .futures import InputsFuture

logger = logging.getLogger("lazycast")

#: What is hooked; a release that lacks one of them is not deferred.
POLL, PROCESS, IDLE = "_poll_timeout_aborts", "process_input_requests", "is_fully_idle"
#: How many parameters each has, which the hooks count on.
_NEEDED = {POLL: 1, PROCESS: 2, IDLE: 3, "send_abort_output": 3}
_ATTRIBUTE = "_lazycast_desk"
_MESSAGES = "sglang.srt.managers.io_struct"
_ALONE = ("session_params", "session_id", "positional_embed_overrides")  # where order matters, or SGLang does more


class Desk:
    """What one scheduler has put aside, and how it gets there and away.

    Args:
        scheduler: SGLang's.
        broadcast: over the ranks that share its waiting queue.
    """

    def __init__(self, scheduler: Any, broadcast: SGLangBroadcast) -> None:
        self._scheduler, self._broadcast = scheduler, broadcast
        self._messages = importlib.import_module(_MESSAGES)
        self._requests = (self._messages.TokenizedGenerateReqInput, self._messages.TokenizedEmbeddingReqInput)
        self.aside = Aside()

    def said(self) -> list[Any]:
        """On the entry rank: return what all ranks are to hear in this iteration."""
        told: list[Any] = []
        limit_s = float(setting("SGLANG_REQ_WAITING_TIMEOUT", 0.0))
        if limit_s > 0:
            told += [self._timed_out(kept) for kept in self.aside.older_than(limit_s)]
        admission = self.aside.decided()
        return told if admission is None else [*told, admission]

    def sort(self, received: list[Any]) -> None:
        """Put aside, hand on and end: change in place what an iteration has received to what is dispatched in it."""
        passed: list[Any] = []
        for request in received:
            if isinstance(request, Admission):
                passed += [self._completed(kept, failure) for kept, failure in self.aside.take(request)]
                continue
            if isinstance(request, self._messages.AbortReq):
                self._abort(request)
            elif self.is_deferred(request):
                raw = request.mm_inputs
                unopened = leave(raw.mm_items)
                self.aside.keep(request, raw, self._begun(raw), unopened)
                continue
            passed.append(request)
        received[:] = passed

    def is_deferred(self, request: Any) -> bool:
        """Whether a request is put aside when it is received. The same on every rank."""
        return (
            isinstance(request, self._requests)
            and request.mm_inputs is not None
            and all(getattr(request, name, None) is None for name in _ALONE)
            and self._broadcast.is_worth_waiting(request.mm_inputs)
        )

    def _begun(self, raw: Any) -> InputsFuture:
        try:
            return self._broadcast.process_async(raw)
        except LazycastError as exc:  # the call has counted: the entry rank learns of it, and says so to all
            return failed(exc)

    def _completed(self, kept: Kept, failure: str | None) -> Any:
        if failure is None:
            kept.request.mm_inputs = kept.future.result()  # here, or on its way: the entry rank's was settled first
            _release_features(kept)
            return kept.request
        logger.warning("lazycast: request %r has no inputs: %s", kept.request.rid, failure)
        kept.future.cancel()
        _release(kept)
        kept.request.mm_inputs = self._messages.MMInputsProcessError(failure)
        return kept.request

    def _abort(self, abort: Any) -> None:
        for kept in self.aside.withdraw(abort.rid, every=abort.abort_all):
            kept.future.cancel()
            _release(kept)
            answer = self._messages.AbortReq(rid=kept.request.rid, finished_reason=abort.finished_reason)
            self._scheduler.send_abort_output(answer, kept.request)

    def _timed_out(self, kept: Kept) -> Any:
        """Return the abort that SGLang would make of it in the waiting queue."""
        text = "Request waiting timeout reached."
        reason = {"type": "abort", "status_code": HTTPStatus.SERVICE_UNAVAILABLE, "message": text}
        return self._messages.AbortReq(rid=kept.request.rid, abort_message=text, finished_reason=reason)


def _release_features(kept: Kept) -> None:
    for unopened in kept.unopened:
        unopened.release()


def failed(exc: BaseException) -> InputsFuture:
    """Return a future that has failed."""
    future = InputsFuture()
    future.set_exception(exc)
    return future


def _release(kept: Kept) -> None:
    """Give back what other processes hold for a request's inputs, as SGLang does."""
    _release_features(kept)
    for item in kept.raw.mm_items:
        item.release_transport_proxies()


def can_defer(cls: type) -> bool:
    """Whether this release's scheduler has what deferred admission needs, as it is known."""
    found = {name: getattr(cls, name, None) for name in _NEEDED}
    known = all(
        callable(method) and len(inspect.signature(method).parameters) == _NEEDED[name]
        for name, method in found.items()
    )
    return known and hasattr(importlib.import_module(_MESSAGES), "MMInputsProcessError")


def is_of_a_kind_that_defers(scheduler: Any) -> bool:
    """Whether a scheduler puts requests aside. The ranks of its group say so in their handshake.

    False for later stages of a pipeline, whose requests come with their inputs made; groups that leave out ranks which
    share the waiting queue; servers that split prefill from decoding, or encoding from both, or pass features or
    requests by other means.
    """
    context = importlib.import_module("sglang.srt.runtime_context")
    parallel = context.get_parallel()
    mode = scheduler.disaggregation_mode
    return bool(
        parallel.pp_rank == 0
        and not (parallel.attn_dp_enabled and parallel.attn_cp_size > 1)
        and mode == type(mode).NULL
        and not context.get_disagg().language_only
        and not getattr(scheduler, "enable_pdmux", False)
        and context.get_mm().mm_feature_transport != "cuda_vmm"
        and not setting("SGLANG_RUST_SERVER", False)
    )


def open_desk(scheduler: Any, broadcast: SGLangBroadcast) -> Desk:
    """Let a scheduler defer from now on. Every rank of its group does."""
    desk = Desk(scheduler, broadcast)
    setattr(scheduler, _ATTRIBUTE, desk)
    leave_unopened(scheduler, desk.is_deferred)
    return desk


def desk_of(scheduler: Any) -> Desk | None:
    """Return the scheduler's desk, if it defers."""
    found: Desk | None = vars(scheduler).get(_ATTRIBUTE)
    return found


# The hooks, as SGLang's registry calls them.


def after_poll(aborts: list[Any], scheduler: Any) -> list[Any]:
    """After `_poll_timeout_aborts`, on the entry rank: what is broadcast with what has been received."""
    desk = desk_of(scheduler)
    return aborts if desk is None else [*aborts, *desk.said()]


def before_process(scheduler: Any, received: list[Any], *args: Any, **kwargs: Any) -> None:
    """Before `process_input_requests`, on every rank. A pipeline passes the same list on to its next stage."""
    desk = desk_of(scheduler)
    if desk is not None:
        desk.sort(received)


def after_idle(idle: bool, scheduler: Any, for_health_check: bool = False, ignore_waiting: bool = False) -> bool:
    """After `is_fully_idle`: what is aside is work, of which neither the cache nor the device knows yet."""
    desk = desk_of(scheduler)
    return idle and (desk is None or not desk.aside or for_health_check or ignore_waiting)
