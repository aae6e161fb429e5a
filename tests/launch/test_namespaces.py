"""Two hosts of two ranks, each in a network namespace: torchrun on two nodes, and what the root's wire carries."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.namespaces import need, two_hosts

BIN = Path(sys.executable).parent
NBYTES = 32 << 20
CASTS = 3

RANK = """
import json, pathlib, sys
import numpy as np
import torch.distributed as dist
from lazycast import LazyBroadcast
from lazycast.backends.torch_distributed import TorchBackend

def say(what):  # in one piece: ranks share their standard output
    sys.stdout.write(json.dumps(what) + "\\n")
    sys.stdout.flush()


nbytes, casts, interface = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
counter = pathlib.Path(f"/sys/class/net/{interface}/statistics/tx_bytes")

dist.init_process_group("gloo")
with LazyBroadcast(backend=TorchBackend(), timeout_s=90) as lazy:
    payload = np.random.default_rng(7).integers(0, 255, nbytes, np.uint8)
    assert lazy.broadcast("all here") == "all here"
    before = int(counter.read_text()) if lazy.is_root else 0
    for n in range(casts):
        payload[n] = 77
        value = lazy.broadcast(payload if lazy.is_root else None)
        # With agreement, the root's future is done when every rank has it all.
        sent = int(counter.read_text()) - before if lazy.is_root else 0
        assert np.array_equal(value, payload)
    hosts = lazy.stats().hosts
    say({"rank": lazy.rank, "hosts": hosts, "sent": sent})
    lazy.broadcast("all have said so")
with LazyBroadcast(np.negative, backend=TorchBackend(), placement="shard", timeout_s=90) as lazy:
    for n in range(4):
        assert np.array_equal(lazy.broadcast(payload if lazy.is_root else None), np.negative(payload))
    made = lazy.stats().materialize.count
    say({"rank": lazy.rank, "made": made})
    dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
def test_the_roots_wire_carries_each_payload_once(tmp_path: Path) -> None:
    need()
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    with two_hosts() as ends:
        address = ends[0][2]
        nodes = []
        try:
            for node, (namespace, interface, _) in enumerate(ends):
                torchrun = [str(BIN / "torchrun"), "--nnodes", "2", "--nproc_per_node", "2", "--node_rank", str(node)]
                meet = ["--rdzv_backend=static", "--master_addr", address, "--master_port", "29577"]
                command = [*torchrun, *meet, str(script), str(NBYTES), str(CASTS), interface]
                nodes.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", namespace, *command],
                        env={**os.environ, "GLOO_SOCKET_IFNAME": interface, "OMP_NUM_THREADS": "1"},
                        stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE,
                        text=True,
                    )
                )
            outputs = [node.communicate(timeout=180) for node in nodes]
        finally:
            for node in nodes:  # torchrun ends its ranks when it is told to
                node.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    node.wait(20)
                node.kill()
                node.communicate()
    assert [node.returncode for node in nodes] == [0, 0], outputs
    said = [json.loads(line) for stdout, _ in outputs for line in stdout.splitlines() if line.startswith("{")]
    made = {line["rank"]: line["made"] for line in said if "made" in line}
    assert made == dict.fromkeys(range(4), 2), outputs  # four casts: once on each host, by its two ranks in turn
    said = [line for line in said if "sent" in line]
    assert sorted(line["rank"] for line in said) == [0, 1, 2, 3], outputs
    for line in said:
        assert line["hosts"] == [[0, 1], [2, 3]], line
        if line["rank"] == 0:
            assert CASTS * NBYTES <= line["sent"] <= 1.05 * CASTS * NBYTES, line
