"""Runs the commands whose output stands in the docs, and puts what they print in the place of what is there.

    python tools/outputs.py docs/doctor.md

A line `<!-- output of: COMMAND -->` stands above the block. Commands are those of the environment that runs this;
`the program above` is the last Python block before it.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

BLOCK = re.compile(
    r"(?P<head><!-- output of: (?P<command>[^>]+?) -->\n+```text\n).*?(?P<end>^```$)", re.DOTALL | re.MULTILINE
)
PROGRAM = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)


def output(command: str) -> str:
    """Run one command and return what it prints; it may say that something is wrong, but not that it was used badly."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "COLUMNS": "88",
        "NO_COLOR": "1",
    }
    done = subprocess.run(shlex.split(command), env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{command}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout.rstrip()


def above(text: str) -> str:
    """Run the last Python block of a text, and return what it prints."""
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "program.py")  # a file: ranks that it launches import it
        program.write_text(PROGRAM.findall(text)[-1])
        return output(shlex.join([sys.executable, str(program)]))


def renewed(text: str) -> str:
    """Return a page with what its commands print now."""

    def block(found: re.Match[str]) -> str:
        command = found["command"]
        said = above(text[: found.start()]) if command == "the program above" else output(command)
        return f"{found['head']}{said}\n{found['end']}"

    return BLOCK.sub(block, text)


def main() -> None:
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text(renewed(page.read_text()))


if __name__ == "__main__":
    main()
