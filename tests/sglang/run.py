"""Run the tests of the SGLang adapter: each release, in its own environment, on 2 and on 4 ranks.

    python tests/sglang/run.py [--release 0.5.9] [--ranks 2] [pytest options]

Exit code 0 only if every rank of every run has passed; 1 also if SGLang could not be fetched.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

from environment import RELEASES, borrow

HERE = Path(__file__).resolve().parent
LIMIT_S = 300.0


def one_run(python: Path, ranks: int, options: list[str]) -> int:
    """Run all tests on `ranks` ranks. Returns the exit code; nothing is left behind, whatever happens."""
    torchrun = [str(python), "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [
        *torchrun,
        str(HERE / "rank.py"),
        "-c",
        str(HERE / "pytest.ini"),
        f"--rootdir={HERE}",
        *options,
        str(HERE),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen(command, cwd=HERE, env=environment, start_new_session=True)
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"no end within {LIMIT_S:g} s", file=sys.stderr)
        return 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def example(python: Path) -> int:
    """Run the example as its docstring says. Returns the exit code, 1 also if ranks have got different hashes."""
    torchrun = [str(python), "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"]
    command = [*torchrun, str(HERE.parents[1] / "examples" / "sglang" / "scheduler.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    lines = re.findall(r"^rank (\d), (\w+): request (\d): .* ms, hashes (.+)$", done.stdout, re.MULTILINE)
    found = {request: {hashes for _, _, number, hashes in lines if number == request} for request in "012"}
    good = done.returncode == 0 and len(lines) == 12 and all(len(hashes) == 1 for hashes in found.values())
    if not good:
        print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
    return 0 if good else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", choices=RELEASES, action="append", help="default: all")
    parser.add_argument("--ranks", type=int, action="append", help="default: 2 and 4")
    args, options = parser.parse_known_args()
    failed = []
    for release in args.release or RELEASES:
        try:
            python = borrow(release)
        except (OSError, subprocess.CalledProcessError) as exc:
            print(f"no environment for SGLang {release}: {exc}", file=sys.stderr)
            return 1
        for ranks in args.ranks or (2, 4):
            began_s = time.monotonic()
            code = one_run(python, ranks, options)
            said = "passed" if code == 0 else f"FAILED ({code})"
            print(f"== SGLang {release}, {ranks} ranks: {said} in {time.monotonic() - began_s:.0f} s", flush=True)
            if code != 0:
                failed.append((release, ranks))
        if not options and example(python) != 0:
            print(f"== SGLang {release}: the example FAILED", flush=True)
            failed.append((release, 0))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
