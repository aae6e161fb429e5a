"""SGLang's image processor beside its tokenizer's event loop: in it, on SGLang's threads, and in lazycast's helpers.

Each request has two photos. What is measured is what the tokenizer does with them: the processor of a Qwen2-VL, as fast
(torch) and as slow (Pillow) as SGLang offers, the hashes, and features in shared memory for the schedulers. Each round
takes every way in turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import os
import pickle
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np

from lazycast.errors import BackendUnavailableError
from lazycast.tools.bench.sglang import without_gpu
from lazycast.tools.bench.sglang_loop import on_cpu, tiny
from lazycast.tools.bench.sglang_loop.sending import senders
from lazycast.tools.bench.sglang_loop.session import RELEASE, described, quantile

WAYS = {
    "loop": "in the tokenizer's event loop, as with --mm-processor-worker-num 1; it hashes on two threads",
    "threads": "on two threads of the tokenizer, SGLang's own executor; it hashes on two threads",
    "kept": "the same with lazycast's plugin: features lie in memory that is kept",
    "helpers": "in two helper processes of lazycast, which hash, too; the plugin is there",
}
_PLUGIN = ("kept", "helpers")
PROCESSORS = {"fast": (), "slow": ("--image-processor-backend", "pil")}
WORKERS = 2
_PHOTOS, _EACH = 8, 2
_REST_S = 0.002  # how often the loop is asked how late it is
_TEXT = "w1 <|vision_start|><|image_pad|><|vision_end|> " * _EACH + "w2"


@dataclass(frozen=True)
class ImagesPlan:
    """One run.

    Attributes:
        ways, processors: names.
        rounds: how many, beside one that does not count.
        requests: at once, in a round of a way.
        side: of a photo, in pixels.
    """

    ways: tuple[str, ...] = tuple(WAYS)
    processors: tuple[str, ...] = tuple(PROCESSORS)
    rounds: int = 5
    requests: int = 24
    side: int = 896


@dataclass(frozen=True)
class Round:
    """What one way took: requests a second, how late the loop was (seconds), and processor time of each request."""

    per_s: float
    late_p50_s: float
    late_p99_s: float
    cpu_s: float


def run(plan: ImagesPlan, *, command: str | None = None) -> dict[str, Any]:
    """Measure what `plan` says; return all that is known of the run, as JSON has it.

    Raises: BackendUnavailableError without SGLang 0.5.23. Blocking: until all is measured.
    """
    if find_spec("sglang") is None or without_gpu.release_text() != RELEASE:
        raise BackendUnavailableError(f"this benchmark runs SGLang {RELEASE}, which is not installed here")
    on_cpu.prepare()
    with tempfile.TemporaryDirectory() as folder:
        model = tiny.write(Path(folder) / "model")
        cells = [{"processor": name, "ways": _measure(plan, model, PROCESSORS[name])} for name in plan.processors]
    return described("sglang-images", asdict(plan), cells, command)


def _measure(plan: ImagesPlan, model: Path, switches: Sequence[str]) -> dict[str, Any]:
    photos = [_photo(seed, plan.side) for seed in range(_PHOTOS)]
    with _processor(model, switches) as (processor, executors), senders() as send_with:
        found: dict[str, list[Round]] = {way: [] for way in plan.ways}
        for turn in range(plan.rounds + 1):
            first = turn % len(plan.ways)
            for way in [*plan.ways[first:], *plan.ways[:first]]:
                processor.mm_processor_executor = executors[way]
                send_with(way in _PLUGIN)
                measured = asyncio.run(_all_at_once(processor, photos, plan.requests))
                if turn:
                    found[way].append(measured)
    return {way: figures(rounds) for way, rounds in found.items()}


def figures(rounds: Sequence[Round]) -> dict[str, Any]:
    """Return medians over rounds, and the rates of all."""
    names = ("per_s", "late_p50_s", "late_p99_s", "cpu_s")
    return {
        **{name: median(getattr(one, name) for one in rounds) for name in names},
        "per_s_of_rounds": [one.per_s for one in rounds],
    }


@contextlib.contextmanager
def _processor(model: Path, switches: Sequence[str]) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Build a tokenizer's processor, as SGLang does, and what can run it; end that."""
    arguments = importlib.import_module("sglang.srt.server_args").prepare_server_args(
        ["--model-path", str(model), "--mm-processor-worker-num", str(WORKERS), *on_cpu.ARGUMENTS, *switches]
    )
    arguments.resolve_once()
    importlib.import_module("sglang.srt.runtime_context").publish(arguments, role="tokenizer")
    tokenizer: Any = importlib.import_module("sglang.srt.managers.tokenizer_manager")
    manager = SimpleNamespace(server_args=arguments, model_config=tokenizer.ModelConfig.from_server_args(arguments))
    tokenizer.TokenizerManager.init_tokenizer_and_processor(manager)
    processor: Any = vars(manager)["mm_processor"]
    threads = processor.mm_processor_executor
    ours: Any = importlib.import_module("lazycast.adapters.sglang.processors")  # tools know adapters by name only
    helpers = ours.HelperExecutor(processor, pickle.dumps(arguments), WORKERS, None, load=load_without_gpu)
    try:
        yield processor, {"loop": None, "threads": threads, "kept": threads, "helpers": helpers}
    finally:
        helpers.shutdown()
        threads.shutdown()


def load_without_gpu(arguments: bytes) -> None:
    """In a helper, on a machine without a GPU: build its processor."""
    on_cpu.prepare()
    importlib.import_module("lazycast.adapters.sglang.processors").build(pickle.loads(arguments))


async def _all_at_once(processor: Any, photos: Sequence[bytes], count: int) -> Round:
    hashing = type(processor.hash_executor)()  # it belongs to one loop
    shared: Any = importlib.import_module("sglang.srt.managers.mm_utils")
    late_s: list[float] = []

    async def one(number: int) -> None:
        images = [photos[(number + n) % len(photos)] for n in range(_EACH)]
        request = SimpleNamespace(rid=str(number), image_data=images, video_data=None, audio_data=None)
        made = await processor.process_mm_data_async(
            image_data=images, audio_data=None, input_text=_TEXT, request_obj=request, max_req_input_len=1 << 15
        )
        await hashing.set_pad_values(made.mm_items)
        for item in made.mm_items:
            sent = shared._wrap_tensor_or_list(item.feature, precomputed_hash=item.hash)
            sent.close_and_unlink()  # as schedulers do

    async def watch() -> None:
        while True:
            began_s = time.perf_counter()
            await asyncio.sleep(_REST_S)
            late_s.append(time.perf_counter() - began_s - _REST_S)

    watching = asyncio.create_task(watch())
    began_s, cpu_s = time.perf_counter(), _cpu_s()
    await asyncio.gather(*map(one, range(count)))
    took_s, cpu_s = time.perf_counter() - began_s, _cpu_s() - cpu_s
    watching.cancel()
    hashing.shutdown()
    return Round(count / took_s, quantile(late_s, 0.5), quantile(late_s, 0.99), cpu_s / count)


def _cpu_s() -> float:
    """Return the processor time of this process and those that it has started, so far."""
    psutil: Any = importlib.import_module("psutil")  # comes with SGLang
    here = psutil.Process(os.getpid())
    return float(sum(sum(one.cpu_times()[:2]) for one in (here, *here.children(recursive=True))))


def _photo(seed: int, side: int) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
    with io.BytesIO() as file:
        Image.fromarray(pixels).resize((side, side)).save(file, "JPEG")
        return file.getvalue()
