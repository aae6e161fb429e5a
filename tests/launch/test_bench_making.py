"""`lazycast bench making`, as a user starts it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from lazycast.tools.bench.making import rows, ways
from lazycast.tools.bench.making.plan import ROWS

from .command import run


def measured(tmp_path: Path, *options: str, backend: str) -> tuple[dict[str, object], str]:
    command = [sys.executable, "-m", "lazycast", "bench", "making", "--backend", backend, "--rounds", "1", *options]
    done = run([*command, "--out", str(tmp_path)], timeout_s=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / f"making-{backend}.md").read_text() == done.stdout
    return json.loads((tmp_path / f"making-{backend}.json").read_text()), done.stdout


@pytest.mark.exhaustive
@pytest.mark.usefixtures("warm_python")
def test_a_chat_is_remembered_exactly_as_the_policy_says(tmp_path: Path) -> None:
    said, shown = measured(tmp_path, "--rows", "chat", "--chat", "150", backend="local")
    chat = said["rows"]["chat"]  # type: ignore[index]
    mine, wanted = chat["lazycast-memo"], chat["simulated"]
    assert {name: mine[name] for name in wanted} == wanted
    assert min(wanted["hits"], wanted["evictions"]) > 10
    assert wanted["nbytes"] <= ways.CHAT_NBYTES
    assert "| chat | what is remembered is what the policy says |" in shown
    assert "| yes |" in shown


@pytest.mark.exhaustive
@pytest.mark.long
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("warm_python")
def test_all_rows_are_measured(tmp_path: Path) -> None:
    said, _ = measured(tmp_path, "--seconds", "0.2", "--chat", "20", backend="torch")
    found = said["rows"]
    assert isinstance(found, dict)
    assert list(found) == list(ROWS)
    assert set(found["scheduler"]) == {ways.QUIET, ways.STRANGERS, *rows.SCHEDULED}
    for (ranks,) in found["scheduler"].values():
        assert len(ranks) == 2
        for rank in ranks:
            assert rank["count"] > 0
            assert 0 < rank["p50_s"] <= rank["p99_s"]
    assert set(found["value"]) == set(rows.VALUED)
    assert min(found["value"]["shared-pool"]) > 0
    assert set(found["album"]) == set(rows.ALBUMS)
    assert len(found["killed"]["lazycast-helpers"]) == 1
    assert found["killed"]["replaced"][0] > 0
    assert said["absent"] == {}
