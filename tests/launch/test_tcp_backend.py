"""The backend to copy from, `examples/tcp_backend.py`: the conformance suite, lost ranks, strangers, other tokens."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from lazycast import BackendUnavailableError, CastTimeoutError, LazyBroadcast, Tuning
from lazycast.testing.kit import behaviours, name_of, raises

from .command import run

FILE = Path(__file__).parents[2] / "examples" / "tcp_backend.py"


def module() -> Any:
    """The example, imported once."""
    if "tcp_backend" not in sys.modules:
        spec = importlib.util.spec_from_file_location("tcp_backend", FILE)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["tcp_backend"] = loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
    return sys.modules["tcp_backend"]


def passes(only: str, timeout_s: float) -> None:
    done = run([sys.executable, str(FILE), only], timeout_s=timeout_s, PYTHONWARNINGS="error::ResourceWarning")
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    passed = re.findall(r"^ok +(\S+)$", done.stdout, re.MULTILINE)
    assert sorted(passed) == sorted(name for name in map(name_of, behaviours(3)) if only in name)
    assert "Traceback" not in done.stderr, done.stderr[-8000:]
    assert "a call failed" not in done.stderr, "the suite fails on purpose, and keeps it to itself"


@pytest.mark.exhaustive
def test_it_keeps_the_contract() -> None:
    passes("contract.", 100)


@pytest.mark.exhaustive
@pytest.mark.long  # all but the contract is the same on every backend
@pytest.mark.timeout(400)
def test_it_passes_the_whole_suite() -> None:
    passes("", 380)


def test_the_page_shows_a_piece_of_this_file() -> None:
    page = (FILE.parents[1] / "docs" / "writing-a-backend.md").read_text()
    (shown,) = re.findall(r"^<!-- from examples/tcp_backend\.py: .*? -->\n\n```python\n(.*?)^```$", page, re.S | re.M)
    assert f"\n{shown}\n" in FILE.read_text()
    assert {"send", "recv_header", "recv_body", "interrupt", "close"} <= set(re.findall(r"def (\w+)", shown))


Together = Callable[..., list[Any]]


def together(*fns: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(fns)) as pool:
        return [made.result(60) for made in [pool.submit(fn) for fn in fns]]


@contextlib.contextmanager
def backends(size: int, *tokens: str) -> Iterator[list[Any]]:
    example = module()
    addresses = example.free_addresses(size)
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(contextlib.closing(example.TCPBackend(rank, addresses, (*tokens, *"s" * size)[rank])))
            for rank in range(size)
        ]


def cast(lazy: LazyBroadcast[Any, Any]) -> Any:
    return lazy.broadcast(bytes(5 << 20) if lazy.is_root else None)  # larger than a chunk


def test_strangers_hold_nobody_up() -> None:
    with backends(3) as made, contextlib.ExitStack() as stack:
        host, port = made[0].addresses[0]
        mute, rude = (stack.enter_context(socket.create_connection((host, port))) for _ in range(2))
        rude.sendall(b"GET / HTTP/1.1\r\n" + b"x" * 100)
        objects = together(
            *(lambda b=b: LazyBroadcast(len, backend=b, tuning=Tuning(shared_memory=False)) for b in made)
        )
        try:
            assert together(*(lambda lazy=lazy: cast(lazy) for lazy in objects)) == [5 << 20] * 3
            mute.settimeout(20)
            while mute.recv(100):  # the challenge, and then the end
                pass
        finally:
            together(*(lazy.close for lazy in objects))


def test_who_has_another_token_is_no_rank() -> None:
    with backends(2, "ours", "theirs") as made:
        late: list[BaseException] = []

        def wait() -> None:
            try:
                made[0].open(timeout_s=1.0)
            except CastTimeoutError as exc:
                late.append(exc)

        waiting = threading.Thread(target=wait)
        waiting.start()
        text = r"\(rank 0 hung up: has it another token\?\) over TCP: rank 0 did not come within 1 s"
        raises(CastTimeoutError, text, lambda: made[1].open(timeout_s=1.0))
        waiting.join(20)
        assert "rank 1 did not come within 1 s" in str(late[0])


def test_a_rank_that_never_comes_is_named_and_nothing_is_left_open() -> None:
    with backends(3) as made:
        exc = raises(CastTimeoutError, "rank 1, 2 did not come within 0.2 s", lambda: made[0].open(timeout_s=0.2))
        assert exc.missing == (1, 2)
        raises(CastTimeoutError, "rank 0 did not come within 0.2 s", lambda: made[1].open(timeout_s=0.2))


def test_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = module().TCPBackend
    for name in ("TCP_RANK", "TCP_ADDRESSES", "TCP_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    raises(BackendUnavailableError, "needs TCP_RANK, TCP_ADDRESSES and TCP_TOKEN", backend.from_environment)
    (address,) = module().free_addresses(1)
    for name, value in (("TCP_RANK", "0"), ("TCP_ADDRESSES", address), ("TCP_TOKEN", "s")):
        monkeypatch.setenv(name, value)
    with contextlib.closing(backend.from_environment()) as made:
        assert (made.rank, made.size) == (0, 1)
        raises(BackendUnavailableError, f"cannot listen at {address}", backend.from_environment)


PROGRAM = f"""
import importlib.util, os, signal, sys
spec = importlib.util.spec_from_file_location("tcp_backend", {str(FILE)!r})
tcp = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tcp)
from lazycast import LazyBroadcast, PeerLostError, Tuning
rank, addresses = int(sys.argv[1]), sys.argv[2].split(",")
backend = tcp.TCPBackend(rank, addresses, "s")
lazy = LazyBroadcast(backend=backend, tuning=Tuning(shared_memory=False), timeout_s=60)
print(lazy.broadcast("first"), flush=True)
if rank == 2:
    os.kill(os.getpid(), signal.SIGKILL)
try:
    while True:  # what was on its way may have been reported on
        lazy.broadcast("more")
except PeerLostError as exc:
    print("lost", exc.rank, exc.link, flush=True)
lazy.close()
backend.close()
"""


def test_a_killed_rank_is_lost_to_all_others() -> None:
    addresses = ",".join(module().free_addresses(3))
    with ThreadPoolExecutor(3) as pool:
        command = [sys.executable, "-c", PROGRAM]
        made = [pool.submit(run, [*command, str(rank), addresses], timeout_s=100) for rank in range(3)]
        done = [one.result() for one in made]
    assert done[2].returncode == -signal.SIGKILL
    for other in done[:2]:
        assert other.returncode == 0, other.stderr
        assert other.stdout.splitlines() == ["first", "lost 2 TCP"], other.stdout + other.stderr
        assert "was lost" in other.stderr, "it is a warning of the log"
