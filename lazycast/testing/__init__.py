"""A conformance suite for backends, to be run by whoever writes one.

Start it under the backend's own launcher, on as many ranks as you like:

    torchrun --nproc_per_node 4 -m lazycast.testing --backend torch
    mpirun -n 4 python -m lazycast.testing --backend mpi
    python -m lazycast.testing --backend local --launch 4

It checks the contract of `lazycast.net.backend` (module `contract`) and that `LazyBroadcast` behaves on it (modules
`values`, `placements`, `helpers`, `memory`, `failures`, `pressure`, `lifecycle`, `roots`, `load`, `trust`). Or call
`run(backend)` on every rank from a test of your own.
"""

from lazycast.testing.runner import Outcome, run

__all__ = ["Outcome", "run"]
