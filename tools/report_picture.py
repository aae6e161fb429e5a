"""Take docs/images/report.png: the top of the page of `lazycast bench report docs/benchmarks`. Needs Chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "report.html"
TARGET = ROOT / "docs" / "images" / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,1330"),
    "--blink-settings=preferredColorScheme=1",  # light, whatever this machine prefers
)


def main() -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("no Chromium here; on Debian: apt-get install chromium")
    subprocess.run([sys.executable, "-m", "lazycast", "bench", "report", str(PAGE.parent)], check=True)
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        options = [*OPTIONS, f"--user-data-dir={profile}", f"--screenshot={TARGET}"]
        subprocess.run([browser, *options, PAGE.as_uri()], check=True, timeout=60, capture_output=True)
    Image.open(TARGET).convert("RGB").quantize(48).save(TARGET, optimize=True)  # text needs few colours
    print(TARGET)


if __name__ == "__main__":
    main()
