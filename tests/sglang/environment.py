"""Virtual environments with a real release of SGLang, on a machine without a GPU.

    python tests/sglang/environment.py RELEASE...            prints the interpreter of each, one a line
    python tests/sglang/environment.py --fetch RELEASE...    only installs what is pinned

What is pinned is some 2.5 GB, so it is installed once per user and set of pins, into the user's cache folder. Beside
the checkout there is a thin environment that borrows those packages and adds this lazycast, editable, with its entry
points, and for 0.5.23 what its HTTP server imports: checkouts do not disturb each other.

Guarantees:

* An environment is complete or not there: a marker is written last, and builders wait for each other at a lock.
* What cannot be fetched is an error (exit code 1), never a skip.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
PINS = HERE / "pins"
RELEASES = ("0.5.9", "0.5.23")
_TAG = f"cp{sys.version_info.major}{sys.version_info.minor}"
_QUIET = ("--quiet", "--disable-pip-version-check", "--no-input")


def pins(release: str) -> tuple[Path, Path]:
    """Return the files that say what an environment holds."""
    return PINS / f"sglang-{release}.txt", PINS / "tools.txt"


def cache(release: str) -> Path:
    """Return where the pinned packages are, or will be."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in pins(release))).hexdigest()[:16]
    return root / "lazycast" / "sglang" / f"{release}-{digest}-{_TAG}"


def _run(*command: str | Path) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=sys.stderr)


def _python(environment: Path) -> Path:
    return environment / "bin" / "python"


def fetch(release: str) -> Path:
    """Install the pinned packages, unless they are there. Returns their environment."""
    environment = cache(release)
    marker = environment / ".complete"
    environment.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{environment}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if marker.exists():
            return environment
        print(f"fetching SGLang {release} into {environment} (2.5 GB, once)", file=sys.stderr)
        shutil.rmtree(environment, ignore_errors=True)
        _run(sys.executable, "-m", "venv", environment)
        requirements = [part for path in pins(release) for part in ("-r", path)]
        _run(_python(environment), "-m", "pip", "install", *_QUIET, "--no-deps", *requirements)
        marker.touch()
    return environment


def borrow(release: str) -> Path:
    """Return the interpreter of this checkout's own environment, made if need be."""
    lender = fetch(release)
    environment = CHECKOUT / ".venv" / f"sglang-{release}"
    marker = environment / ".complete"
    server = PINS / f"server-{release}.txt"
    extra = server.read_bytes() if server.exists() else b""
    stamp = f"{lender}\n{hashlib.sha256((CHECKOUT / 'pyproject.toml').read_bytes() + extra).hexdigest()}\n"
    if not marker.exists() or marker.read_text() != stamp:
        shutil.rmtree(environment, ignore_errors=True)
        _run(sys.executable, "-m", "venv", environment)
        packages = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        (environment / packages / "lender.pth").write_text(f"{lender / packages}\n")
        _run(_python(environment), "-m", "pip", "install", *_QUIET, "--no-deps", "-e", CHECKOUT)
        if extra:
            _run(_python(environment), "-m", "pip", "install", *_QUIET, "--no-deps", "-r", server)
        marker.write_text(stamp)
    return _python(environment)


def main(releases: list[str]) -> int:
    make = borrow
    if releases[:1] == ["--fetch"]:
        make, releases = fetch, releases[1:]
    unknown = [release for release in releases if release not in RELEASES]
    if unknown or not releases:
        print(f"name some of {', '.join(RELEASES)}; got {' '.join(unknown) or 'nothing'}", file=sys.stderr)
        return 2
    try:
        for release in releases:
            print(make(release), flush=True)
    except (OSError, subprocess.CalledProcessError) as exc:
        print(f"no environment for SGLang: {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
