"""What several subcommands accept, as `type=` of an argument. Each raises what argparse turns into a message."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Collection
from typing import TypeVar

T = TypeVar("T")


def whole(least: int) -> Callable[[str], int]:
    """Accept whole numbers of at least `least`."""

    def parse(text: str) -> int:
        if not text.strip().isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return parse


def above_zero(text: str) -> float:
    """Accept finite numbers above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return number


def one_of(names: Collection[str]) -> Callable[[str], str]:
    """Accept one of these, inside `listed`."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError(f"unknown: {text!r}; there are {', '.join(names)}")
        return text

    return parse


def listed(parse: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    """Accept what `parse` does, with commas between; each once."""

    def parse_all(text: str) -> tuple[T, ...]:
        try:
            return tuple(dict.fromkeys(parse(part.strip()) for part in text.split(",")))
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc

    return parse_all


#: Numbers of ranks, each for a run of its own.
RANKS = listed(whole(2))


def stem(benchmark: str, backend: str, ranks: int | None) -> str:
    """Return the name of a run's files without their ending; `ranks` where several numbers of them are measured."""
    return f"{benchmark}-{backend}" if ranks is None else f"{benchmark}-{backend}-{ranks}"
