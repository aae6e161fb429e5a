"""Something to look at: four ranks that cast photos in bursts, some of which are none, and figures for Prometheus.

    $ python examples/operations/program.py --seconds 600

Needs: pip install '.[prometheus]'
"""

from __future__ import annotations

import argparse
import random
import time

from prometheus_client import start_http_server

import lazycast.watch.prometheus
from lazycast import LazyBroadcast, MaterializeError, Tuning, launch

BURST = 24


def develop(photo: tuple[str, bytes]) -> bytes:
    """Takes some milliseconds, and fails for one name in ten."""
    name, data = photo
    time.sleep(random.uniform(0.001, 0.02))
    if name.endswith("7"):
        raise ValueError(f"{name} is no photo")
    return data[::-1]


def rank(seconds: float, host: str, port: int) -> tuple[int, int]:
    """On each rank: cast for so long. The root serves what it knows of all ranks. Returns values and failures."""
    values = failures = 0
    with LazyBroadcast(develop, name="photos", tuning=Tuning(max_inflight=BURST // 3)) as lazy:
        if lazy.is_root:
            lazycast.watch.prometheus.register(lazy, group=True)
            server, _ = start_http_server(port, addr=host)
            print(f"figures are at http://{host}:{server.server_port}/metrics", flush=True)
        until_s, last = time.monotonic() + seconds, False
        while not last:
            last = lazy.broadcast(time.monotonic() > until_s, materialize=bool)  # the root decides for all
            photos = [(f"photo-{random.randrange(140)}", bytes(200_000)) for _ in range(BURST)]
            for future in [lazy.broadcast_async(photo) for photo in photos]:
                try:
                    values += len(future.result()) > 0
                except MaterializeError:
                    failures += 1
    if lazy.is_root:
        server.shutdown()
        server.server_close()
    return values, failures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--host", default="0.0.0.0", help="where to serve; default: containers reach it")
    parser.add_argument("--port", type=int, default=9400)
    args = parser.parse_args()
    for number, (values, failures) in enumerate(
        launch(rank, ranks=4, args=(args.seconds, args.host, args.port), timeout_s=args.seconds + 60)
    ):
        print(f"rank {number}: {values} values, {failures} failures")
