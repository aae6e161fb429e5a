"""Whether something waits for a lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


def waits_for(lock: Any, call: Callable[[], object]) -> bool:
    """Call something on another thread while this one holds a lock, and say whether it ends then no sooner than that.

    A machine on which that thread is not run for a while hides that it does not wait; what does wait is never accused.
    """
    failures: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as exc:
            failures.append(exc)

    thread = threading.Thread(target=run, daemon=True)
    with lock:
        thread.start()
        thread.join(0.3)
        waits = thread.is_alive()
    thread.join(60)
    assert not thread.is_alive(), "it does not end without the lock either"
    assert not failures, failures
    return waits
