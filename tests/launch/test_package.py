"""What is published: the wheel holds the whole library and nothing else, and the source package builds the same one."""

from __future__ import annotations

import email.message
import email.parser
import hashlib
import os
import re
import shutil
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

from lazycast import __version__

from .command import run
from .once import made_once

ROOT = Path(__file__).parents[2]
FOLDERS = {"lazycast": "lazycast", "backends": "lazycast/backends", "adapters": "lazycast/adapters"}
FILES = ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CHANGELOG.md", "SECURITY.md")


def build(source: Path, into: Path, *options: str) -> Path:
    """Build with what is installed here, and return the folder."""
    done = run(
        [sys.executable, "-m", "build", "--no-isolation", *options, "--outdir", str(into), str(source)], timeout_s=100
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return into


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is built from: a folder that has built before keeps files that are gone since."""
    folder = tmp_path_factory.mktemp("source")
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module")
def built(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source package, and the wheel that was built from it."""
    return made_once("dist", lambda folder: build(source, folder), tmp_path_factory)


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


def contents(wheel: Path) -> dict[str, str]:
    """The digest of each file in a wheel; of the list of files only their names, since it has times of its own."""
    with zipfile.ZipFile(wheel) as archive:
        assert archive.testzip() is None
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"lazycast-{__version__}.dist-info/METADATA").decode()
    return email.parser.Parser().parsestr(text)


def test_the_wheel_holds_every_module_and_nothing_else(source: Path, wheel: Path) -> None:
    expected = {
        f"{package}/{path.relative_to(source / folder).as_posix()}"
        for folder, package in FOLDERS.items()
        for path in (source / folder).rglob("*")
        if path.is_file()
    }
    assert {"lazycast/py.typed", "lazycast/tools/doctor/__init__.py", "lazycast/backends/mpi.py"} <= expected
    names = set(contents(wheel))
    info = f"lazycast-{__version__}.dist-info"
    told = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "top_level.txt", "licenses/LICENSE"}
    assert names == expected | {f"{info}/{name}" for name in told}


@pytest.mark.exhaustive
def test_the_source_package_builds_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    (direct,) = build(source, tmp_path, "--wheel").glob("*.whl")
    assert direct.name == wheel.name == f"lazycast-{__version__}-py3-none-any.whl"
    assert contents(direct) == contents(wheel)


def test_the_source_package_holds_what_it_is_built_from(source: Path, built: Path) -> None:
    (found,) = built.glob("*.tar.gz")
    with tarfile.open(found) as archive:
        names = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    modules = {p.relative_to(source).as_posix() for f in FOLDERS for p in (source / f).rglob("*") if p.is_file()}
    extra = names - modules - set(FILES)
    assert modules | set(FILES) <= names
    assert {name.partition("/")[0] for name in extra} == {"PKG-INFO", "setup.cfg", "lazycast.egg-info"}


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    said = metadata(wheel)
    assert (said["Name"], said["Version"], said["Requires-Python"]) == ("lazycast", __version__, ">=3.10")
    assert said["License-Expression"] == "Apache-2.0"
    needed = [text for text in said.get_all("Requires-Dist", []) if "extra ==" not in text]
    assert sorted(re.split(r"[<>=!~]", text)[0] for text in needed) == ["cloudpickle", "msgspec", "numpy"]
    assert {"torch", "mpi", "cli", "bench", "dev"} <= set(said.get_all("Provides-Extra", []))
    assert str(said.get_payload()).startswith("# lazycast")


def test_the_entry_points(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(f"lazycast-{__version__}.dist-info/entry_points.txt").decode()
    parser = ConfigParser()
    parser.read_string(text)
    assert dict(parser["console_scripts"]) == {"lazycast": "lazycast.tools.cli:main"}
    assert set(parser["lazycast.backends"]) == {"local", "mpi", "torch"}
    assert "sglang.srt.plugins" in parser
    files = contents(wheel)
    for section in parser.sections():
        for target in parser[section].values():
            module = target.partition(":")[0].replace(".", "/")
            assert {f"{module}.py", f"{module}/__init__.py"} & set(files), target


@pytest.mark.exhaustive
def test_the_wheel_runs_from_where_it_was_unpacked(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = (
        "import lazycast, sys\n"
        "from lazycast.start import discovery\n"
        "assert lazycast.__file__.startswith(sys.argv[1]), lazycast.__file__\n"
        "print(lazycast.__version__, *discovery.names(), discovery.by_name('local').__module__)\n"
        "print(lazycast.launch(lambda: lazycast.LazyBroadcast(len).broadcast('four'), ranks=2))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    done = run([sys.executable, str(script), str(tmp_path)], timeout_s=200, PYTHONPATH=str(tmp_path / "site"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [__version__, "local", "mpi", "torch", "lazycast.backends.local", "[4,", "4]"]


def test_the_version_is_written_once() -> None:
    lines = [
        f"{path.relative_to(ROOT)}: {line}"
        for path in [ROOT / "pyproject.toml", *(ROOT / "lazycast").rglob("*.py")]
        for line in path.read_text().splitlines()
        if re.search(rf"(?i)version.*=\s*[\"']{re.escape(__version__)}[\"']", line)
    ]
    assert lines == [f'lazycast{os.sep}version.py: __version__ = "{__version__}"']
