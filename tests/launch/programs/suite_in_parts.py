"""As `python -m lazycast.testing --backend torch --network`, of several parts: `suite_in_parts.py values. failures.`"""

from __future__ import annotations

import sys

import torch.distributed as dist

from lazycast.start import discovery
from lazycast.testing import Outcome, run


def show(outcome: Outcome) -> None:
    print(f"{'ok    ' if outcome.passed else 'FAILED'} {outcome.name}", *filter(None, outcome.errors), flush=True)


def main() -> None:
    dist.init_process_group("gloo")
    backend = discovery.resolve("torch")
    report = show if backend.rank == 0 else lambda outcome: None
    outcomes = [it for part in sys.argv[1:] for it in run(backend, only=part, shared_memory=False, report=report)]
    dist.destroy_process_group()
    failed = sum(not outcome.passed for outcome in outcomes)
    if backend.rank == 0:
        print(f"{len(outcomes) - failed} passed, {failed} failed (torch, {backend.size} ranks)", flush=True)
    sys.exit(failed > 0)


main()
