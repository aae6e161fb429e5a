"""Runs the commands whose output stands in the docs, and puts what they print in the place of what is there.

    python tools/outputs.py docs/doctor.md

A line `<!-- output of: COMMAND -->` stands above the block. Commands are those of the environment that runs this.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(
    r"(?P<head><!-- output of: (?P<command>[^>]+?) -->\n+```text\n).*?(?P<end>^```$)", re.DOTALL | re.MULTILINE
)


def output(command: str) -> str:
    """Run one command and return what it prints; it may say that something is wrong, but not that it was used badly."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "100",
        "NO_COLOR": "1",
    }
    done = subprocess.run(shlex.split(command), env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.rstrip()


def main() -> None:
    for name in sys.argv[1:]:
        page = Path(name)
        text = page.read_text()
        page.write_text(BLOCK.sub(lambda found: f"{found['head']}{output(found['command'])}\n{found['end']}", text))


if __name__ == "__main__":
    main()
