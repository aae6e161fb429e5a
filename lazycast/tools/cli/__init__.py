"""The `lazycast` command: `lazycast demo` and whatever else `_COMMANDS` lists, one module each.

A subcommand's module has `HELP`, `add_arguments(parser)` and `run(args) -> exit code`. It imports what the extra
`cli` brings inside its functions only, so that `lazycast --help` works without it.

Exit codes: 0 all is well; 1 the command found something wrong; 2 it cannot do what was asked here, or was asked badly;
128 and the number of the signal that ended it. Whatever that was, but SIGKILL, the ranks have ended by then and
temporary folders are gone.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence

from lazycast.errors import BackendUnavailableError, LazycastError
from lazycast.tools.cli import bench, demo, doctor, soak, trace
from lazycast.version import __version__

_COMMANDS = {"demo": demo, "doctor": doctor, "bench": bench, "soak": soak, "trace": trace}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command."""
    parser = argparse.ArgumentParser(prog="lazycast", description="Cast raw payloads to every rank of a job.")
    parser.add_argument("--version", action="version", version=f"lazycast {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, module in _COMMANDS.items():
        command = commands.add_parser(name, help=module.HELP, description=module.__doc__)
        command.formatter_class = argparse.RawDescriptionHelpFormatter
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    Args:
        argv: the arguments, without the program's name; by default those of this process.
    Raises: SystemExit with code 2 for arguments that make no sense.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    args.command_line = shlex.join(["lazycast", *words])  # for reports
    try:
        with _signals_end_it():
            code: int = args.run(args)
    except BackendUnavailableError as exc:
        print(f"lazycast: {exc}", file=sys.stderr)
        return 2
    except LazycastError as exc:
        print(f"lazycast: {type(exc).__name__}: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return code


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """Let the signals that ask a program to end do so by way of its `finally`: by default it would end where it is.

    The first one counts, and the rest are ignored until the process has ended, which takes seconds: who presses Ctrl-C
    twice would leave folders.
    """
    if threading.current_thread() is not threading.main_thread():  # Python allows no other to set handlers
        yield
        return
    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    by_default = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: signal.getsignal(number) for number in ends if signal.getsignal(number) in by_default}
    told = False  # `nohup` and `command &` ignore some: those stay so

    def end(number: int, frame: object) -> None:
        nonlocal told
        told = True
        for known in before:
            signal.signal(known, signal.SIG_IGN)
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

    for number in before:
        signal.signal(number, end)
    try:
        yield
    finally:
        if not told:
            for number, handler in before.items():
                signal.signal(number, handler)
