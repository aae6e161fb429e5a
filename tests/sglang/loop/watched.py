"""Schedulers that are watched: after each iteration the queues of all ranks are compared."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_GATE_S = 60.0


class Watch:
    """What a rank does beside its work. Called in each rank, before its scheduler is made.

    Args:
        folder: shared by the ranks and the test.
        gated: whether hashing on lazycast's threads waits while the gate is closed.
    """

    def __init__(self, folder: Path, *, gated: bool = False) -> None:
        self._folder, self._gated = folder, gated
        self._before = dict.fromkeys(range(2), 0)

    def __call__(self, rank: int) -> None:
        from sglang.srt.managers.scheduler import Scheduler

        Scheduler.process_input_requests = self._compared(Scheduler.process_input_requests, rank)
        if self._gated:
            from lazycast.adapters.sglang import stages

            stages.hash_beforehand = self._behind_the_gate(stages.hash_beforehand)  # type: ignore[assignment]

    # In the ranks

    def _compared(self, original: Callable[..., Any], rank: int) -> Callable[..., Any]:
        seen: set[tuple[str, str]] = set()  # in the iteration before
        written = open(self._folder / f"rank-{rank}.jsonl", "a", buffering=1)  # noqa: SIM115

        def process_input_requests(self: Any, received: list[Any]) -> Any:
            import torch.distributed as dist

            done = original(self, received)
            desk = getattr(self, "_lazycast_desk", None)
            aside = [] if desk is None else [kept.request.rid for kept in desk.aside._kept.values()]
            queue = [(req.rid, digest(req)) for req in self.waiting_queue]
            state = queue, aside, [req.rid for req in self.running_batch.reqs]
            broadcast = vars(self).get("_lazycast_broadcast")
            now = {*queue, *((rid, "aside") for rid in aside)}
            for rid, found in now - seen:
                casts = 0 if broadcast is None else broadcast.stats().casts
                written.write(json.dumps({"rid": rid, "inputs": found, "casts": casts}) + "\n")
            seen.clear()
            seen.update(now)
            # After that, so that what the first rank says of this iteration comes when all have written.
            states: list[Any] = [None] * dist.get_world_size(self.tp_cpu_group)
            dist.all_gather_object(states, state, group=self.tp_cpu_group)
            assert all(other == states[0] for other in states), f"ranks have diverged: {states}"
            return done

        return process_input_requests

    def _behind_the_gate(self, original: Callable[..., None]) -> Callable[..., None]:
        gate = self._folder / "closed"

        def hash_beforehand(items: list[Any], *, copies: bool) -> None:
            end_s = time.monotonic() + _GATE_S
            while gate.exists():
                assert time.monotonic() < end_s, "the gate was never opened"
                time.sleep(0.005)
            pixels = (item.feature for item in items if not isinstance(item.feature, str))
            if any(float(one[0, 0]) == DAMAGED for one in pixels):
                raise ValueError("this image is damaged")
            original(items, copies=copies)

        return hash_beforehand

    # In the test

    def begin(self) -> None:
        """Look at nothing that has been written before. No request may be on its way."""
        self._before = {rank: len(self._lines(rank)) for rank in self._before}

    def close_gate(self) -> None:
        (self._folder / "closed").touch()

    def open_gate(self) -> None:
        (self._folder / "closed").unlink()

    def inputs(self, rank: int = 0) -> dict[str, str]:
        """Return what each request's prompt has become, pad values included."""
        return {one["rid"]: one["inputs"] for one in self._written(rank) if one["inputs"] != "aside"}

    def aside(self, rank: int = 0) -> set[str]:
        """Return who has been put aside."""
        return {one["rid"] for one in self._written(rank) if one["inputs"] == "aside"}

    def casts(self, rank: int = 0) -> int:
        """Return how many casts there had been when a request was last seen."""
        return max((one["casts"] for one in self._written(rank)), default=0)

    def _written(self, rank: int) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._lines(rank)[self._before[rank] :]]

    def _lines(self, rank: int) -> list[str]:
        path = self._folder / f"rank-{rank}.jsonl"
        return path.read_text().splitlines() if path.exists() else []


#: The first number of an image that cannot be hashed behind the gate.
DAMAGED = 4096.0


def digest(req: Any) -> str:
    return hashlib.sha256(repr(list(req.origin_input_ids)).encode()).hexdigest()[:16]
