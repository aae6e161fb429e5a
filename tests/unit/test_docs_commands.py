"""Every command that the docs show takes the options that they show it with: each line goes through its own parser."""

from __future__ import annotations

import argparse
import functools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from examples.engine import __main__ as engine
from lazycast.testing import __main__ as suite
from lazycast.tools import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted(ROOT.glob("docs/**/*.md")),
    *sorted(ROOT.glob("examples/**/*.md")),
]
# What `python -m` can run, as the words that lead to the same in the `lazycast` command, or with a parser of its own.
MODULES: dict[str, list[str] | Callable[[], argparse.ArgumentParser]] = {
    "lazycast": [],
    "lazycast.testing": suite.build_parser,
    "examples.engine": engine.build_parser,
}
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)(?:(?: {4}[^\n]*)?\n)+")
SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")


class Shown(NamedTuple):
    """A command in a page; one in a sentence may leave out what it works on."""

    page: str
    text: str
    whole: bool


def shown(page: Path) -> Iterator[Shown]:
    name, text = str(page.relative_to(ROOT)), page.read_text()
    blocks = [block for language, block in FENCE.findall(text) if language in ("", "bash", "sh", "console", "yaml")]
    prose = FENCE.sub("", text)
    blocks += INDENTED.findall(prose)
    for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
        command, _, comment = line.partition("#")
        yield from (Shown(name, part.strip(), True) for part in [command, *re.findall(r"\bor: ([^;,]+)", comment)])
    yield from (Shown(name, " ".join(span.split()), False) for span in SPAN.findall(INDENTED.sub("\n", prose)))


@functools.cache
def whole_command() -> argparse.ArgumentParser:
    return cli.build_parser()


def words_of(text: str) -> tuple[argparse.ArgumentParser, list[str]] | None:
    """The parser of what a line starts, and the arguments for it; None if that is nothing of this project.

    Variables before it, launchers and their options are passed over.
    """
    try:
        words = shlex.split(text.removeprefix("$ "))
    except ValueError:  # an apostrophe: a sentence
        return None
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        del words[0]
    if not words:
        return None
    launcher = Path(words[0]).name in ("torchrun", "mpirun", "srun")
    for at, word in enumerate(words):
        if word == "-m" and at and words[at + 1 : at + 2] and words[at + 1].split(".")[0] in ("lazycast", "examples"):
            if not (launcher or re.fullmatch(r"(.*/)?python3?", words[0])):
                return None
            start = MODULES[words[at + 1]]
            arguments = words[at + 2 :]
            return (whole_command(), [*start, *arguments]) if isinstance(start, list) else (start(), arguments)
        if Path(word).name == "lazycast" and (at == 0 or launcher):
            arguments = words[at + 1 :]
            # else a message (`lazycast 'photos': broadcast ...`), or a way of a benchmark (`lazycast agree=False`)
            return (whole_command(), arguments) if not re.search("[:=]$|^[a-z]+=", " ".join(arguments[:1])) else None
        if not launcher and not re.fullmatch(r"-.*|(.*/)?python3?", word):
            return None
    return None


def complaint(parser: argparse.ArgumentParser, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What the parser has against these; nothing if it takes them."""
    try:
        parser.parse_args(arguments)
    except SystemExit as exc:
        said = capsys.readouterr().err.strip().splitlines()
        return "" if exc.code == 0 else said[-1]
    return ""


def judged(command: Shown, capsys: pytest.CaptureFixture[str]) -> str | None:
    """What is wrong with a command; None if it is none of this project's."""
    found = words_of(command.text)
    if found is None or (not command.whole and not found[1]):
        return None
    parser, arguments = found
    wrong = complaint(parser, arguments, capsys)
    for _ in range(2):
        if not command.whole and "arguments are required" in wrong:
            # `lazycast trace` in a sentence: the command as such, or, with this, one that works on something
            arguments = [*arguments, "merge" if arguments == ["trace"] else "something"]
            wrong = complaint(parser, arguments, capsys)
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_pages_are_taken_by_their_parsers(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [(command.text, said) for command in shown(page) if (said := judged(command, capsys))]
    assert wrong == []


def test_the_commands_are_found(capsys: pytest.CaptureFixture[str]) -> None:
    found = {command.text for page in PAGES for command in shown(page) if judged(command, capsys) is not None}
    assert {
        "lazycast demo --backend local",
        "lazycast trace merge traces -o trace.json",
        "lazycast bench --ranks 2,4,8 --report DIR",
        "torchrun --nproc_per_node 4 -m examples.engine --qps 4 --seconds 12 --seed 2",
        "python -m lazycast soak --backend local --ranks 4 --seed 1 --job 3",
        ".venv/bin/mpirun -n 4 .venv/bin/python -m lazycast.testing --backend mpi",
    } <= found
    assert len(found) > 30


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lazycast bench --sizzes=1KiB", "unrecognized arguments: --sizzes"),
        ("lazycast bench --sizes 1kilo", "argument --sizes"),
        ("lazycast demos", "invalid choice: 'demos'"),
        ("FEW=1 torchrun --nproc_per_node 4 -m lazycast.testing --backends torch", "unrecognized arguments"),
        ("python -m lazycast soak --minutes none", "must be a number above 0"),
        ("mpirun -n 4 python -m examples.engine --qps", "expected one argument"),
        ("lazycast trace merge", "arguments are required: DIR"),
    ],
)
def test_a_wrong_command_is_found(text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in (judged(Shown("page", text, True), capsys) or "")


def test_targets_of_make_in_pages_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([\w./-]+):(?!=)", makefile, re.MULTILINE))
    variables = set(re.findall(r"^([A-Z_]+) *\??:?=|\$[({]([A-Z_]+)", makefile, re.MULTILINE))
    known = {name for pair in variables for name in pair}
    seen = set()
    for page in PAGES:
        for command in shown(page):
            words = command.text.split()
            if not words or words[0] != "make":
                continue
            for word in words[1:]:
                name, assigned, _ = word.partition("=")
                if not word.startswith("-"):
                    assert name in (known if assigned else targets), (command.page, command.text)
                    seen.add(name)
    assert {"demo", "test", "docs", "package", "BACKEND"} <= seen
