"""What makes the documentation: the picture of a cast, and the navigation of the site."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import lazycast

ROOT = Path(__file__).resolve().parents[2]
SVG = "{http://www.w3.org/2000/svg}"


def tool(name: str) -> ModuleType:
    """Load a script of `tools/`."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_what_its_script_draws() -> None:
    picture = tool("cast_picture")
    assert picture.TARGET.read_text() == picture.draw(), "run: python tools/cast_picture.py"


def test_figures_in_pages_are_those_of_the_published_runs() -> None:
    figures = tool("figures")
    named = set()
    for page in figures.PAGES:
        text = page.read_text()
        assert text == figures.renewed(text), f"{page.name} quotes other figures; run: python tools/figures.py"
        named |= {match["name"] for match in figures.BLOCK.finditer(text)}
    assert named == set(figures.MADE), "each figure is quoted somewhere"


def test_a_wrong_figure_in_a_page_is_found() -> None:
    figures = tool("figures")
    page = "of a core: <!-- figures: idle -->7 %<!-- end -->.\n\n<!-- figures: readme -->\n\nold\n\n<!-- end -->\n"
    renewed = figures.renewed(page)
    assert "old" not in renewed
    assert f"<!-- figures: idle -->{figures.idle()}<!-- end -->." in renewed
    assert f"<!-- figures: readme -->\n\n{figures.readme()}\n\n<!-- end -->\n" in renewed


def test_a_difference_within_the_spread_is_none() -> None:
    def way(p10: float, median: float, p90: float) -> dict[str, float]:
        return {"p10_s": p10, "median_s": median, "p90_s": p90}

    against = tool("figures").against
    assert against(way(0.9, 1.0, 1.1), way(1.05, 1.5, 2.0)) == "≈"
    assert against(way(0.9, 1.0, 1.1), way(1.2, 1.5, 2.0)) == "1.5x slower"
    assert against(way(1.2, 1.5, 2.0), way(0.9, 1.0, 1.1)) == "1.5x faster"
    assert against(way(1.0, 1.0, 1.0), way(1.01, 1.01, 1.01)) == "≈"  # too near, whatever the spreads


