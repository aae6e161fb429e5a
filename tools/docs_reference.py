"""What the reference does with docstrings and signatures before mkdocstrings shows them.

In the code the lines at the end of a docstring (`Raises: ...`, `Collective: ...`) follow each other without a gap. On a
page each of them is a paragraph of its own, with its word in bold, and what is listed below one is a list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import griffe

#: Words that begin such a line. Alone on their line the first ones begin a section that mkdocstrings knows.
WORDS = ("Args", "Attributes", "Returns", "Raises", "Example", "Collective", "Blocking", "Threads", "Memory")
LINE = re.compile(rf"({'|'.join(WORDS)}(?:, (?:{'|'.join(WORDS)}))*): (.*)")
WITHIN = re.compile(rf"(?<=[.;] )({'|'.join(WORDS)}):")
ITEM = re.compile(r"    ([\w, *`]+): (.*)")


def laid_out(docstring: str) -> str:
    """Return a docstring whose last lines are paragraphs."""
    found: list[str] = []
    told = False  # below a line with such a word and a text
    for line in docstring.splitlines():
        begins = LINE.fullmatch(line)
        if begins:
            words, text = begins.groups()
            found += ["", f"**{words}:** " + WITHIN.sub(r"**\1:**", text)]
        elif line.removesuffix(":") in WORDS:
            found += ["", line]
        elif told and (item := ITEM.fullmatch(line)):
            found += ["", f"- **{item[1]}**: {item[2]}"]
        elif told and line.startswith("    "):
            inside = found[-1].startswith(("- ", "  "))
            found.append(("  " if inside else "") + line.strip())
        else:
            found.append(line)
        told = bool(begins) or (told and line.startswith("    "))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(found)).strip("\n")


class Docstrings(griffe.Extension):
    """Lays out every docstring that mkdocstrings loads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Lay out the docstring of what was loaded."""
        if obj.docstring:
            obj.docstring.value = laid_out(obj.docstring.value)


def one_a_line(formatter: Callable[[str, int], str]) -> Callable[[str, int], str]:
    """Return a formatter that gives each parameter a line, or all of them one."""

    def formatted(code: str, width: int) -> str:
        once = formatter(code, width)
        lines = once.splitlines()
        if len(lines) > 2 and lines[0].endswith("(") and lines[2].startswith(")") and not lines[1].endswith(","):
            lines[1] += ","  # what stays broken at a comma at the end
            return formatter("\n".join(lines), width)
        return once

    return formatted
