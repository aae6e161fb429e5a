"""`lazycast bench --report`, as a user starts it, and its page in a browser."""

from __future__ import annotations

import json
import os
import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import warm

from . import browser
from .command import run
from .once import made_once

ROOT = Path(__file__).parents[2]

WAYS = ("itself", "root-value", "lazycast-root", "lazycast-shard", "lazycast-auto")

#: Put into a copy of the page: writes what the browser has laid out into the DOM.
MEASURE = """<script>
addEventListener("load", () => {
  document.querySelectorAll("details").forEach(d => { d.open = true; });
  const box = e => { const b = e.getBoundingClientRect(); return [b.width, b.height]; };
  const shapes = svg => [...svg.querySelectorAll("path, use")].filter(e => Math.max(...box(e)) > 0).length;
  const said = {
    svgs: [...document.querySelectorAll("svg")].map(s => ({
      box: box(s), shapes: shapes(s), label: s.getAttribute("aria-label"),
      texts: [...s.querySelectorAll("text")].map(t => [t.textContent, ...box(t)]),
      colours: [...new Set([...s.querySelectorAll("[style*=stroke]")].map(e => getComputedStyle(e).stroke))],
    })),
    tables: [...document.querySelectorAll("table")].map(t => ({
      box: box(t), head: [...t.tHead.rows[0].cells].map(c => c.textContent),
      rows: [...t.tBodies[0].rows].map(r => [...r.cells].map(c => c.textContent)),
    })),
    dts: [...document.querySelectorAll("dt")].map(e => [e.textContent, e.nextElementSibling.textContent]),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
  document.body.innerHTML = "<pre id=said></pre>";
  document.getElementById("said").textContent = JSON.stringify(said);
});
</script>"""


def measured(page: Path) -> dict[str, Any]:
    """What a browser has laid out of a page."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy".*?>', "", page.read_text(), count=1)
    copy = page.with_name(f"measured-{os.getpid()}.html")  # other processes of `-n` look at it too
    copy.write_text(text.replace("</head>", MEASURE + "</head>"))
    dom = browser.open_page(copy.as_uri()).dom
    said = re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL)
    assert said, dom[:2000]
    found: dict[str, Any] = json.loads(unescape(said[1]))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two numbers of ranks, measured here."""
    browser.find()
    return made_once("report", measure, tmp_path_factory)


