"""Combinations of parameters, of which `make test` takes some, and CI all."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping
from typing import Any

import pytest


def cells(often: Collection[str], *axes: Mapping[str, object]) -> list[Any]:
    """Return each combination of the values of some axes, called by their names, as "torch-shard". All but `often` are
    exhaustive.
    """
    found = []
    for cell in itertools.product(*(axis.items() for axis in axes)):
        name = "-".join(text for text, _ in cell)
        marks = [] if name in often else [pytest.mark.exhaustive]
        found.append(pytest.param(*(value for _, value in cell), id=name, marks=marks))
    return found
