"""The page of the faults says what its record says, in summary."""

from __future__ import annotations

import re
from pathlib import Path

from tests.faults.matrix import page
from tests.faults.matrix.verdict import Sight

ROOT = Path(__file__).resolve().parents[2]
#: When, where and under which limits the matrix was run: none of it is in the record.
OF_THE_RUN = re.compile(r"^Measured .*$|here [\d.]+ s, and [\d.]+ s for", re.MULTILINE)


def test_the_page_is_made_from_its_record(tmp_path: Path) -> None:
    record = page.Record.load(ROOT / "docs" / "faults.json")
    assert len(record.results) > 500
    page.write(tmp_path / "faults.md", record.results, record.network)
    made, published = ((path / "faults.md").read_text() for path in (tmp_path, ROOT / "docs"))
    assert OF_THE_RUN.sub("", made) == OF_THE_RUN.sub("", published)


def test_a_cell_has_each_error_with_its_median_and_longest_time() -> None:
    sights = [Sight(1, "PeerLostError", ms) for ms in (5.0, 80.4, 1.0)] + [Sight(2, "ClosedError", 3.25)]
    assert page.summary(sights) == "`ClosedError` 3.2, 3.2; `PeerLostError` 5.0, 80"
    assert page.summary([]) == ""
    assert page.cell(sights) == "`PeerLostError` 5.0, 80, 1.0; `ClosedError` 3.2"
