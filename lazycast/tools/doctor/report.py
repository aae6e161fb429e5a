"""The report as text: one line for each finding, and what to do below it. Colours on a terminal, if rich is there."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib.util import find_spec

from lazycast.tools.doctor.finding import Finding
from lazycast.version import __version__

_VERDICT, _NAME = 9, 16
_INDENT = 2 + _VERDICT + _NAME
#: What a line is wrapped at, where no terminal says so; and what makes no sense to go below.
_WIDTH, _LEAST_WIDTH = 110, 60
_STYLES = {"ok": "green", "note": "yellow", "problem": "bold red"}


def summary(findings: Sequence[Finding]) -> str:
    """Count what is not well."""
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in ("problem", "note")}
    said = [f"{n} {verdict}{'s' if n != 1 else ''}" for verdict, n in counts.items() if n]
    return ", ".join(said) or "all is well"


def lines(title: str, findings: Sequence[Finding], width: int) -> Iterator[tuple[str, str | None]]:
    """Yield the lines of the report, and the verdict that the first word of a line says, if it says one."""
    yield f"lazycast {__version__}: {title}", None
    room = max(_LEAST_WIDTH, width) - _INDENT
    for section in dict.fromkeys(finding.section for finding in findings):
        yield "", None
        yield section, None
        for finding in (f for f in findings if f.section == section):
            first, *rest = _wrapped(finding.found, room)
            yield f"  {finding.verdict:<{_VERDICT}}{finding.name:<{_NAME}}{first}", finding.verdict
            for line in rest:
                yield " " * _INDENT + line, None
            for detail in finding.details:
                yield " " * _INDENT + detail, None
            if finding.remedy is not None:
                for number, line in enumerate(_wrapped(finding.remedy, room - 2)):
                    yield " " * _INDENT + ("  " if number else "→ ") + line, None
    yield "", None
    yield summary(findings), None


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(" ".join(text.split()), room, break_long_words=False, break_on_hyphens=False) or [""]


def text(title: str, findings: Sequence[Finding]) -> str:
    """Return the report, without colours."""
    return "\n".join(line for line, _ in lines(title, findings, _columns()))


def _columns() -> int:
    return shutil.get_terminal_size((_WIDTH, 24)).columns


def print_text(title: str, findings: Sequence[Finding], *, plain: bool = False) -> None:
    """Print the report on standard output; `plain` if what looks like a terminal there may be none."""
    if plain or not sys.stdout.isatty() or find_spec("rich") is None:
        print(text(title, findings), flush=True)
        return
    from rich.console import Console
    from rich.text import Text as Line

    console = Console(highlight=False)
    for line, verdict in lines(title, findings, _columns()):
        shown = Line(line)
        if verdict is not None:
            shown.stylize(_STYLES[verdict], 2, 2 + len(verdict))
        elif line and not line.startswith(" "):
            shown.stylize("bold")
        console.print(shown, soft_wrap=True)
