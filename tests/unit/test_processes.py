"""What a process does, in a word."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable

from lazycast.net.host.processes import pid_behind, word


def eventually(ask: Callable[[], str | None], expected: str | None) -> None:
    deadline_s = time.monotonic() + 20
    while ask() != expected:
        assert time.monotonic() < deadline_s, f"{ask()!r} instead of {expected!r}"
        time.sleep(0.01)


def test_a_stopped_process_is_called_stopped_and_one_that_sleeps_is_not() -> None:
    name = "print('up', flush=True); import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", name], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            child.stdout.readline()
            eventually(lambda: word(child.pid), None)
            child.send_signal(signal.SIGSTOP)
            eventually(lambda: word(child.pid), "stopped by a signal")
            child.send_signal(signal.SIGCONT)
            eventually(lambda: word(child.pid), None)
        finally:
            child.kill()
        eventually(lambda: word(child.pid), "dead, and not yet waited for")
    assert word(child.pid) is None


def test_of_nobody_nothing_is_known() -> None:
    assert word(None) is None
    assert word(2**22 + 1) is None


def test_the_process_behind_a_socket_is_named_unless_it_is_this_one() -> None:
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with here, there:
        assert pid_behind(here) is None
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as internet:
        assert pid_behind(internet) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind("")
        listener.listen()
        code = f"""
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
    sock.connect({listener.getsockname()!r})
    sock.recv(1)
"""
        child = subprocess.Popen([sys.executable, "-c", code])
        sock, _ = listener.accept()
        with sock:
            assert pid_behind(sock) == child.pid
        assert child.wait(20) == 0
    assert os.getpid() != child.pid
