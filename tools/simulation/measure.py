"""Large groups simulated, small ones simulated and real: `python -m tools.simulation.measure --out FILE.json`.

The real ones are processes on the cores of one machine: on the local backend with labels as hosts, and on torch in
network namespaces, which need root. Two of them tell what a message costs: two ranks mostly how long the waking of a
rank takes, and the most ranks of one host mostly what a message takes of a processor. With that the simulation predicts
the others, and large groups. Takes about two minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lazycast.tools.bench import machine
from tools.simulation.__main__ import simulate
from tools.simulation.group import Group, Plan
from tools.simulation.machine import Speeds
from tools.simulation.real import measure, measure_apart

SIZES = (8, 64, 512, 4096, 10000)
# Ranks, and how many of them on each host.
TWO, MANY = (2, 1), (32, 32)  # those that are fitted to
GROUPS = (TWO, (4, 2), (8, 2), (8, 4), (16, 2), (32, 4), (4, 4), (16, 16), MANY)
APART = ((2, 1), (4, 2), (8, 2), (16, 2))
CASTS = 30
SLOWEST = 1e4  # times the defaults: what a fit looks through
WAKING_S = 1.0  # likewise


def on_one_machine(cores: int, *, slower: float = 1.0, waking_s: float | None = None) -> Speeds:
    """Return what messages cost processes of one machine: `slower` times the defaults, and a waking each."""
    usual = Speeds()
    latency_s = usual.latency_s if waking_s is None else waking_s
    return dataclasses.replace(
        usual,
        send_s=usual.send_s * slower,
        receive_s=usual.receive_s * slower,
        latency_s=latency_s,
        far_latency_s=latency_s,
        cores=cores,
        one_machine=True,
    )


def predicted(ranks: int, per_host: int, speeds: Speeds) -> dict[str, float]:
    """Simulate a group whose values cost nothing."""
    out = Group(Plan(ranks, per_host=per_host, make_s=0.0, speeds=speeds)).run()
    (value_s,), (verdict_s,) = out.value_s, out.verdict_s
    assert value_s is not None, "nobody dies"
    assert verdict_s is not None, "nobody dies"
    return {"value_s": value_s, "verdict_s": verdict_s, "reports": out.root_got["Report"]}


def fitted(two_s: float, many_s: float, cores: int) -> Speeds:
    """Return the speeds with which `TWO` and `MANY` ranks take so long to a verdict, in seconds.

    Raises:
        ValueError: none do.
    """

    def waking_s(slower: float) -> float:
        return _where(lambda it: _verdict_s(TWO, on_one_machine(cores, slower=slower, waking_s=it)), two_s, WAKING_S)

    def many(slower: float) -> float:
        return _verdict_s(MANY, on_one_machine(cores, slower=slower, waking_s=waking_s(slower)))

    # Beyond this, messages alone would take two ranks longer.
    most = _where(lambda it: _verdict_s(TWO, on_one_machine(cores, slower=it, waking_s=0.0)), two_s, SLOWEST)
    slower = _where(many, many_s, most)
    return on_one_machine(cores, slower=slower, waking_s=waking_s(slower))


def _verdict_s(group: tuple[int, int], speeds: Speeds) -> float:
    return predicted(*group, speeds)["verdict_s"]


def _where(grows: Callable[[float], float], target: float, most: float) -> float:
    """Return where a function between 0 and `most` reaches a value. Raises: ValueError if it does nowhere."""
    low, high = 0.0, most
    if not grows(low) <= target <= grows(high):
        raise ValueError(f"{target} s to a verdict: no cost of a message explains that")
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if grows(middle) < target else (low, middle)
    return low


def compare(casts: int) -> tuple[dict[str, Any], Speeds]:
    """Measure real groups, and predict them from two of them. Returns the comparison, and what was fitted."""
    cores = machine.describe()["cores"]
    real = {("labels", group): measure(*group, casts) for group in GROUPS}
    real |= {("namespaces", group): measure_apart(*group, casts) for group in APART}
    speeds = fitted(*(real["labels", group]["verdict_s"] for group in (TWO, MANY)), cores=cores)
    rows = [
        {"hosts_are": hosts_are, "ranks": ranks, "per_host": per_host, "real": row}
        | {"simulated": predicted(ranks, per_host, speeds)}
        for (hosts_are, (ranks, per_host)), row in real.items()
    ]
    return {"casts": casts, "speeds": dataclasses.asdict(speeds), "rows": rows}, speeds


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
    run["compared"], here = compare(args.casts)
    usual = Speeds()
    speeds = dataclasses.replace(
        usual,
        send_s=here.send_s,
        receive_s=here.receive_s,
        latency_s=here.latency_s + usual.latency_s,
        far_latency_s=here.latency_s + usual.far_latency_s,
    )
    run["plan"] = dataclasses.asdict(Plan(SIZES[0], speeds=speeds))
    plans = [Plan(size, combined=combined, speeds=speeds) for size in SIZES for combined in (True, False)]
    run["simulated"] = [simulate(plan) for plan in plans]
    args.out.write_text(json.dumps(run, indent=1) + "\n")


if __name__ == "__main__":
    main()
