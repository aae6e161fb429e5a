"""How a cast may end on a rank, and with which value: plain Python on the plan.

An ending is a short text: "value", "cancelled", "discarded", or the class of the error, with the rank it names after a
colon. Where chance has a say (who was first, a cancellation or the engine), there are several; then all ranks'
endings are compared afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from lazycast.tools.soak import materializers, payloads
from lazycast.tools.soak.plan import CastPlan, RoundPlan


def payload(plan: CastPlan) -> Any:
    """Make the payload of a cast; each call makes another object."""
    made = payloads.make(plan.kind, plan.nbytes, plan.seed)
    if plan.materializer == "fail":
        return {"payload": made, "ranks": list(range(64)) if plan.rank < 0 else [plan.rank]}
    if plan.materializer == "pause":
        return {"payload": made, "seconds": plan.delay_s}
    return made


def expected(plan: CastPlan, trust: str) -> Any:
    """Make the value of a cast."""
    made = payload(plan)
    if plan.materializer == "fail":
        return materializers.summarize(made["payload"])
    if plan.materializer == "pause":
        return materializers.summarize(made["payload"])
    fn = materializers.named(plan.materializer, plan.seed, trust)
    return made if fn is None else fn(made)


def endings(cast: CastPlan, about: RoundPlan, me: int) -> set[str]:
    """Return how a cast may end on rank `me`."""
    rule = _RULES.get(cast.fault or "")
    allowed = {"value"} if rule is None else rule(cast, about, me)
    if about.tight and "value" in allowed:
        allowed |= {f"EncodeError:{me}", "EncodeError"} if me == about.root else {f"RemoteError:{about.root}"}
    if about.ending == "death":
        allowed = allowed | {f"PeerLostError:{about.rank}"}
    elif about.ending == "close early":
        allowed = allowed | {f"ClosedError:{about.rank}"}
    return allowed


def _raise(cast: CastPlan, about: RoundPlan, me: int) -> set[str]:
    everyone, options = cast.rank < 0, about.options
    placement, agree = options["placement"], _agreed(about)
    here = {f"MaterializeError:{me}"} if everyone or me == cast.rank else {"value"}
    if placement == "root":
        return {f"MaterializeError:{about.root}"} if everyone or cast.rank == about.root else {"value"}
    if agree:  # of several, the first to report is named
        named = {f"MaterializeError:{rank}" for rank in range(64)} if everyone else {f"MaterializeError:{cast.rank}"}
    elif placement == "every" or placement == "demand" or not (about.shared or placement == "auto"):
        return here
    else:
        named = {f"MaterializeError:{rank}" for rank in range(64)} if everyone else {f"MaterializeError:{cast.rank}"}
    if everyone or (placement == "every" or (placement == "shard" and not about.shared)):
        return named
    return named | {"value"}  # who materializes it is not known here


def _mismatch(cast: CastPlan, about: RoundPlan, me: int) -> set[str]:
    error = f"PayloadMismatchError:{cast.rank}"
    if _agreed(about) or me == cast.rank:
        return {error}
    return {"value", error} if about.options["placement"] in ("shard", "auto") else {"value"}


def _time_out(cast: CastPlan, about: RoundPlan, me: int) -> set[str]:
    allowed = {"value"}
    late = set(range(64)) if cast.fault == "slow" else {cast.rank}
    if me in late:
        allowed.add(f"CastTimeoutError:{me}")
    if _agreed(about):  # whose time is over while the ranks agree fails the cast for all
        allowed |= {f"CastTimeoutError:{rank}" for rank in late}
    elif about.root in late:  # before it was sent
        allowed.add(f"CastTimeoutError:{about.root}")
    return allowed


def _agreed(about: RoundPlan) -> bool:
    return bool(about.options["agree"]) and about.options["placement"] != "demand"


def _twice(cast: CastPlan, about: RoundPlan, me: int) -> set[str]:
    if cast.follows is None:
        return {"value"}
    allowed = {"value", f"KeyInUseError:{me}"}
    return allowed if me == about.root else {*allowed, f"RemoteError:{about.root}"}


_RULES: Mapping[str, Callable[[CastPlan, RoundPlan, int], set[str]]] = {
    "raise": _raise,
    "mismatch": _mismatch,
    "time-out": _time_out,
    "slow": _time_out,
    "twice": _twice,
    "unencodable": lambda c, r, me: {"EncodeError", f"EncodeError:{me}"} if me == r.root else {f"RemoteError:{r.root}"},
    "refused": lambda c, r, me: {"TypeError"} if me == r.root else {f"RemoteError:{r.root}"},
    "cancel": lambda c, r, me: {"value", "cancelled"} if me == c.rank else {"value"},
    "cancel on root": lambda c, r, me: {"value", "cancelled"},
    "discard": lambda c, r, me: {"discarded"} if me == c.rank else {"value"},
}


def compared(cast: CastPlan, about: RoundPlan) -> bool:
    """Whether the ranks' endings of a cast are to be compared."""
    return about.tight or cast.fault in ("raise", "cancel on root", "twice", "mismatch", "time-out", "slow")


