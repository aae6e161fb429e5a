"""The means by which the tests are tested: a defect gets in and out, and what comes of it is read aright."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutants import runs
from tests.mutants.__main__ import MUTANTS, main, settled, table
from tests.mutants.checkout import ROOT
from tests.mutants.mutant import Mutant, plant

SIGN = Mutant("sign", "lib/sums.py", "a + b", "a - b", "a sum is a sum")
HOW = runs.How(("tests/unit",), "not exhaustive", 60.0, ())
FAILED = """tests/unit/test_a.py::test_one PASSED    [ 50%]
tests/unit/test_a.py::test_two[a - b] FAILED    [100%]
FAILED tests/unit/test_a.py::test_two - assert 1 == 2
1 failed, 1 passed
"""
HUNG = """tests/unit/test_a.py::test_one PASSED    [ 50%]
tests/unit/test_a.py::test_two
+++++++++++++++++++++++++++++++++++ Timeout ++++++++++++++++++++++++++++++++++++
"""
BROKEN = "ERROR tests/unit/test_a.py - NameError\n!!! Interrupted: 1 error during collection !!!\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "sums.py").write_text("def add(a, b):\n    return a + b\n")
    return tmp_path


def _sum(root: Path) -> str:
    code = "from lib.sums import add; print(add(3, 2))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={}, stdout=subprocess.PIPE, text=True, check=True, timeout=60
    )
    return done.stdout


def test_a_defect_is_run_while_it_is_planted_and_not_after(root: Path) -> None:
    assert _sum(root) == "5\n"
    with plant(SIGN, root):
        assert _sum(root) == "1\n"
    assert _sum(root) == "5\n"
    assert Path(importlib.util.cache_from_source(str(root / SIGN.file))).exists()  # so it could have been run again


@pytest.mark.parametrize(("text", "times"), [("a * b\n", 0), ("a + b\na + b\n", 2)])
def test_a_place_that_is_not_there_once_is_an_error_that_names_the_mutant(root: Path, text: str, times: int) -> None:
    (root / SIGN.file).write_text(text)
    with pytest.raises(ValueError, match=rf"mutant sign: lib/sums.py has 'a \+ b' {times} times"), plant(SIGN, root):
        pass
    assert (root / SIGN.file).read_text() == text


@pytest.mark.parametrize(
    ("code", "said", "state", "test"),
    [
        (0, "", "survived", ""),
        (5, "no tests ran", "survived", ""),
        (1, FAILED, "caught", "tests/unit/test_a.py::test_two"),
        (2, BROKEN, "caught", "tests/unit/test_a.py"),
        (1, HUNG, "hang", "tests/unit/test_a.py::test_two"),
        (None, HUNG, "hang", "tests/unit/test_a.py::test_two"),
        (-11, HUNG.splitlines()[0], "caught", "tests/unit/test_a.py::test_one"),
    ],
    ids=["passed", "none", "failed", "broken", "hung", "over", "died"],
)
def test_how_a_run_ended_is_read_from_what_it_said(code: int | None, said: str, state: str, test: str) -> None:
    assert runs.judged(code, said) == (state, test)


def test_what_tells_nothing_of_the_tests_is_no_verdict() -> None:
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        runs.judged(4, "ERROR: file or directory not found: nowhere")


def test_tests_that_lie_near_to_a_defect_come_first(tmp_path: Path) -> None:
    for name in ("bench_page", "codec", "data_codec", "wire"):
        (tmp_path / "tests/unit").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"tests/unit/test_{name}.py").touch()
    near, others = runs.in_order(tmp_path, ["tests/unit"], "lazycast/codec/data/codec.py")
    assert near == ["tests/unit/test_data_codec.py", "tests/unit/test_codec.py"]
    assert others == ["tests/unit/test_wire.py", "tests/unit/test_bench_page.py"]


def test_tests_of_a_folders_parts_together_lie_near_to_each() -> None:
    near, _ = runs.in_order(ROOT, ["tests/unit"], "lazycast/core/ledger.py")
    assert near[0] == "tests/unit/test_ledger.py"
    assert {"tests/unit/test_lane.py", "tests/unit/test_protocol.py"} <= set(near)
    near, _ = runs.in_order(ROOT, ["tests/unit"], "lazycast/codec/reducers/described.py")
    assert "tests/unit/test_allowed.py" in near


def test_what_is_kept_of_an_earlier_run() -> None:
    caught = runs.Row("sign", "caught", "t", 1.0, "another selection")
    survived = runs.Row("sign", "survived", "", 1.0, "another selection")
    assert settled(caught, HOW)
    assert not settled(survived, HOW)
    assert settled(survived._replace(selection=HOW.selection), HOW)
    assert not settled(None, HOW)
    assert not settled(runs.Row(runs.NONE, "caught", "t", 1.0, "another selection"), HOW)


def test_the_table_shows_survivors_first() -> None:
    one, two = MUTANTS[:2]
    rows = {
        one.name: runs.Row(one.name, "caught", "tests/unit/test_a.py::test_b[x|y]", 1.0, "units"),
        two.name: runs.Row(two.name, "survived", "", 2.0, "units"),
    }
    text = table(rows)
    assert text.startswith("1 of 2 planted defects are caught:\n- 1 with `units`\n")
    assert text.index(two.name) < text.index(one.name)
    assert "test_b[x\\|y]" in text


def test_defects_have_names_of_their_own_and_change_something(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS) >= 50
    assert all(mutant.old != mutant.new and mutant.breaks for mutant in MUTANTS)
    with pytest.raises(SystemExit):
        main(["--only", "no-such-defect"])
    assert "there is no mutant no-such-defect" in capsys.readouterr().err


def test_a_place_that_is_lost_is_named_before_anything_runs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for mutant in MUTANTS[:2]:
        (root / mutant.file).parent.mkdir(parents=True, exist_ok=True)
        (root / mutant.file).write_text("something else\n")  # not this checkout's own, which may have a defect
    with pytest.raises(SystemExit):
        main(["--source", str(root), "--only", *(mutant.name for mutant in MUTANTS[:2])])
    said = capsys.readouterr().err
    assert all(f"mutant {mutant.name}: " in said for mutant in MUTANTS[:2])
