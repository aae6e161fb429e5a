"""One rank of a torch group, which `real.measure_apart` starts: prints what it saw, as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json

import torch.distributed as dist

from tools.simulation.real import cast


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.simulation.torch_rank", description=__doc__)
    parser.add_argument("--casts", type=int, required=True)
    args = parser.parse_args()
    dist.init_process_group("gloo")
    print(json.dumps(dataclasses.asdict(cast(args.casts))))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
