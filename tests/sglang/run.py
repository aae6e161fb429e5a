"""Run the tests of the SGLang adapter: each release, in its own environment, on 2 and on 4 ranks.

    python tests/sglang/run.py [--release 0.5.9] [--ranks 2] [--once] [pytest options]

With `--once`, as in CI: the older release on 2 ranks, the newer one on 4.

For 0.5.23 those of `loop` follow, on real schedulers that they start themselves.
The example and the smallest benchmark follow, unless there are pytest options, which choose tests.
Exit code 0 only if every rank of every run has passed; 1 also if SGLang could not be fetched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import RELEASES, borrow

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parents[1] / "examples" / "sglang" / "scheduler.py"
WAYS = {"itself", "sglang", "lazycast", "broadcast_pyobj", "lazycast-requests"}
LOOP_LIMIT_S = 1200.0
LOOP_RELEASE = "0.5.23"
ONCE = {"0.5.9": (2,), "0.5.23": (4,)}
NOTHING_CHOSEN = 5  # pytest's exit code
ENDING_S = 30.0
LIMIT_S = 480.0  # of one run: importing SGLang takes a minute where its files have not been read yet


def end(process: subprocess.Popen[str]) -> None:
    """End a program and its process group, after what it has started in sessions of their own: that only it can end."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=ENDING_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def start(python: Path, ranks: int, *arguments: str | Path, capture: bool = False) -> tuple[int, str]:
    """Run a program on `ranks` ranks. Returns the exit code and, with `capture`, what it has printed.

    Nothing is left behind, whatever happens.
    """
    torchrun = [python, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    process = subprocess.Popen(
        [str(part) for part in (*torchrun, *arguments)],
        cwd=HERE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"},
        stdout=subprocess.PIPE if capture else None,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=LIMIT_S)
        return process.returncode, said or ""
    except subprocess.TimeoutExpired:
        print(f"no end within {LIMIT_S:g} s", file=sys.stderr)
        return 1, ""
    finally:
        end(process)


def tests(python: Path, ranks: int, options: list[str]) -> bool:
    """Run all tests. Returns whether all ranks have passed."""
    configuration = ("-c", HERE / "pytest.ini", f"--rootdir={HERE}")
    code, _ = start(python, ranks, HERE / "rank.py", *configuration, *options, HERE)
    return code == 0


def loop(python: Path, options: list[str]) -> bool:
    """Run the tests of real schedulers, which they start themselves. Returns whether they have passed."""
    folder = HERE / "loop"
    command = [python, "-m", "pytest", "-c", folder / "pytest.ini", f"--rootdir={folder}", *options, folder]
    process = subprocess.Popen([str(part) for part in command], cwd=folder, start_new_session=True, text=True)
    try:
        code = process.wait(timeout=LOOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        print(f"no end within {LOOP_LIMIT_S:g} s", file=sys.stderr)
        return False
    finally:
        end(process)
    return code == 0 or (code == NOTHING_CHOSEN and bool(options))


def example(python: Path, ranks: int) -> bool:
    """Run the example. Returns whether each request has the same hashes on all ranks, with and without lazycast."""
    code, said = start(python, ranks, EXAMPLE, capture=True)
    lines = re.findall(r"^rank \d, \w+: request (\d): .* ms, hashes (.+)$", said, re.MULTILINE)
    hashes = {number: {found for request, found in lines if request == number} for number, _ in lines}
    good = code == 0 and len(lines) == 6 * ranks and len(hashes) == 3 and all(len(one) == 1 for one in hashes.values())
    if not good:
        print(said, file=sys.stderr)
    return good


def benchmark(python: Path) -> bool:
    """Run the smallest benchmark. Returns whether it has figures of every way, having compared the hashes."""
    with tempfile.TemporaryDirectory() as folder:
        command = (python, "-m", "lazycast", "bench", "sglang", "--ranks", "2", "--images", "1", "--rounds", "1")
        run = subprocess.run(
            [str(part) for part in (*command, "--out", folder)], cwd=HERE, timeout=LIMIT_S, stdout=subprocess.DEVNULL
        )
        written = [json.loads(path.read_text()) for path in Path(folder).glob("sglang-*.json")]
        timed = {name for one in written for cell in one["cells"] for name, way in cell["ways"].items() if way["qps"]}
        good = run.returncode == 0 and timed == WAYS and len(list(Path(folder).glob("sglang-*.md"))) == 1
        if not good:
            print(f"exit code {run.returncode}, figures of {sorted(timed)}", file=sys.stderr)
        return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--release", choices=RELEASES, action="append", help="default: all")
    ranks_of = parser.add_mutually_exclusive_group()
    ranks_of.add_argument("--ranks", type=int, action="append", help="default: 2 and 4")
    ranks_of.add_argument("--once", action="store_true", help="each release on one number of ranks")
    args, options = parser.parse_known_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what has been started is ended
    failed = False
    for release in args.release or RELEASES:
        try:
            python = borrow(release)
        except (OSError, subprocess.CalledProcessError) as exc:
            print(f"no environment for SGLang {release}: {exc}", file=sys.stderr)
            return 1
        for ranks in args.ranks or (ONCE[release] if args.once else (2, 4)):
            began_s = time.monotonic()
            passed = tests(python, ranks, options)
            said = "passed" if passed else "FAILED"
            print(f"== SGLang {release}, {ranks} ranks: {said} in {time.monotonic() - began_s:.0f} s", flush=True)
            failed |= not passed
        if release == LOOP_RELEASE:
            passed = loop(python, options)
            print(f"== SGLang {release}, the loop: {'passed' if passed else 'FAILED'}", flush=True)
            failed |= not passed
        if options:
            print(
                f"== SGLang {release}: the example and the benchmark are left out, given {' '.join(options)}",
                flush=True,
            )
        else:
            passed = example(python, 2)
            print(f"== SGLang {release}, the example: {'passed' if passed else 'FAILED'}", flush=True)
            failed |= not passed
            passed = benchmark(python)
            print(f"== SGLang {release}, the benchmark: {'passed' if passed else 'FAILED'}", flush=True)
            failed |= not passed
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
