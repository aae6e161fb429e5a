"""The page of error messages has every public error, and only messages that the code has."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from pathlib import Path

from lazycast import errors

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/troubleshooting.md"
CLASSES = [name for name, cls in vars(errors).items() if inspect.isclass(cls) and cls.__module__ == errors.__name__]
# What stands in the place of something that varies: numbers, quotes, and the words that the page's examples put there.
WORDS = [
    "name",
    "placement",
    "torch",
    "mpi",
    "mpi4py",
    "cuda",
    "a lock",
    "a Model",
    "materializer",
    "callback",
    "node-",
]
WORDS += [
    "MemoryError",
    "ModuleNotFoundError",
    "ValueError",
    "max_inflight",
    "on rank",
    r"serve\.py",
    "step",
    "load",
    "and with trust",
]
VARYING = re.compile(rf"\.\.\.|\d+(?:\.\d+)?|'[^']*'|[#()\[\]:;,=?]|\b(?:{'|'.join(WORDS)})(?:\b|(?<=-))")
LEAST = 5  # characters: shorter pieces are in every text


def rows() -> list[str]:
    """The messages in the first columns of the page's tables."""
    found = []
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            first = re.match(r"\| ((?:`[^`]+`[^|`]*)+)\|", line)
            assert first, line
            found += re.findall(r"`([^`]+)`", first[1])
    return found


@functools.cache
def said() -> str:
    """All texts of the core and the backends, with a line for each; docstrings left out."""
    texts: list[str] = []
    for path in [*ROOT.glob("lazycast/**/*.py"), *ROOT.glob("backends/*.py")]:
        tree = ast.parse(path.read_text())
        documented = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
        docstrings = {ast.get_docstring(node, clean=False) for node in documented}
        constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        texts += [value for value in constants if isinstance(value, str) and value not in docstrings]
    return "\n".join(texts)


def pieces(message: str) -> list[str]:
    parts = (part.strip() for part in VARYING.split(message))
    return [part for part in parts if len(part) >= LEAST]


def test_there_are_errors_and_messages() -> None:
    assert len(CLASSES) > 12
    assert len(rows()) > 60
    assert "was killed by signal " in said()
    assert "See the module's text." not in said()


def test_every_public_error_has_a_place() -> None:
    page = PAGE.read_text()
    assert [name for name in CLASSES if f"### `{name}`\n" not in page] == []


def test_every_message_is_one_of_the_code() -> None:
    assert [message for message in rows() if not pieces(message)] == [], "nothing to look for"
    assert {m: missing for m in rows() if (missing := [piece for piece in pieces(m) if piece not in said()])} == {}
