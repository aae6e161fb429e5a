"""The default of `payload`: it tells "no payload given" from None, which is a payload like any other."""

from __future__ import annotations

from enum import Enum
from typing import Final


class Missing(Enum):
    """A type of one value, so that signatures can name it."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing.MISSING
