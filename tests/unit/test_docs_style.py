"""The pages that people read: not too many words, and no line of code that a page cuts off."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Written by hand for readers: not the records of decisions, nor pages that benchmarks write.
PAGES = [
    ROOT / "README.md",
    *(path for name in ("*.md", "api/*.md", "how-to/*.md") for path in sorted((ROOT / "docs").glob(name))),
]
PAGES.remove(ROOT / "docs" / "faults.md")  # what was measured, written by its program
MOST_WORDS = 25_000
COLUMNS = 88
FENCE = re.compile(r"^```\w*[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?: {4}\S[^\n]*\n(?: {4}[^\n]*\n|\n(?= {4}))*)")
HIDDEN = re.compile(r"<!--.*?-->|\]\([^)]*\)", re.DOTALL)
#: Has code that is a server's, and long.
WIDE = {"docs/sglang.md"}


def words(text: str) -> int:
    """Count what a reader reads: text and tables, without code, addresses of links and comments."""
    return sum(bool(re.search(r"\w", word)) for word in HIDDEN.sub("]", INDENTED.sub("", FENCE.sub("", text))).split())


def code(text: str) -> Iterator[str]:
    """Yield each line of code that a page shows."""
    for block in [*FENCE.findall(text), *INDENTED.findall(FENCE.sub("", text))]:
        yield from block.splitlines()


def test_the_pages_are_no_more_than_a_reader_bears() -> None:
    counts = {str(page.relative_to(ROOT)): words(page.read_text()) for page in PAGES}
    assert counts["README.md"] > 300
    assert sum(counts.values()) <= MOST_WORDS, sorted(counts.items(), key=lambda item: -item[1])


def test_what_counts_as_a_word_and_as_code() -> None:
    text = "One [two](three.md) | - `four`\n\n    make five\n\n- a list\n    of six\n\n"
    text += "```python\nseven\n```\n<!-- eight -->\n"
    assert words(text) == len(["One", "two", "four", "a", "list", "of", "six"])
    assert [line.strip() for line in code(text)] == ["seven", "make five"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_is_not_cut_off(page: Path) -> None:
    if str(page.relative_to(ROOT)) not in WIDE:
        assert [line for line in code(page.read_text()) if len(line) > COLUMNS] == []
