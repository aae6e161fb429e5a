"""The whole server over HTTP: the same tokens with and without lazycast; clients that hang up; what is no image."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import FLAG, WAYS
from helped import helpers_of, in_helpers
from PIL import Image
from sums import SUMS

UP_S, LIMIT_S = 400.0, 120.0
HUNG_UP = [(seed, side) for seed in range(100, 106) for side in (560, 448)]


def jpeg(seed: int, side: int) -> str:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, "JPEG")
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def body(*images: str, tokens: int = 8) -> bytes:
    text = "w1 w2 " + "<|vision_start|><|image_pad|><|vision_end|> " * len(images) + "w5 w6"
    sampling = {"max_new_tokens": tokens, "temperature": 0, "ignore_eos": True}
    given: dict[str, Any] = {"text": text, "sampling_params": sampling}
    return json.dumps({**given, "image_data": list(images)} if images else given).encode()


class Server:
    """One that is running."""

    def __init__(self, port: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.port, self.process, self._log = port, process, log

    def ask(self, *images: str) -> tuple[list[int], int]:
        """Return the tokens, and how many of the prompt's were in the cache."""
        url = f"http://127.0.0.1:{self.port}/generate"
        request = urllib.request.Request(url, body(*images), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
            said = json.load(answer)
        return said["output_ids"], said["meta_info"]["prompt_tokens"]

    def hang_up(self, *images: str) -> None:
        """Ask, and go away before there is an answer."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT_S)) as connection:
            connection.request("POST", "/generate", body(*images, tokens=500), {"Content-Type": "application/json"})
            time.sleep(0.05)

    def wait_up(self) -> None:
        end_s = time.monotonic() + UP_S
        while True:
            assert self.process.poll() is None, f"the server has ended:\n{self._log.read_text()[-4000:]}"
            assert time.monotonic() < end_s, f"the server does not come up:\n{self._log.read_text()[-4000:]}"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health"):
                return
            time.sleep(0.5)


SERVERS: dict[str, tuple[list[str], dict[str, str]]] = {
    "alone": WAYS["alone"],
    "deferred": WAYS["deferred"],
    "helped": ([FLAG], in_helpers(1)),
    "in stages": ([FLAG, "--pp-size", "2", "--disable-overlap-schedule"], {}),
    # Encoders that are parallel by data: SGLang has no others here.
    "attention parallel by data": (
        [*(FLAG, "--tp", "4", "--dp", "2", "--enable-dp-attention"), "--mm-enable-dp-encoder"],
        {SUMS: "none"},
    ),
}
REQUESTS = [[(1, 560), (2, 560)], [(3, 224)], [(1, 560), (2, 560)], *([(10 + n, 448)] for n in range(6)), []]


@contextlib.contextmanager
def serving(way: str, folder: Path) -> Iterator[Server]:
    switches, environment = SERVERS[way]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / f"{way}.log"
    command = [sys.executable, Path(__file__).with_name("server.py"), folder / "model", "--port", str(port), *switches]
    given = {
        **os.environ,
        SUMS: "forward",
        **environment,
        "PYTHONWARNINGS": "ignore",
        "LAZYCAST_TRACE": str(traces(folder, way)),
    }
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [str(part) for part in command], env=given, stdout=file, stderr=file, start_new_session=True
        )
    server = Server(port, process, log)
    try:
        server.wait_up()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        end_s = time.monotonic() + LIMIT_S
        while kept_by(server):  # what takes the names away is no child of the server
            assert time.monotonic() < end_s, "its names are still there"
            time.sleep(0.01)


def traces(folder: Path, way: str) -> Path:
    """Return where each rank of a cast writes what it did."""
    return folder / f"traces-{way}"


def kept_by(server: Server) -> list[Path]:
    """Return the memory in which a server's tokenizer sends features."""
    return list(Path("/dev/shm").glob(f"lazycast_features_{server.process.pid}_*"))


def all_of(server: Server) -> list[tuple[list[int], int]]:
    return [server.ask(*(jpeg(*one) for one in images)) for images in REQUESTS]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[list[int], int]]:
    """What SGLang answers by itself."""
    folder = tmp_path_factory.mktemp("alone")
    with serving("alone", folder) as server:
        came = all_of(server)
        assert not kept_by(server)
    assert not traces(folder, "alone").exists()
    assert all(len(ids) == 8 for ids, _ in came)
    assert len({tuple(ids) for ids, _ in came}) == len(REQUESTS) - 1, "one comes twice"
    return came


def same_as_alone(way: str, alone: list[tuple[list[int], int]], folder: Path) -> None:
    """One by one, beside clients that hang up, and at the same time."""
    with serving(way, folder) as server, concurrent.futures.ThreadPoolExecutor(4) as threads:
        assert all_of(server) == alone
        assert len(kept_by(server)) in range(1, 8), "features of eleven images, one request after another"
        assert len(helpers_of(server.process.pid)) == (way == "helped")
        with pytest.raises(urllib.error.HTTPError) as caught:
            server.ask("data:image/jpeg;base64," + base64.b64encode(b"no image").decode())
        caught.value.close()
        assert caught.value.code >= 400
        list(threads.map(lambda one: server.hang_up(jpeg(*one), jpeg(*one)), HUNG_UP))
        assert list(threads.map(lambda images: server.ask(*(jpeg(*one) for one in images)), REQUESTS)) == alone
        assert server.process.poll() is None


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("way", "groups"),
    [("deferred", 1), ("helped", 1), ("in stages", 1), ("attention parallel by data", 2)],
)
def test_the_same_tokens_with_and_without(
    way: str, groups: int, alone: list[tuple[list[int], int]], tmp_path: Path
) -> None:
    """Each group of ranks that share a waiting queue puts requests aside; later stages get them with their inputs."""
    same_as_alone(way, alone, tmp_path)
    deferring = [trace.name for trace in traces(tmp_path, way).iterdir() if "deferred" in trace.name]
    assert len(deferring) == 2 * groups
    assert len({name.rpartition("-")[0] for name in deferring}) == groups
