"""What pages list is what the code has: metrics, phases, extras; and blocks that cannot run here name what exists."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
from dataclasses import fields
from pathlib import Path

import pytest

from lazycast.watch.stats import PHASES, Stats

ROOT = Path(__file__).resolve().parents[2]
METRICS = (ROOT / "docs/metrics.md").read_text()
# Fences of what is no program in Python.
OTHER_LANGUAGES = {"", "text", "bash", "yaml", "toml"}


def table(page: str, first: str) -> list[list[str]]:
    """The cells of the rows below the table's head that begins with `first`."""
    _, found, rest = page.partition(f"\n| {first} |")
    assert found, first
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in rows]


def test_the_metrics_of_prometheus_are_those_in_the_table() -> None:
    pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")
    from lazycast.watch.prometheus import Collector

    made = {}
    for family in Collector(group=True).collect():
        labels = [label for label in family._labelnames if label not in ("name", "rank")]
        name = f"{family.name}_total" if family.type == "counter" else family.name
        made[name] = (family.type, ", ".join(f"`{label}`" for label in labels))
    assert {name.strip("`"): (kind, labels) for name, kind, labels, _ in table(METRICS, "metric")} == made


def test_the_queries_ask_for_metrics_that_are_in_the_table() -> None:
    names = {row[0].strip("`") for row in table(METRICS, "metric")}
    asked = set(re.findall(r"\blazycast_\w+", METRICS))
    parts = {f"lazycast_phase_seconds_{part}" for part in ("bucket", "sum", "count")}
    assert asked - names - parts - {"lazycast_calls"} == set()  # the last is a prefix, in the program
    assert "lazycast_phase_seconds_bucket" in asked


def test_the_phases_are_those_in_the_table() -> None:
    assert [row[0].strip("`") for row in table(METRICS, "phase")] == [
        *("blocked", "queue", "held", "encode", "transfer", "wait", "unread"),
        *("decode", "materialize", "share", "agree", "total"),
    ]
    assert sorted(row[0].strip("`") for row in table(METRICS, "phase")) == sorted(PHASES)


def test_the_page_on_metrics_names_every_attribute_of_stats() -> None:
    named = set(re.findall(r"`(?:stats\(\)\.)?(\w+)`", METRICS))
    assert {field.name for field in fields(Stats)} - named - {"name", "rank", "size", "root"} == set()


def test_the_page_on_releasing_has_every_extra() -> None:
    (section,) = re.findall(
        r"\[project.optional-dependencies\]\n(.*?)\n\[", (ROOT / "pyproject.toml").read_text(), re.S
    )
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    told = {
        name
        for row in table((ROOT / "docs/releasing.md").read_text(), "extra")
        for name in re.findall(r"`(\w+)`", row[0])
    }
    assert told == extras


def python_blocks_that_do_not_run() -> list[tuple[str, str]]:
    found = []
    for page in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]:
        for language, code in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            if language not in OTHER_LANGUAGES | {"python"}:
                assert language == "py", f"{page}: a block in {language!r}"
                found.append((str(page.relative_to(ROOT)), code))
    return found


def test_only_what_needs_sglang_does_not_run() -> None:
    """`python` blocks run in tests/launch/test_docs.py; these are pieces of a server, and run in tests/sglang."""
    assert {page for page, _ in python_blocks_that_do_not_run()} == {"docs/sglang.md"}


@pytest.mark.parametrize("number", range(len(python_blocks_that_do_not_run())))
def test_blocks_that_do_not_run_name_what_is_there(number: int) -> None:
    page, code = python_blocks_that_do_not_run()[number]
    known: dict[str, object] = {}
    tree = ast.parse(code, page)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lazycast"):
            module = importlib.import_module(str(node.module))
            known |= {alias.name: getattr(module, alias.name) for alias in node.names}
    assert known, "it shows something of lazycast"
    for item in (item for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items):
        assert isinstance(item.context_expr, ast.Call)
        assert isinstance(item.optional_vars, ast.Name)
        known[item.optional_vars.id] = known[ast.unparse(item.context_expr.func)]
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        owner, _, method = ast.unparse(call.func).partition(".")
        target = getattr(known[owner], method) if method else known[owner]
        given = [None] * (len(call.args) + (1 if method else 0))  # a method's own object
        inspect.signature(target).bind(*given, **{str(word.arg): None for word in call.keywords})
