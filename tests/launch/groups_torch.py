"""Run by torchrun with 4 ranks: sub-groups whose first rank is not 0, not taking part, a group made anew.

Prints one line a rank, "rank N fine"; anything else is an error.
"""

from __future__ import annotations

import sys

import torch.distributed as dist

from lazycast import BackendUnavailableError, LazyBroadcast
from lazycast.backends.torch_distributed import TorchBackend
from lazycast.testing.kit import raises


def main() -> None:
    dist.init_process_group("gloo")
    me = dist.get_rank()
    high, odd = dist.new_group([2, 3]), dist.new_group([3, 1])
    for members, group in (([2, 3], high), ([1, 3], odd)):  # torch sorts a group's ranks
        if me in members:
            for root in (0, 1):  # group-local, so global 2 and 3, or 1 and 3
                with LazyBroadcast(backend=TorchBackend(group) if root else group, root=root) as lazy:
                    assert lazy.rank == members.index(me), (lazy.rank, me)
                    assert lazy.size == 2
                    assert lazy.is_root == (me == members[root])
                    assert lazy.broadcast(f"from {me}") == f"from {members[root]}"
        else:
            raises(BackendUnavailableError, f"global rank {me}", lambda group=group: TorchBackend(group))
    with LazyBroadcast() as lazy:  # the default group, while the sub-groups did something else
        assert lazy.broadcast(me) == 0
    if me in (2, 3):
        dist.destroy_process_group(high)
    again = dist.new_group([2, 3])
    if me in (2, 3):
        with LazyBroadcast(backend=TorchBackend(again), root=1) as lazy:
            assert lazy.broadcast(me) == 3
    dist.destroy_process_group()
    sys.stdout.write(f"rank {me} fine\n")


main()
