"""What mkdocs runs while it builds the site: a navigation without gaps, and two pages that live outside of docs/.

An entry with `*` in the navigation stands for all pages that match it and are named nowhere else, in the order of their
numbers or titles; so a new page is found, and the strict build fails on none that is not written.
"""

from __future__ import annotations

import sys
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]

#: Pages of the site that stand in the root folder, where people look for them in a checkout.
OUTSIDE = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_startup(**_: Any) -> None:
    """Give each parameter of a signature a line of its own."""
    from mkdocstrings_handlers.python._internal import rendering

    sys.path.insert(0, str(ROOT / "tools"))
    import docs_reference

    formatter = docs_reference.one_a_line(rendering._get_formatter())
    rendering._get_formatter = lambda: formatter


def on_config(config: MkDocsConfig) -> None:
    """Put pages in the place of patterns."""
    docs = Path(config.docs_dir)
    pages = {str(path.relative_to(docs)): path for path in docs.rglob("*.md")}
    named = set(_names(config.nav or []))
    free = {name: path for name, path in pages.items() if name not in named}
    config.nav = _filled(config.nav or [], free)


def on_page_markdown(markdown: str, *, page: Page, **_: Any) -> str:
    """Leave the width of the table of contents to the wide tables of the benchmarks."""
    if page.file.src_uri.startswith("benchmarks/"):
        page.meta["hide"] = ["toc"]
    return markdown


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere."""
    from mkdocs.structure.files import File

    for name, source in OUTSIDE.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, name, content=text.replace("](docs/", "](")))  # links from the root
    return files


def _names(nav: list[Any]) -> list[str]:
    """Return every page that a navigation names."""
    found: list[str] = []
    for entry in nav:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            found += _names(value) if isinstance(value, list) else [value]
    return found


def _filled(nav: list[Any], free: dict[str, Path]) -> list[Any]:
    found: list[Any] = []
    for entry in nav:
        if isinstance(entry, str) and "*" in entry:
            matching = [name for name in free if fnmatch(name, entry) and name.count("/") == entry.count("/")]
            found += sorted(matching, key=lambda name: _order(free[name]))
        elif isinstance(entry, dict):
            found += [
                {title: _filled(value, free) if isinstance(value, list) else value} for title, value in entry.items()
            ]
        else:
            found.append(entry)
    return found


def _order(path: Path) -> str:
    """Return what a page is sorted by: its number, if its name begins with one, else its heading."""
    if path.name[0].isdigit():
        return path.name
    lines = path.read_text(encoding="utf-8").splitlines()
    return next((line.removeprefix("# ") for line in lines if line.startswith("# ")), path.stem).lower()
