"""A headless Chromium: opens a page, and brings back what became of it.

Without one, tests are skipped with the reason, which fails them in CI (`tests/skips.py`).
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from .command import run

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_OFFLINE = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--enable-logging=stderr", "--v=0"),
)


@dataclass(frozen=True)
class Opened:
    """What a browser made of a page. `console`: what was written to its console, errors included."""

    dom: str
    console: list[str]


def find() -> str:
    """Return the browser; skip the test if there is none."""
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        reason = "no Chromium here; on Debian: apt-get install chromium"
        pytest.skip(reason)
    return found


def _run(url: str, *options: str) -> tuple[str, str]:
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        done = run([find(), *_OFFLINE, f"--user-data-dir={profile}", *options, url], timeout_s=200)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def open_page(url: str) -> Opened:
    """Load a page, let its scripts run, and return its DOM and console."""
    dom, log = _run(url, "--virtual-time-budget=3000", "--dump-dom")
    assert dom.strip(), log
    return Opened(dom, re.findall(r":CONSOLE[:(]\d+\)?\] (.*)", log))


def screenshot(url: str, path: Path, *, width: int = 1200, height: int = 1600, dark: bool = False) -> None:
    """Write a picture (PNG) of what stands in a window of that size."""
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    _run(url, f"--window-size={width},{height}", scheme, f"--screenshot={path}")
    assert path.exists()
