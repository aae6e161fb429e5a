"""A private copy of a checkout, with an environment whose `lazycast` is that copy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def copy(source: Path, into: Path) -> Path:
    """Copy what git knows of `source`, or would, with the environment that runs this; return its Python."""
    listed = subprocess.run(
        ["git", "-C", str(source), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (source / name).is_file():  # else it has been removed, and git has not been told
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, into / name)
    return environment(Path(sys.prefix), into)


def environment(of: Path, into: Path) -> Path:
    """Make `into/.venv` of links to another environment, but for what names the checkout or the environment itself."""
    mine = into / ".venv"
    (site,) = of.glob("lib/python*/site-packages")
    packages = mine / site.relative_to(of)
    packages.mkdir(parents=True)
    (mine / "bin").mkdir()
    done = {"bin", "lib", "lib64", site.parent.name, site.name, "__pycache__", "pyvenv.cfg"}
    shutil.copy(of / "pyvenv.cfg", mine)
    for folder in (of, of / "lib", site.parent, site, of / "bin"):
        for path in folder.iterdir():
            there = mine / path.relative_to(of)
            if path.name.startswith("__editable__"):
                there.write_text(path.read_text().replace(str(ROOT), str(into)))
            elif path.name in done:
                continue
            elif path.is_symlink():
                there.symlink_to(os.readlink(path))  # `python`, which finds its environment by where it is itself
            elif folder.name == "bin" and path.read_bytes()[:2] == b"#!":
                there.write_text(path.read_text().replace(str(of), str(mine)))
                there.chmod(0o755)
            else:
                there.symlink_to(path)
    python = mine / "bin" / "python"
    found = subprocess.run(
        [python, "-c", "import lazycast, lazycast.backends as b; print(lazycast.__file__, *b.__path__, sep='\\n')"],
        cwd="/",
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    if found != [str(into / "lazycast" / "__init__.py"), str(into / "backends")]:
        raise RuntimeError(f"the environment in {mine} does not use its own lazycast: {found}")
    return python