def measure(out: Path) -> None:
    options = ["--backend", "torch", "--ranks", "2,3", "--no-figures", "--rounds", "1", "--report", str(out)]
    sizes = ["--no-requests", "--sizes", "1KiB,64KiB", "--cell-s", "1", "--kinds", "array,images"]
    load = ["--seconds", "0.1", "--workloads", "thumbnail", "--ways", ",".join(WAYS)]
    for name, more in (("images, 64 KiB", sizes), ("thumbnail", ["qps", *load])):
        done = run(
            [warm.python(), "-m", "lazycast", "bench", *options, *more], timeout_s=140, COLUMNS="200", NO_COLOR="1"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.endswith(f"report: {out / 'report.html'}\n")
        for ranks in (2, 3):  # a line for each step, though nobody is at a terminal
            assert re.search(rf"\d s +0%  {ranks} ranks: starting ranks", done.stderr)
            assert re.search(rf"\d s +\d+%  {ranks} ranks: {name}", done.stderr)
    for path in out.glob("*.json"):  # as on a quiet machine: else there would be no conclusions to look at
        path.write_text(re.sub(r'"load_before": [\d.]+', '"load_before": 0.0', path.read_text()))
    done = run([warm.python(), "-m", "lazycast", "bench", "report", str(out)], timeout_s=140)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
def test_the_report_has_every_run(folder: Path) -> None:
    runs = [f"{name}-torch-{ranks}.json" for name in ("bench", "qps") for ranks in (2, 3)]
    assert sorted(path.name for path in folder.glob("*.json")) == runs
    page = (folder / "report.html").read_text()
    for name in runs:
        said = json.loads((folder / name).read_text())
        assert said["command"].startswith("lazycast bench --backend torch --ranks 2,3 --no-figures ")
        assert f"<td>{name}</td>" in page
        assert str(said["machine"]["kernel"]) in page


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
def test_the_page_is_laid_out_and_silent(folder: Path) -> None:
    page = folder / "report.html"
    opened = browser.open_page(page.as_uri())
    assert opened.console == []
    assert opened.dom.rstrip().endswith("</html>")
    found = measured(page)
    assert found["overflow"] == 0

    labels = [svg["label"] for svg in found["svgs"]]
    assert sorted(labels) == sorted(
        [f"{kind}, torch, {n} ranks: time over size" for n in (2, 3) for kind in ("NumPy array", "dict of JPEG bytes")]
        + [f"thumbnail, torch, {n} ranks: requests a second, latency, processor time" for n in (2, 3)]
        + ["NumPy array of 64 KiB, torch: time until the last rank holds it over ranks"]
        + ["dict of JPEG bytes of 64 KiB, torch: time until the last rank holds it over ranks"]
        + ["thumbnail, torch: requests a second over ranks"]
        + ["thumbnail, torch, 3 ranks: requests a second, longer is better"]
    )
    first, *others = found["svgs"]
    assert first["label"].endswith("longer is better")
    assert {"lazycast", "rank 0 makes it, and"} <= {text for text, _, _ in first["texts"]}
    for svg in others:
        assert svg["box"][0] > 700
        assert svg["box"][1] > 150
        assert svg["shapes"] > 20, svg["label"]
        assert len(svg["colours"]) > 3, svg["label"]  # of the lines, from the style sheet
        for text, width, height in svg["texts"]:
            assert width > 0, text
            assert height > 0, text
        texts = {text for text, _, _ in svg["texts"]}
        expected = (
            {"lazycast-shard", "root-value"} if "thumbnail" in svg["label"] else {"lazycast", "broadcast_object_list"}
        )
        assert expected <= texts

    heads = [table["head"] for table in found["tables"]]
    assert heads.count(["way", "2 ranks", "3 ranks"]) == 3
    assert sum(head[:2] == ["size", "way"] for head in heads) == 4
    assert sum(head[:2] == ["way", "QPS"] for head in heads) == 2
    assert heads[-1] == ["file", "what", "date", "machine", "versions", "command"]
    for table in found["tables"]:
        assert min(table["box"]) > 0
        assert table["rows"]
        for row in table["rows"]:
            assert len(row) == len(table["head"]) or row[-1].startswith("not available: ")
    assert len(found["dts"]) > 5
    assert all(choose and why for choose, why in found["dts"])


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
def test_it_can_be_read_by_day_and_by_night(folder: Path, tmp_path: Path) -> None:
    grounds, inks = [], []
    for dark in (False, True):
        path = tmp_path / f"dark-{dark}.png"
        browser.screenshot((folder / "report.html").as_uri(), path, width=1300, height=6000, dark=dark)
        grey = np.asarray(Image.open(path).convert("L"), np.int16)
        ground = int(np.bincount(grey.ravel()).argmax())
        grounds.append(ground)
        inks.append(int((abs(grey - ground) > 100).sum()))
    assert grounds[0] > 240
    assert grounds[1] < 40
    assert inks[1] > 0.5 * inks[0] > 5_000  # what can be seen by day can be seen by night


@pytest.mark.exhaustive
@pytest.mark.timeout(400)
def test_a_narrow_window_scrolls_tables_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text((folder / "report.html").read_text().replace("<body>", '<body style="width: 420px">'))
    found = measured(page)
    assert found["overflow"] == 0
    first, *others = found["svgs"]
    assert first["box"][0] <= 420  # whole
    assert {svg["box"][0] for svg in others} == {46 * 16}  # not so small that nobody can read it


def test_the_published_page_is_laid_out_and_silent(tmp_path: Path) -> None:
    browser.find()
    page = tmp_path / "report.html"
    page.write_text((ROOT / "docs" / "benchmarks" / "report.html").read_text())
    check_published(page)


def check_published(page: Path) -> None:
    assert browser.open_page(page.as_uri()).console == []
    found = measured(page)
    assert found["overflow"] == 0
    assert len(found["svgs"]) >= 4
    assert any(head["head"][0] == "request" for head in found["tables"])  # SGLang's


@pytest.mark.exhaustive
def test_the_published_runs_make_a_page(tmp_path: Path) -> None:
    browser.find()
    page = tmp_path / "report.html"
    command = [
        warm.python(),
        "-m",
        "lazycast",
        "bench",
        "report",
        str(ROOT / "docs" / "benchmarks"),
        "--html",
        str(page),
    ]
    done = run(command, timeout_s=200)
    assert done.returncode == 0, done.stderr
    said = [line.split("%  ")[-1] for line in done.stderr.splitlines()]
    assert {"drawing bench-torch.json", "drawing qps-torch.json"} <= set(said)
    assert said[-1] == "writing the page"
    check_published(page)


@pytest.mark.exhaustive
def test_the_browser_would_tell(tmp_path: Path) -> None:
    """That a script, a picture from elsewhere and an error are seen, and refused by the page's own policy."""
    browser.find()
    template = (ROOT / "lazycast/tools/bench/page/page.html.j2").read_text()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy".*?>', template)
    assert policy
    page = tmp_path / "page.html"
    page.write_text("<!DOCTYPE html><title>x</title><script>throw new Error('seen')</script>")
    assert any("seen" in line for line in browser.open_page(page.as_uri()).console)
    page.write_text(
        f"<!DOCTYPE html>{policy[0]}<title>x</title><script>document.title = 'ran'</script><img src='pixel.png'>"
    )
    opened = browser.open_page(page.as_uri())
    assert "<title>x</title>" in opened.dom
    assert sum("Content Security Policy" in line for line in opened.console) == 2
