"""Installs the wheel without extras on each version of Python that the project names, and runs the core's tests there.

    python tests/pythons.py                 # all that are found; those that are not are listed
    python tests/pythons.py --only 3.13     # and it fails if that one is not there

Each interpreter gets a new environment with the wheel and what it needs (NumPy, msgspec, cloudpickle): no torch, no
MPI, no pytest. There, every module of the core is imported, the conformance suite runs on processes and on threads, and
`lazycast doctor` has to find no problem.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

IMPORT_ALL = """
import importlib, pkgutil, sys, warnings
warnings.simplefilter("error")
import lazycast
names = [module.name for module in pkgutil.walk_packages(lazycast.__path__, "lazycast.")]
names = [n for n in names if not n.startswith(("lazycast.backends.", "lazycast.adapters.")) and "__main__" not in n]
for name in names:
    importlib.import_module(name)
present = sorted({"torch", "mpi4py", "rich", "PIL", "sklearn", "matplotlib"} & set(sys.modules))
assert not present, present
assert "site-packages" in lazycast.__file__, lazycast.__file__
print(f"imported {len(names)} modules of lazycast {lazycast.__version__}")
"""

CHECKS = {
    "imports": ["-c", IMPORT_ALL],
    "processes": ["-m", "lazycast.testing", "--backend", "local", "--launch", "2"],
    "threads": ["-m", "lazycast.testing", "--backend", "threads", "--launch", "3"],
    "doctor": ["-m", "lazycast", "doctor", "--ranks", "2"],
}


def versions() -> list[str]:
    """The versions that the project names, as "3.10"."""
    found = re.findall(r"Programming Language :: Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    assert found
    return found


def candidates(version: str) -> Iterator[Path]:
    """Where an interpreter of a version may be: on PATH, or among those of pyenv and uv."""
    on_path = shutil.which(f"python{version}")
    if on_path:
        yield Path(on_path)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    uv = Path.home() / ".local/share/uv/python"
    for folder in (*pyenv.glob(f"{version}.*"), *uv.glob(f"cpython-{version}.*")):
        yield folder / "bin" / "python3"


def interpreter(version: str) -> Path | None:
    """Return the first interpreter that runs and is of this version: those on PATH may be pyenv's stand-ins."""
    for path in candidates(version):
        done = subprocess.run([path, "-V"], capture_output=True, text=True, check=False) if path.exists() else None
        if done is not None and done.returncode == 0 and done.stdout.startswith(f"Python {version}."):
            return path
    return None


def build(folder: Path) -> Path:
    """Build the wheel from the tracked files' places and return it."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "SECURITY.md"):
        shutil.copy(ROOT / name, source)
    for name in ("lazycast", "backends", "adapters"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(source)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


def check(python: Path, wheel: Path, folder: Path) -> list[str]:
    """Install and check; return the names of the checks that failed."""
    subprocess.run([python, "-m", "venv", folder], check=True)
    inside = folder / "bin" / "python"
    install = [inside, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    subprocess.run(install, check=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "LAZYCAST_"))}
    failed = []
    for name, arguments in CHECKS.items():
        start_s = time.monotonic()
        done = subprocess.run(
            [inside, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900
        )
        said = (done.stdout.strip().splitlines() or ["nothing"])[-1]
        print(f"  {name}: {said} (exit code {done.returncode}, {time.monotonic() - start_s:.0f} s)", flush=True)
        if done.returncode != 0:
            failed.append(name)
            print(done.stdout, done.stderr, sep="\n", flush=True)
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", metavar="3.N", help="these versions, which must be there")
    options = parser.parse_args()
    found = {version: interpreter(version) for version in options.only or versions()}
    missing = [version for version, path in found.items() if path is None]
    failed = []
    with tempfile.TemporaryDirectory(prefix="lazycast-pythons-") as folder:
        wheel = build(Path(folder))
        for version, path in found.items():
            if path is not None:
                print(f"Python {version}: {path}", flush=True)
                failed += [f"{version} {name}" for name in check(path, wheel, Path(folder) / version)]
    if missing:
        print(f"not found here: {', '.join(f'Python {version}' for version in missing)}")
    tried = len(found) - len(missing)
    print(f"{tried} of {len(found)} versions tried; " + (f"failed: {', '.join(failed)}" if failed else "all passed"))
    return 1 if failed or not tried or (options.only and missing) else 0


if __name__ == "__main__":
    sys.exit(main())
