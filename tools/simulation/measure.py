"""Large groups simulated, small ones simulated and real: `python -m tools.simulation.measure --out FILE.json`.

The real ones are processes on the cores of one machine: on the local backend with labels as hosts, and on torch in
network namespaces, which need root. The two ranks of the smallest tell what a message costs; with that the simulation
predicts the others, and large groups. Takes about five minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

from lazycast.tools.bench import machine
from tools.simulation.__main__ import simulate
from tools.simulation.group import Group, Plan
from tools.simulation.machine import Speeds
from tools.simulation.real import measure, measure_apart

SIZES = (8, 64, 512, 4096, 10000)
# Ranks, and how many of them on each host.
GROUPS = ((2, 1), (4, 2), (8, 2), (8, 4), (16, 2), (32, 4), (4, 4), (16, 16), (32, 32))
APART = ((2, 1), (4, 2), (8, 2), (16, 2))
CASTS = 30
SLOWEST = 1e4  # times the defaults: what a calibration looks through


def predicted(ranks: int, per_host: int, factor: float, cores: int) -> dict[str, float]:
    """Simulate a group on one machine whose messages cost `factor` times the defaults; values cost nothing."""
    usual = Speeds()
    speeds = dataclasses.replace(
        usual,
        send_s=usual.send_s * factor,
        receive_s=usual.receive_s * factor,
        far_latency_s=usual.latency_s,
        cores=cores,
        one_machine=True,
    )
    out = Group(Plan(ranks, per_host=per_host, make_s=0.0, speeds=speeds)).run()
    (value_s,), (verdict_s,) = out.value_s, out.verdict_s
    assert value_s is not None, "nobody dies"
    assert verdict_s is not None, "nobody dies"
    return {"value_s": value_s, "verdict_s": verdict_s, "reports": out.root_got["Report"]}


def calibrated(verdict_s: float, cores: int) -> float:
    """Return the factor with which two ranks of two hosts take so long to a verdict.

    Raises:
        ValueError: no factor up to `SLOWEST` does.
    """
    low, high = 0.0, SLOWEST
    if not predicted(2, 1, low, cores)["verdict_s"] <= verdict_s <= predicted(2, 1, high, cores)["verdict_s"]:
        raise ValueError(f"two ranks took {verdict_s} s to a verdict: no cost of a message explains that")
    for _ in range(60):
        factor = (low + high) / 2
        low, high = (factor, high) if predicted(2, 1, factor, cores)["verdict_s"] < verdict_s else (low, factor)
    return high


def compare(casts: int) -> dict[str, Any]:
    """Measure real groups, and predict them from the first."""
    cores = machine.describe()["cores"]
    real = [("labels", group, measure(*group, casts)) for group in GROUPS]
    real += [("namespaces", group, measure_apart(*group, casts)) for group in APART]
    factor = calibrated(real[0][2]["verdict_s"], cores)
    rows = [
        {
            "hosts_are": hosts_are,
            "ranks": ranks,
            "per_host": per_host,
            "real": row,
            "simulated": predicted(ranks, per_host, factor, cores),
        }
        for hosts_are, (ranks, per_host), row in real
    ]
    usual = Speeds()
    return {"casts": casts, "send_s": usual.send_s * factor, "receive_s": usual.receive_s * factor, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.simulation.measure", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="where to write all of it, as JSON")
    parser.add_argument("--casts", type=int, default=CASTS, help="of each real group")
    args = parser.parse_args()
    run: dict[str, Any] = {
        "benchmark": "scaling",
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "machine": machine.describe(),
        "versions": machine.versions("local"),
    }
    run["compared"] = found = compare(args.casts)
    speeds = dataclasses.replace(Speeds(), send_s=found["send_s"], receive_s=found["receive_s"])
    run["plan"] = dataclasses.asdict(Plan(SIZES[0], speeds=speeds))
    plans = [Plan(size, combined=combined, speeds=speeds) for size in SIZES for combined in (True, False)]
    run["simulated"] = [simulate(plan) for plan in plans]
    args.out.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
