"""In CI a test that was skipped has failed, unless a file says that it may be."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import skips

ROOT = Path(__file__).parents[2]
TESTS = {
    "test_lacking.py": "import pytest\npytest.importorskip('no_such_package')\ndef test_it(): pass\n",
    "test_root.py": (
        "import pytest\n"
        "@pytest.mark.skipif(True, reason='needs root')\ndef test_marked(): pass\n"
        "def test_inside(): pytest.skip('nothing can be mounted here')\n"
        "@pytest.mark.parametrize('n', [1, 2])\ndef test_fine(n): pass\n"
        "@pytest.mark.xfail(strict=True)\ndef test_known(): assert False\n"
    ),
}


def suite(folder: Path, *options: str, permitted: str | None) -> tuple[int, str]:
    """Run a suite of tests that skip; return how it ended and what it said."""
    for name, text in TESTS.items():
        (folder / name).write_text(text)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("LAZYCAST_", "PYTEST_"))}
    if permitted is not None:
        (folder / "permitted.txt").write_text(permitted)
        env[skips.VARIABLE] = str(folder / "permitted.txt")
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -rA -p tests.skips -p no:cacheprovider\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("options", [[], ["-p", "xdist.plugin", "-n", "1"]], ids=["one process", "xdist"])
def test_a_skip_without_permission_fails(options: list[str], tmp_path: Path) -> None:
    reason = "  as of late\n"
    code, said = suite(tmp_path, *options, permitted=f"# all but one\n\ntest_lacking.py{reason}*::test_marked{reason}")
    assert code == 1, said
    assert re.findall(r"^FAILED (\S+)", said, re.MULTILINE) == ["test_root.py::test_inside"], said
    assert "nothing can be mounted here" in said
    assert "permitted.txt does not permit that" in said
    assert re.search(r"1 failed, 2 passed, 2 skipped, 1 xfailed", said), said


@pytest.mark.parametrize("options", [[], ["-p", "xdist.plugin", "-n", "1"]], ids=["one process", "xdist"])
def test_so_does_a_module_that_skips_itself(options: list[str], tmp_path: Path) -> None:
    code, said = suite(tmp_path, *options, permitted="test_root.py::*  as of late\n")
    assert code != 0, said
    assert re.search(r"^ERROR test_lacking\.py", said, re.MULTILINE), said
    assert "no_such_package" in said


def test_elsewhere_and_with_permission_skips_are_skips(tmp_path: Path) -> None:
    for permitted in (None, "*  all of them\n"):
        code, said = suite(tmp_path, permitted=permitted)
        assert code == 0, said
        assert "2 passed, 3 skipped, 1 xfailed" in said


def test_a_permission_needs_a_reason(tmp_path: Path) -> None:
    code, said = suite(tmp_path, permitted="test_root.py::test_inside\n")
    assert code != 0
    assert "lacks a reason" in said


def test_what_is_permitted_here_is_a_test_here() -> None:
    for pattern in skips.permitted(str(ROOT / "tests/permitted-skips.txt")):
        path, _, name = pattern.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / path).read_text(), pattern
