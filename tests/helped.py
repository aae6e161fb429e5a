"""What helpers are given to make in the tests: importable, so that it gets there by name."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import lazycast

_kept: list[Any] = []
begun = False


def who(payload: Any) -> dict[str, Any]:
    return {"pid": os.getpid(), "parent": os.getppid(), "payload": payload}


def crash(payload: Any) -> Any:
    """A real one: it reads where nothing is."""
    return ctypes.string_at(0)


def crash_or(payload: Any) -> Any:
    return crash(payload) if payload == "crash" else who(payload)


def leave(code: int) -> None:
    os._exit(code)


def kill_itself_once(marker: str) -> dict[str, Any]:
    """The helper that is first dies, and its heir makes the value."""
    if not Path(marker).exists():
        Path(marker).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return {"first": int(Path(marker).read_text()), "pid": os.getpid()}


def hang(payload: Any) -> Any:
    """In C, and with the interpreter's lock."""
    if payload == "hang":
        ctypes.PyDLL(None).pause()
    return who(payload)


def hog(payload: Any) -> Any:
    """It takes what it is asked to, for good if that works."""
    if isinstance(payload, int):
        _kept.append(np.ones(payload, np.uint8))
        _kept.clear()
    return who(payload)


def slow(payload: tuple[str, float]) -> str:
    """It begins, says so by a file, and ends when a file is there, or somebody has withdrawn it."""
    folder, name = Path(payload[0]), str(payload[1])
    with (folder / "begun").open("a") as begun:
        begun.write(f"{name}\n")
    while not (folder / "go").exists():
        if lazycast.cancelled():
            (folder / "cancelled").write_text(name)
            return "nobody sees it"
        time.sleep(0.01)
    return name


def keep(payload: np.ndarray[Any, Any]) -> list[float]:
    """It keeps all payloads that it ever got, as they came, and looks at them again."""
    _kept.append(payload)
    return [float(np.unique(kept).item()) for kept in _kept]


def change(payload: np.ndarray[Any, Any]) -> float:
    before = float(payload.max())
    payload += 1000
    return before


def faults_of_an_array(nbytes: int) -> int:
    """Return how many pages the system had to find for an array of so many bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(nbytes, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def count_up(payload: Any) -> int:
    _kept.append(payload)
    return len(_kept)


def grown(n: int) -> dict[str, Any]:
    return {"large": np.full(n, n % 251, np.uint8), "small": np.arange(7), "pid": os.getpid()}


def checked(payload: tuple[int, np.ndarray[Any, Any], bool]) -> tuple[int, np.ndarray[Any, Any], bool]:
    """It takes a while, and uses all of its payload and none of its memory afterwards."""
    number, array, last = payload
    assert len(set(array.tolist())) == 1
    array += 1
    time.sleep(0.01)
    return number, np.repeat(array % 251, 3), last


def unpicklable(payload: Any) -> Any:
    return {"good": 1, "bad": threading.Lock()}


def raises(payload: Any) -> Any:
    raise KeyError(f"bad payload {payload!r}")


def exits(payload: Any) -> Any:
    sys.exit(3)


def surroundings(names: list[str]) -> dict[str, Any]:
    print("printed")
    print("in two", "lines\nof errors", file=sys.stderr, flush=True)
    sys.stdout.flush()
    return {
        "nice": os.nice(0),
        "path": list(sys.path),
        "env": {name: os.environ.get(name) for name in names},
        "session": os.getsid(0),
        "main thread": threading.current_thread() is threading.main_thread(),
        "begun": begun,
    }


def leaves_a_child(payload: Any) -> int:
    """A child of the helper lives on, and holds whatever it has inherited; then the helper dies."""
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    with Path(str(payload)).open("a") as children:
        children.write(f"{pid}\n")
    os.kill(os.getpid(), signal.SIGKILL)
    return pid


def comes_back_twice(payload: Any) -> Any:
    """The child of a materializer that forks must not go on as a helper."""
    if os.fork() == 0:
        return "the child"
    return "the parent"


def begin() -> None:
    global begun
    begun = True


def fail_to_begin() -> None:
    raise OSError("no such model")


def begin_never() -> None:
    time.sleep(600)


def die_at_begin() -> None:
    print("about to die", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def die_once_at_begin(marker: str) -> None:
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)


def prepare(payload: np.ndarray[Any, Any]) -> dict[str, Any]:
    return {"pid": os.getpid(), "sum": float(payload.sum())}


def finish(payload: np.ndarray[Any, Any], hint: dict[str, Any]) -> dict[str, Any]:
    payload += 1
    return {"pid": os.getpid(), "hint": hint, "after": float(payload.sum())}


def start_program(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


class OnlyHere:
    """A payload that pickles, and comes back in the process that made it alone."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __reduce__(self) -> Any:
        return rebuilt, (self.pid,)


def rebuilt(pid: int) -> OnlyHere:
    if pid != os.getpid():
        raise RuntimeError("it is only where it was made")
    return OnlyHere()


# For `Each`


def tripled(item: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return item * 3


def items_of(payload: dict[str, Any]) -> list[Any]:
    found: list[Any] = payload["items"]
    return found


def sizes_and_sum(made: list[np.ndarray[Any, Any]]) -> tuple[list[int], float]:
    return [one.size for one in made], float(sum(one.sum() for one in made))


def with_number(payload: dict[str, Any], hint: Any) -> tuple[int, Any]:
    return payload["number"], hint


def made_by(item: np.ndarray[Any, Any]) -> tuple[int, int]:
    return os.getpid(), int(np.unique(item).item())


def inverse(item: float) -> float:
    return 1 / item


def raises_on_one_rank(made: list[Any]) -> list[Any]:
    if os.environ["LAZYCAST_RANK"] == "1":
        raise LookupError("not here")
    return made


def as_many_as_its_process_says(payload: list[Any]) -> list[Any]:
    return [1.0] * (2 + int(os.environ["LAZYCAST_RANK"]))


class Locked:
    def __init__(self, number: int) -> None:
        self.number, self.lock = number, threading.Lock()


def locked(item: int) -> Locked:
    return Locked(item)


def numbers_of(made: list[Locked]) -> list[int]:
    return [one.number for one in made]


def slow_item(item: tuple[str, int]) -> int:
    slow((item[0], item[1]))
    return item[1]


def item_that_kills_once(item: str) -> str:
    """The process that gets this one first dies of it."""
    if item and not Path(item).exists():
        Path(item).write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def pause_at(item: float) -> float:
    time.sleep(item)
    return item


def computes(payload: Any) -> Any:
    """Computes in Python for a while; returns who did. Of negative numbers, what does not pickle; large ones crash."""
    if payload == "over":
        return payload
    until_s = time.thread_time() + 0.03
    while time.thread_time() < until_s:
        pass
    if payload < 0:
        return threading.Lock()
    if payload >= 1 << 40 and "LAZYCAST_RANK" not in os.environ:  # in a helper
        return crash(payload)
    return os.getpid()


def is_cheap(payload: Any) -> Any:
    return payload if payload == "over" else os.getpid()


def who_tripled(item: int) -> dict[str, Any]:
    if isinstance(item, str):
        raise TypeError("no number")
    return {"pid": os.getpid(), "large": np.full(20_000, 3 * item)}