def disagreement(cast: CastPlan, about: RoundPlan, seen: Mapping[int, str]) -> str | None:
    """Say what is wrong if endings that were each allowed do not go together. `seen` has every rank."""
    if cast.fault == "twice":
        return _twice_disagreement(cast, about, seen)
    agreed = _agreed(about)
    if cast.fault in ("time-out", "slow"):
        if agreed and seen[about.root].startswith("CastTimeoutError") and "value" in seen.values():
            return f"the root's time was over before all had agreed, and some got the value: {dict(seen)}"
        return None
    one_for_all = cast.fault == "cancel on root" or (cast.fault in ("raise", "mismatch") and agreed)
    kinds = set(seen.values())
    if one_for_all and not about.tight and len(kinds) > 1:
        return f"not the same on all ranks: {dict(seen)}"
    root_failed = seen[about.root].startswith("EncodeError")
    others = {rank: ending for rank, ending in seen.items() if rank != about.root}
    if about.tight and cast.fault is None and any(e.startswith("RemoteError") != root_failed for e in others.values()):
        return f"a failure of the root is everybody's, and nothing else is: {dict(seen)}"
    return None


def _twice_disagreement(cast: CastPlan, about: RoundPlan, seen: Mapping[int, str]) -> str | None:
    if cast.follows is None:
        return None
    refused = not seen[about.root].startswith("value")
    for rank, ending in seen.items():
        if rank != about.root and ending.startswith("RemoteError") != refused and not ending.startswith("KeyInUse"):
            return f"rank {rank} saw another cast than the root made: {dict(seen)}"
    return None


def wrong_rights(value: Any, made: Any, about: RoundPlan, cast: CastPlan, me: int) -> str | None:
    """Say so if an array of a value that was cast as it is may be written to where it must not, or the reverse."""
    if cast.materializer is not None or me == about.root or about.options["replicated"]:
        return None
    got, wanted = list(payloads.arrays(value)), list(payloads.arrays(made))
    for have, want in zip(got, wanted, strict=True):
        may = want.flags.writeable and about.options["values"] != "readonly"
        if have.size and have.flags.writeable != may:
            return f"an array is {'writable' if have.flags.writeable else 'read-only'}, and should not be"
    return None


def overwrite(value: Any) -> None:
    """Write to all arrays of a value that may be written to: it is this rank's alone."""
    for array in payloads.arrays(value):
        if array.flags.writeable and array.size:
            array[...] = array.reshape(-1)[:1] == 0


def unplanned(ending: str, allowed: Collection[str]) -> str:
    """Say how a cast ended that should have ended otherwise."""
    shown = sorted(allowed)
    more = f" or {len(shown) - 4} more" if len(shown) > 4 else ""
    return f"{ending}, where {' or '.join(shown[:4])}{more} is right"
