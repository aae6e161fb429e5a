"""Whether libraries of the extras are here, told without importing them."""

from __future__ import annotations

from importlib.util import find_spec

_NEEDED = {"rich": "rich", "PIL": "pillow", "sklearn": "scikit-learn"}


def missing() -> str | None:
    """Return a line that says what to install, or None if nothing is missing."""
    absent = [package for module, package in _NEEDED.items() if find_spec(module) is None]
    return f"{', '.join(absent)} not found; run: pip install 'lazycast[cli]'" if absent else None
