"""A rank that floods the root with well-formed messages: they are not kept, and the others go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lazycast import launch

from . import floods
from .floods import ALLOWED_NBYTES, ANSWERED, ATTACKER, UNANSWERED

pytestmark = pytest.mark.usefixtures("warm_python")


def check(results: list[dict[str, Any]], kinds: floods.Floods) -> None:
    for name in kinds:
        assert results[ATTACKER][name][1] > 1000, (name, results)  # it was a flood
        for rank in (0, 1):
            taken, casts = results[rank][name]
            assert taken < ALLOWED_NBYTES, (name, rank, results)
            assert casts > 1, (name, rank, results)


@pytest.mark.exhaustive
def test_floods_take_no_memory_and_the_others_go_on(tmp_path: Path) -> None:
    kinds = UNANSWERED | ANSWERED
    check(launch(reading, ranks=3, args=(str(tmp_path),), timeout_s=200), kinds)


def reading(folder: str) -> Any:
    return floods.flooded(UNANSWERED | ANSWERED, folder, reads=True)


@pytest.mark.parametrize(
    "name", [name if n == 0 else pytest.param(name, marks=pytest.mark.exhaustive) for n, name in enumerate(ANSWERED)]
)
def test_who_asks_and_never_reads_the_answers_holds_up_nobody(name: str, tmp_path: Path) -> None:
    check(launch(deaf, ranks=3, args=(name, str(tmp_path)), timeout_s=200), {name: ANSWERED[name]})


def deaf(name: str, folder: str) -> Any:
    return floods.flooded({name: ANSWERED[name]}, folder, reads=False)
