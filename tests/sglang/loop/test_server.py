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

UP_S, LIMIT_S = 200.0, 120.0
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


@contextlib.contextmanager
def serving(way: str, folder: Path) -> Iterator[Server]:
    switches, environment = WAYS.get(way) or ([FLAG], in_helpers(1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder / f"{way}.log"
    command = [sys.executable, Path(__file__).with_name("server.py"), folder / "model", "--port", str(port), *switches]
    given = {**os.environ, **environment, "PYTHONWARNINGS": "ignore", "LAZYCAST_TRACE": str(folder / f"traces-{way}")}
    with open(log, "wb") as file:
        process = subprocess.Popen(
            [str(part) for part in command], env=given, stdout=file, stderr=file, start_new_session=True
        )
    try:
        server = Server(port, process, log)
        server.wait_up()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.timeout(900)
def test_the_same_tokens_with_and_without(tmp_path: Path) -> None:
    requests = [
        [],
        [jpeg(1, 560), jpeg(2, 560)],
        [jpeg(3, 224)],
        [jpeg(1, 560), jpeg(2, 560)],
        *([jpeg(10 + n, 448)] for n in range(6)),
    ]
    came = {}
    for way in ("alone", "deferred", "helped"):
        with serving(way, tmp_path) as server, concurrent.futures.ThreadPoolExecutor(4) as threads:
            came[way] = [server.ask(*images) for images in requests]
            assert len(helpers_of(server.process.pid)) == (way == "helped")
            if way != "alone":
                with pytest.raises(urllib.error.HTTPError) as caught:
                    server.ask("data:image/jpeg;base64," + base64.b64encode(b"no image").decode())
                caught.value.close()
                assert caught.value.code >= 400
                list(threads.map(lambda one: server.hang_up(jpeg(*one), jpeg(*one)), HUNG_UP))
                together = list(threads.map(lambda images: server.ask(*images), requests))
                assert together == came[way]
                assert server.process.poll() is None
    assert came["deferred"] == came["helped"] == came["alone"]
    assert not (tmp_path / "traces-alone").exists()
    assert len(list((tmp_path / "traces-deferred").iterdir())) >= 2, "no casts of two ranks"
    assert all(len(ids) == 8 for ids, _ in came["alone"])
