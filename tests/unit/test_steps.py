"""What commands say of their progress, on a terminal and elsewhere."""

from __future__ import annotations

import io
import sys

import pytest

from lazycast.tools.cli.steps import Steps


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_each_step_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Steps("lazycast try") as steps:
        steps.say("reading")
        steps.say("writing 'a'")
    with Steps("lazycast try", shown=False) as steps:
        steps.say("not the rank that speaks")
    assert capsys.readouterr().err == "lazycast try: reading\nlazycast try: writing 'a'\n"


def test_on_a_terminal_names_are_shown_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich", reason="rich is not installed")
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Steps("lazycast try") as steps:
        steps.say("aligning 'a [/b] [red]c'")
    assert "lazycast try: aligning 'a [/b] [red]c'" in terminal.getvalue()


def test_on_a_terminal_without_rich_each_step_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazycast.tools.cli.steps.find_spec", lambda name: None)
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Steps("lazycast try") as steps:
        steps.say("reading")
    assert terminal.getvalue() == "lazycast try: reading\n"
