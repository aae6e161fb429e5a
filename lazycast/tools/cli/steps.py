"""Says on standard error what a command is doing: a spinner on a terminal if rich is there, else a line for each."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from types import TracebackType
from typing import Any


class Steps:
    """Shown while its block runs.

    Args:
        command: what each line begins with.
        shown: False says nothing, for ranks that have nothing to say.
    """

    def __init__(self, command: str, *, shown: bool = True) -> None:
        self._command, self._shown = command, shown
        self._status: Any = None

    def __enter__(self) -> Steps:
        if self._shown and sys.stderr.isatty() and find_spec("rich") is not None:
            from rich.console import Console

            self._status = Console(stderr=True).status("")
        return self

    def say(self, what: str) -> None:
        """Say what is done from now on."""
        if self._status is not None:
            from rich.text import Text

            self._status.update(Text(f"{self._command}: {what}"))  # as it is: names may look like rich's markup
            self._status.start()
        elif self._shown:
            print(f"{self._command}: {what}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show nothing any more."""
        if self._status is not None:
            self._status.stop()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()
