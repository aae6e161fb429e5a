"""`python -m lazycast.testing`: the conformance suite from a command line. See the package's text."""

from __future__ import annotations

import argparse
import sys
import threading

from lazycast.start import discovery
from lazycast.start.launcher import launch
from lazycast.testing.runner import Outcome, run


def _show(outcome: Outcome) -> None:
    print(f"{'ok    ' if outcome.passed else 'FAILED'} {outcome.name}", flush=True)
    for rank, error in enumerate(outcome.errors):
        if error:
            print(f"--- rank {rank}\n{error}", flush=True)


def _run_here(name: str, only: str, shared_memory: bool | str = "auto") -> bool:
    backend = discovery.resolve(name)
    report = _show if backend.rank == 0 else lambda outcome: None
    outcomes = run(backend, only=only, shared_memory=shared_memory, report=report)
    left = [t.name for t in threading.enumerate() if t.name.startswith("lazycast")]
    if left:
        print(f"rank {backend.rank}: threads left behind: {left}", flush=True)
    if backend.rank == 0:
        failed = sum(not outcome.passed for outcome in outcomes)
        print(f"{len(outcomes) - failed} passed, {failed} failed ({backend.name}, {backend.size} ranks)", flush=True)
    return bool(outcomes) and all(outcome.passed for outcome in outcomes) and not left


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="python -m lazycast.testing", description=__doc__)
    parser.add_argument("--backend", default="auto", help="a backend's name; 'threads' with --launch")
    parser.add_argument("--launch", type=int, metavar="RANKS", help="start so many ranks on this machine")
    parser.add_argument("--only", default="", help="run the behaviours whose name contains this")
    parser.add_argument("--network", action="store_true", help="send everything through the backend, share no memory")
    return parser


def main() -> int:
    options = build_parser().parse_args()
    shared_memory: bool | str = False if options.network else "auto"
    if options.backend == "torch" and options.launch is None:
        import torch.distributed as dist

        dist.init_process_group("gloo")
        passed = _run_here("torch", options.only, shared_memory)
        dist.destroy_process_group()
    elif options.launch is None:
        passed = _run_here(options.backend, options.only, shared_memory)
    else:
        name = "auto" if options.backend == "threads" else options.backend
        arguments = (name, options.only, shared_memory)
        passed = all(launch(_run_here, ranks=options.launch, backend=options.backend, args=arguments, timeout_s=900))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
