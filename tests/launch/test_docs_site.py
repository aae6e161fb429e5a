"""The site of the documentation: it builds strictly, asks for nothing from elsewhere, and works in a browser.

Needs mkdocs (the extra `docs`). Without it these tests are skipped, which fails them in CI (`tests/skips.py`).
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest

from . import browser
from .command import run
from .once import made_once

pytestmark = pytest.mark.exhaustive
ROOT = Path(__file__).parents[2]

#: What a browser would fetch by itself, of another host.
FETCHED = re.compile(
    r'<(?:script|img|iframe|source)[^>]+src="?(?:https?:)?//|<link[^>]+rel="?stylesheet[^>]+href="?https?://'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site."""
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None:
        reason = "no mkdocs here; run: pip install 'lazycast[docs]'"
        pytest.skip(reason)
    return made_once("site", build, tmp_path_factory)


def build(out: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--config-file",
        str(ROOT / "mkdocs.yml"),
    ]
    done = run([*command, "--site-dir", str(out)], timeout_s=200, NO_MKDOCS_2_WARNING="1")
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder on this machine; yield its address."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.timeout(400)
def test_every_page_is_there_and_fetches_nothing_from_elsewhere(site: Path) -> None:
    beside = {Path("changelog.html"), Path("contributing.html"), Path("benchmarks/report.html")}
    written = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert written | beside == built - {Path("404.html")}
    for path in built:
        found = FETCHED.search((site / path).read_text())
        assert found is None, (path, found)


@pytest.mark.timeout(400)
def test_the_reference_has_every_public_name(site: Path) -> None:
    import lazycast

    pages = "".join(path.read_text() for path in (site / "api").glob("*.html"))
    named = set(re.findall(r'id="lazycast\.(?:errors\.)?(\w+)"', pages))
    assert set(lazycast.__all__) - named - {"__version__"} == set()


@pytest.mark.timeout(400)
def test_it_works_in_a_browser(site: Path) -> None:
    browser.find()
    with served(site) as address:
        for page in ("index.html", "concepts.html", "api/index.html"):
            opened = browser.open_page(f"{address}/{page}")
            assert opened.console == [], page
            assert "md-search" in opened.dom
            assert "Guarantees and limits" in opened.dom  # the navigation
        assert 'src="images/cast.svg"' in browser.open_page(f"{address}/concepts.html").dom
