"""Serve a load in each way, on ranks of torchrun or mpirun if they have started this, else on ranks of its own.

$ torchrun --nproc_per_node 2 -m examples.engine
$ python -m examples.engine --backend local --ranks 2
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path

from lazycast import launch

from .inputs import WAYS
from .load import Mix
from .run import Plan, rank

# What launchers leave in the environment.
_STARTED = {"TORCHELASTIC_RUN_ID": "torch", "OMPI_COMM_WORLD_SIZE": "mpi", "PMI_SIZE": "mpi", "PMIX_RANK": "mpi"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = argparse.ArgumentParser(prog="python -m examples.engine", description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--backend", choices=["local", "torch", "mpi"], default="local", help="unless a launcher has started this")
    add("--ranks", type=int, default=2, help="likewise")
    add("--multimodal", default=",".join(WAYS), help=f"ways to get photos to the ranks; default: {','.join(WAYS)}")
    add("--qps", type=float, default=8.0, help="requests that come in a second")
    add("--seconds", type=float, default=10.0, help="for how long they come")
    add("--warm-up", type=float, default=2.0, help="seconds before that, whose times are left out")
    add("--photos", type=float, default=0.7, help="share of requests with 1 to 4 photos")
    add("--aborts", type=float, default=0.1, help="share of clients that hang up")
    add("--bad", type=float, default=0.05, help="share of requests with a broken photo")
    add("--seed", type=int, default=1, help="of the load")
    add("--busy-ms", type=float, default=1.0, help="for how long a step keeps a rank's thread busy")
    add("--step-ms", type=float, default=10.0, help="how long a step takes in all")
    add("--max-batch", type=int, default=16, help="requests that run at a time")
    add("--max-open", type=int, default=256, help="requests under way; more are rejected")
    add("--max-inflight", type=int, default=64, help="casts that a rank may not have asked for")
    add("--helpers", type=int, default=0, help="processes that make the pixels, so that no rank does; with lazycast")
    add("--kill-every", type=float, help="kill a helper every so many seconds, to see that nobody notices")
    add("--json", type=Path, help="where to write all figures")
    return parser


def _arguments() -> argparse.Namespace:
    parser = build_parser()
    arguments = parser.parse_args()
    unknown = set(arguments.multimodal.split(",")) - set(WAYS)
    if unknown:
        parser.error(f"--multimodal: {', '.join(sorted(unknown))}: choose from {', '.join(WAYS)}")
    if arguments.kill_every and not arguments.helpers:
        parser.error("--kill-every needs --helpers")
    return arguments


def main() -> None:
    """Start ranks, unless a launcher has."""
    a = _arguments()
    mix = Mix(a.qps, a.seconds, a.warm_up, a.photos, a.aborts, a.bad, a.seed)
    ways = tuple(a.multimodal.split(","))
    plan = Plan(ways, mix, a.busy_ms / 1e3, a.step_ms / 1e3, a.max_batch, a.max_open, a.max_inflight, a.json)
    plan = dataclasses.replace(plan, helpers=a.helpers, kill_every_s=a.kill_every)
    for mark, kind in _STARTED.items():
        if mark in os.environ:
            rank(kind, plan)
            return
    launch(rank, ranks=a.ranks, backend=a.backend, args=(a.backend, plan))


if __name__ == "__main__":
    main()
