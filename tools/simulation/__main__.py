"""`python -m tools.simulation --ranks 8,64,4096 --json out.json`: times and messages over ranks, as a table."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from tools.simulation.group import Group, Plan
from tools.simulation.machine import Speeds


def simulate(plan: Plan) -> dict[str, Any]:
    """Return a row of the table: times in seconds, the median over casts; messages and costs per cast."""
    began_s = time.perf_counter()
    out = Group(plan).run()
    casts, half = plan.casts, plan.casts // 2
    found = {"value_s": out.value_s, "verdict_s": out.verdict_s}
    middle = {name: None if None in took else sorted(t or 0.0 for t in took)[half] for name, took in found.items()}
    # The last rank of the last host, and the leader of the root's first neighbour.
    deaths = {"rank_news_s": plan.ranks - 1, "leader_news_s": plan.per_host}
    news = {
        name: Group(dataclasses.replace(plan, casts=1, dies=rank)).run().news_s if 0 < rank < plan.ranks else None
        for name, rank in deaths.items()
    }
    return {
        "ranks": plan.ranks,
        "combined": plan.combined,
        **middle,
        **news,
        "root_gets": sum(out.root_got.values()) / casts,
        "root_sends": sum(out.root_sent.values()) / casts,
        "root_cpu_s": out.root_cpu_s / casts,
        "books_s": out.books_s / casts,
        "took_s": time.perf_counter() - began_s,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return rows as Markdown; times in milliseconds."""
    columns = [name for name in rows[0] if name != "took_s"]
    lines = ["| " + " | ".join(name.replace("_s", ", ms") if name.endswith("_s") else name for name in columns) + " |"]
    lines.append("|" + "---|" * len(columns))
    lines += ["| " + " | ".join(_shown(name, row[name]) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value * 1000:.2f}" if name.endswith("_s") else f"{value:.0f}"
    return str(value)


def main() -> None:
    defaults = Plan(8)
    parser = argparse.ArgumentParser(prog="python -m tools.simulation", description=__doc__)
    parser.add_argument("--ranks", default="8,64,512,4096,10000", help="sizes of groups, with commas between")
    parser.add_argument("--casts", type=int, default=5)
    parser.add_argument("--nbytes", type=int, default=defaults.nbytes, help="of each cast's body")
    parser.add_argument("--make-us", type=float, default=defaults.make_s * 1e6, help="what a value takes to make")
    parser.add_argument("--slow", type=float, default=0.0, help="share of ranks that take five times as long")
    parser.add_argument("--cores", type=int, default=defaults.speeds.cores, help="of each host")
    parser.add_argument("--send-us", type=float, default=defaults.speeds.send_s * 1e6, help="CPU time of one message")
    parser.add_argument("--receive-us", type=float, default=defaults.speeds.receive_s * 1e6)
    parser.add_argument("--no-agree", action="store_true", help="casts without agreement: ranks tell what they read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="where to write the rows and the assumptions")
    args = parser.parse_args()
    speeds = Speeds(send_s=args.send_us / 1e6, receive_s=args.receive_us / 1e6, cores=args.cores)
    plan = dataclasses.replace(
        defaults,
        casts=args.casts,
        nbytes=args.nbytes,
        make_s=args.make_us / 1e6,
        slow=args.slow,
        agree=not args.no_agree,
        seed=args.seed,
        speeds=speeds,
    )
    sizes = [int(size) for size in args.ranks.split(",")]
    rows = [
        simulate(dataclasses.replace(plan, ranks=size, combined=combined))
        for size in sizes
        for combined in (True, False)
    ]
    print(table(rows))
    if args.json is not None:
        args.json.write_text(json.dumps({"plan": dataclasses.asdict(plan), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
