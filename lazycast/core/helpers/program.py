"""Brings the program that the ranks run to a helper, where something of it is named: as `multiprocessing` does for
processes that it spawns.

Guarantees: the program runs at most once, under the name `__mp_main__`, so what stands below
`if __name__ == "__main__":` does not run. What it defines is then found under `__main__` and `__mp_main__`.
"""

from __future__ import annotations

import runpy
import sys
import types

from lazycast.codec import script
from lazycast.tracebacks import describe

_NAMES = (b"__main__", b"__mp_main__")
_ADVICE = (
    "a helper runs it as multiprocessing's children do, under another name: what it is to do as the main program "
    'belongs below `if __name__ == "__main__":`'
)


def where() -> tuple[str, str] | None:
    """Say where this process's program is: ("module", its name) or ("path", its file); None if it has neither."""
    main = sys.modules.get("__main__")
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    name: object = getattr(spec, "name", None)
    if isinstance(name, str):
        return "module", name
    return ("path", file) if isinstance(file, str) and script.has_file() else None


def names(*blobs: bytes | memoryview) -> bool:
    """Whether pickles may name something of a program. Bytes of a payload can look like it."""
    return any(name in bytes(blob) for blob in blobs for name in _NAMES)


_brought = False


def refuse_while_brought(what: str) -> None:
    """Raise RuntimeError if a program that is only to define things starts `what`: each helper would start helpers."""
    if _brought:
        raise RuntimeError(f"{what} while a helper runs the program to have what it defines")


class Program:
    """The program of the ranks, in a helper. Used by one thread."""

    def __init__(self, place: tuple[str, str] | None) -> None:
        self._place = place

    def bring(self) -> None:
        """Run the program, if that has not been done. Raises RuntimeError if it cannot be."""
        if self._place is None:
            return
        global _brought
        (kind, name), self._place = self._place, None
        _brought = True
        try:
            found = runpy.run_path(name, run_name="__mp_main__") if kind == "path" else _module(name)
        except BaseException as exc:  # SystemExit too
            self._place = kind, name
            text = f"the program {name} could not be run in a helper: {describe(exc)}; {_ADVICE}"
            raise RuntimeError(text) from exc
        finally:
            _brought = False
        module = types.ModuleType("__mp_main__")
        module.__dict__.update(found)
        sys.modules["__main__"] = sys.modules["__mp_main__"] = module


def _module(name: str) -> dict[str, object]:
    return runpy.run_module(name, run_name="__mp_main__", alter_sys=True)
