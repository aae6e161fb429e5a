"""What a materializer runs in: the same on every rank, however many there are and whatever thread runs it.

It is what a new thread has. The caller's context variables (`decimal.localcontext`, NumPy's `errstate`, those of the
user) do not reach it, and what it sets itself is gone afterwards. Of what libraries keep for each thread it gets the
defaults: most materializers run on threads of lazycast's own, and one that would run in the caller's does so only if
nothing is set there.
"""

from __future__ import annotations

import contextvars
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

_DEFAULT_ERRORS = np.geterr() if np.lib.NumpyVersion(np.__version__) < "2.0.0" else None  # since 2.0 in the context


def apart(fn: Callable[..., Any], *args: object) -> Any:
    """Call `fn` in a context of its own."""
    return contextvars.Context().run(fn, *args)


def nothing_set() -> bool:
    """Whether this thread is, for the libraries that are loaded, as a new one is."""
    torch: Any = sys.modules.get("torch")
    # While another thread still imports it, this one cannot have set anything.
    if torch is not None and not getattr(torch.__spec__, "_initializing", False):
        modes = torch._C._len_torch_function_stack()  # `with torch.device(...)` among them
        if modes or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            return False
        if torch._C._is_any_autocast_enabled():
            return False
    return _DEFAULT_ERRORS is None or np.geterr() == _DEFAULT_ERRORS
