"""Say of each page how many words it has, and how easily it reads: `make docs-words`.

The reading ease is Flesch's: 206.835 - 1.015 x words per sentence - 84.6 x syllables per word. Of 60 to 70 says plain
English; below 50, hard to read. Code, tables and headings are left out; a name in code counts as one syllable, or pages
about functions would be hard because of the functions' names. Syllables are groups of vowels, which is right for nine
words in ten; the libraries that know all words bring a corpus along.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.unit.test_docs_style import FENCE, HIDDEN, INDENTED, PAGES, words  # noqa: E402

#: Where a sentence ends: also a step of a list, and the words before a table or a block of code.
END = re.compile(r"[.!?:;](?=\s|$)|\n\s*(?:[-*]|\d+\.)\s|\n\n")
NOT_PROSE = re.compile(r"^(?:\||#|!|:::|<|\[!|---).*$", re.MULTILINE)
NAME = re.compile(r"`[^`]*`")
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
VOWELS = re.compile(r"[aeiouy]+")


def prose(text: str) -> str:
    """Return what is left of a page without its code, tables and headings."""
    text = HIDDEN.sub("]", INDENTED.sub("\n\n", FENCE.sub("\n\n", text)))
    return NAME.sub("x", NOT_PROSE.sub("\n", text))


def syllables(word: str) -> int:
    """Count the syllables of an English word, about: its groups of vowels, without an e at its end that is silent."""
    word = word.lower()
    silent = word.endswith(("e", "es", "ed")) and not word.endswith(("le", "les", "ted", "ded", "ses", "ces", "zes"))
    return max(1, len(VOWELS.findall(word)) - silent)


def ease(text: str) -> float:
    """Return Flesch's reading ease of prose."""
    sentences = [found for part in END.split(text) if (found := WORD.findall(part))]
    said = [word for sentence in sentences for word in sentence]
    if not said:
        return float("nan")
    spoken = sum(map(syllables, said))
    return 206.835 - 1.015 * len(said) / len(sentences) - 84.6 * spoken / len(said)


def main(pages: Sequence[Path] = tuple(PAGES)) -> None:
    rows = [(str(page.relative_to(ROOT)), words(text := page.read_text()), ease(prose(text))) for page in pages]
    for name, count, found in sorted(rows, key=lambda row: row[2]):
        print(f"{name:36} {count:6} words  {found:5.1f}")
    print(f"{'all':36} {sum(count for _, count, _ in rows):6} words")


if __name__ == "__main__":
    main()