def test_the_picture_of_the_gain_is_that_of_the_published_run() -> None:
    picture = tool("gain_picture")
    assert picture.TARGET.read_text() == picture.draw(), "run: python tools/gain_picture.py"
    root = ET.fromstring(picture.draw())
    bars = {bar.attrib["class"]: float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect") if "rx" in bar.attrib}
    assert bars["ours"] == picture.LONGEST  # the longest
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    for box in root.iter(f"{SVG}rect"):
        assert float(box.attrib["x"]) + float(box.attrib["width"]) <= width
        assert float(box.attrib["y"]) + float(box.attrib["height"]) <= height


def test_the_picture_of_scaling_is_that_of_the_published_run() -> None:
    picture = tool("scaling_picture")
    assert picture.TARGET.read_text() == picture.draw(), "run: python tools/scaling_picture.py"
    lines = {
        line.attrib["class"]: [tuple(map(float, point.split(","))) for point in line.attrib["points"].split()]
        for line in ET.fromstring(picture.draw()).iter(f"{SVG}polyline")
    }
    run = json.loads(picture.RUN.read_text())["simulated"]
    assert {len(points) for points in lines.values()} == {len({row["ranks"] for row in run})}
    for points in lines.values():
        assert (points[0][0], points[-1][0]) == (picture.LEFT, picture.RIGHT)
        assert all(picture.TOP <= y <= picture.BOTTOM for _, y in points)
    assert lines["ours"][-1][1] > lines["theirs"][-1][1], "lower on the page: faster"


def test_the_picture_of_the_house_has_every_part_of_it() -> None:
    picture = tool("house_picture")
    assert picture.TARGET.read_text() == picture.draw(), "run: python tools/house_picture.py"
    wings = {path.parent.name for path in (ROOT / "lazycast").glob("*/__init__.py")}
    assert set(picture.FLOORS) == wings
    assert {name.rstrip("/") for name in picture.BESIDE} == {"backends", "adapters"}


def test_the_picture_is_whole_and_inside_its_frame() -> None:
    root = ET.fromstring(tool("cast_picture").draw())
    width, height = map(float, root.attrib["viewBox"].split()[2:])
    numbers = [
        element.findtext(f"{SVG}tspan") for element in root.iter(f"{SVG}text") if element.get("class") == "number"
    ]
    assert {number: numbers.count(number) for number in numbers} == {
        **{str(n): 2 for n in range(1, 9)},
        "3": 3,
    }  # each step once, the message to ranks and hosts twice, and each in the legend
    for line in root.iter(f"{SVG}polyline"):
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    marks = {mark.attrib["id"] for mark in root.iter(f"{SVG}marker")}
    style = root.findtext(f"{SVG}style") or ""
    assert {word.split(")")[0] for word in style.split("url(#")[1:]} == marks


@pytest.fixture
def filled(tmp_path: Path) -> Any:
    """Return what becomes of a navigation over some pages."""
    for name, title in {
        "index.md": "Start",
        "zebra.md": "A zebra",
        "ant.md": "Of ants",
        "how/b.md": "Second",
        "how/a.md": "Third",
        "how/deep/c.md": "Deep",
        "decisions/0002-b.md": "A",
        "decisions/0010-a.md": "B",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"Before.\n# {title}\n")

    def fill(nav: list[Any]) -> list[Any]:
        config = SimpleNamespace(docs_dir=str(tmp_path), nav=nav)
        tool("docs_hooks").on_config(config)
        return config.nav

    return fill


def test_patterns_stand_for_pages_that_are_named_nowhere_else(filled: Any) -> None:
    nav = [{"Start": "index.md"}, {"How": ["how/*.md"]}, {"Why": ["decisions/*.md"]}, {"Rest": ["ant.md", "*.md"]}]
    assert filled(nav) == [
        {"Start": "index.md"},
        {"How": ["how/b.md", "how/a.md"]},
        {"Why": ["decisions/0002-b.md", "decisions/0010-a.md"]},
        {"Rest": ["ant.md", "zebra.md"]},
    ]


def test_a_pattern_without_pages_leaves_nothing(filled: Any) -> None:
    assert filled([{"Start": "index.md"}, {"None": ["soon/*.md"]}]) == [{"Start": "index.md"}, {"None": []}]


def test_the_reference_names_everything_public() -> None:
    named = {
        match
        for page in (ROOT / "docs" / "api").glob("*.md")
        for match in re.findall(r"^::: lazycast\.(\w+)", page.read_text(), re.M)
    }
    assert "errors" in named  # all of them at once
    errors = {name for name, thing in inspect.getmembers(lazycast.errors, inspect.isclass)}
    assert set(lazycast.__all__) - errors - named - {"__version__"} == set(), "add them to docs/api/index.md"


def test_outputs_are_renewed_and_nothing_else() -> None:
    program = "```python\nprint({})\n```\n"
    page = "# Title\n\n" + program.format("1 + 1") + program.format("'the last'")
    page += "\n<!-- output of: the program above -->\n\n```text\nold\n```\n\n```text\nkept\n```\n" + program.format("3")
    page += "<!-- output of: lazycast --version -->\n```text\n```\n"
    renewed = tool("outputs").renewed(page)
    version = f"lazycast {lazycast.__version__}"
    assert renewed == page.replace("old", "the last").replace("-->\n```text\n```", f"-->\n```text\n{version}\n```")


def test_pages_are_in_plain_english() -> None:
    ease = tool("reading_ease")
    hard = "Notwithstanding considerable interdependencies, materialization necessitates unanimous synchronization."
    assert ease.ease(hard) < 0 < 90 < ease.ease("The root has a payload. It sends it to each rank.")
    assert ease.prose("# A title\n\nSome `code.name()` here.\n\n| a | table |\n\n```\nx = 1\n```\n").split() == [
        "Some",
        "x",
        "here.",
    ]
    found = {page.name: ease.ease(ease.prose(page.read_text())) for page in ease.PAGES}
    assert {name: value for name, value in found.items() if value < 60} == {}


def test_lines_at_the_end_of_a_docstring_are_paragraphs() -> None:
    pytest.importorskip("griffe", reason="mkdocstrings is not installed")
    laid_out = tool("docs_reference").laid_out
    told = """Cast it.

Args: as for `broadcast`, and
    block: whether to wait,
        or not.
Returns: a future,
    also awaitable.
Raises:
    KeyInUseError: it is
        pending.
Collective: no. Blocking: never."""
    assert (
        laid_out(told)
        == """Cast it.

**Args:** as for `broadcast`, and

- **block**: whether to wait,
  or not.

**Returns:** a future,
also awaitable.

Raises:
    KeyInUseError: it is
        pending.

**Collective:** no. **Blocking:** never."""
    )
    plain = "Do this: that.\n\nThreads, Memory and the rest.\n    indented: code"
    assert laid_out(plain) == plain


def test_signatures_have_one_parameter_a_line_or_fit_in_one() -> None:
    pytest.importorskip("griffe", reason="mkdocstrings is not installed")

    def ruff(code: str, width: int) -> str:
        command = [sys.executable, "-m", "ruff", "format", "--config", f"line-length={width}", "-"]
        return subprocess.run(command, input=code, capture_output=True, text=True, check=True).stdout

    formatter = tool("docs_reference").one_a_line(ruff)
    assert formatter("def f(a: int, b: int = 2): pass", 60) == "def f(a: int, b: int = 2):\n    pass\n"
    assert formatter("def function(raw: int, *, rid: int = 2): pass", 38).splitlines()[:5] == [
        "def function(",
        "    raw: int,",
        "    *,",
        "    rid: int = 2,",
        "):",
    ]
