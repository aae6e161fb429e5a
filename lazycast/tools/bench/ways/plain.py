"""The floor: what pickle, one socket to each rank and nothing else take in plain Python.

No keys, no futures, no agreement, no word of a failure; whoever offers those pays for them on top of this.
"""

from __future__ import annotations

import pickle
import secrets
import socket
from typing import Any

from lazycast.start import discovery
from lazycast.tools.bench.sync import TIMEOUT_S
from lazycast.tools.bench.ways.base import Way

#: Below what makes `malloc` ask the kernel for each buffer (128 KiB by default).
_PACKET_NBYTES = 64 << 10
_COUNT_NBYTES = 4


class PlainPython(Way):
    """The root pickles, and sends to one rank after the other; each receives in its call and unpickles."""

    name = "plain Python"

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        backend = discovery.resolve("auto")
        context = backend.open(timeout_s=TIMEOUT_S)
        try:
            self._sockets = _connect(context.exchange, rank, backend.size)
        finally:
            context.close()

    def run(self, payload: Any) -> Any:
        if self.rank != 0:
            return pickle.loads(_receive(self._sockets[0]))
        data = pickle.dumps(payload, pickle.HIGHEST_PROTOCOL)
        for peer in self._sockets:
            _send(peer, data)
        return payload

    def close(self) -> None:
        for peer in self._sockets:
            peer.close()


def _connect(exchange: Any, rank: int, size: int) -> list[socket.socket]:
    """Return the root's sockets to all others, and theirs to the root. Collective."""
    if rank != 0:
        address = exchange(b"", timeout_s=TIMEOUT_S)[0]
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer.connect(address)
        return [peer]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        address = b"\0lazycast-floor-" + secrets.token_hex(16).encode()
        listener.bind(address)
        listener.listen(size)
        exchange(address, timeout_s=TIMEOUT_S)
        listener.settimeout(TIMEOUT_S)
        return [listener.accept()[0] for _ in range(1, size)]


def _send(peer: socket.socket, data: bytes) -> None:
    """Send in as few packets as there can be; the first says how many bytes there are."""
    count, first = len(data).to_bytes(_COUNT_NBYTES, "big"), _PACKET_NBYTES - _COUNT_NBYTES
    peer.send(count + data[:first])
    rest = memoryview(data)[first:]
    for start in range(0, len(rest), _PACKET_NBYTES):
        peer.send(rest[start : start + _PACKET_NBYTES])


def _receive(peer: socket.socket) -> bytes | bytearray:
    packet = peer.recv(_PACKET_NBYTES)
    nbytes, data = int.from_bytes(packet[:_COUNT_NBYTES], "big"), packet[_COUNT_NBYTES:]
    if len(data) == nbytes:
        return data
    whole, got = bytearray(nbytes), len(data)
    whole[:got] = data
    view = memoryview(whole)
    while got < nbytes:
        taken = peer.recv_into(view[got:])
        if not taken:
            raise ConnectionError("the root has gone")
        got += taken
    return whole
