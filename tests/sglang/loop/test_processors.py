"""The image processor in helpers: SGLang's own, of a real Qwen2-VL, gives the same as in the tokenizer."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helped import helpers_of, in_helpers
from PIL import Image

from lazycast.adapters.sglang import plugin, processors, segments
from lazycast.tools.bench.sglang_loop import on_cpu, tiny

TEXT = "w1 <|vision_start|><|image_pad|><|vision_end|> "


def photo(seed: int, side: int) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side))


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """What the hook sees of a tokenizer, with two helpers; and SGLang's own executor, as `own`."""
    from sglang.srt.managers import tokenizer_manager
    from sglang.srt.runtime_context import publish
    from sglang.srt.server_args import prepare_server_args

    model = tiny.write(tmp_path_factory.mktemp("processors") / "model")
    arguments = prepare_server_args(["--model-path", str(model), "--tp", "2", *on_cpu.ARGUMENTS])
    arguments.resolve_once()
    publish(arguments, role="tokenizer")
    made = SimpleNamespace(server_args=arguments)
    made.model_config = tokenizer_manager.ModelConfig.from_server_args(arguments)
    init: Any = tokenizer_manager.TokenizerManager.init_tokenizer_and_processor
    init(made)
    made.own = made.mm_processor.mm_processor_executor
    with pytest.MonkeyPatch.context() as patch:
        for name, value in in_helpers(2).items():
            patch.setenv(name, value)
        processors.work_in_helpers(made)
    yield made
    made.mm_processor.mm_processor_executor.shutdown()


async def inputs(manager: Any, *images: Image.Image) -> Any:
    request = SimpleNamespace(rid="r", video_data=None, audio_data=None, image_data=list(images))
    return await manager.mm_processor.process_mm_data_async(
        image_data=request.image_data,
        audio_data=None,
        input_text=TEXT * len(images) + "w2",
        request_obj=request,
        max_req_input_len=30_000,
    )


def alone(manager: Any, *images: Image.Image) -> Any:
    """What SGLang's executor makes, hashed as its tokenizer does when it is told to."""
    processor = manager.mm_processor
    helped, processor.mm_processor_executor = processor.mm_processor_executor, manager.own
    try:
        made = asyncio.run(inputs(manager, *images))
    finally:
        processor.mm_processor_executor = helped
    for item in made.mm_items:
        item.set_pad_value()
    return made


def same(found: Any, expected: Any) -> None:
    import torch

    assert found.input_ids == expected.input_ids
    assert torch.equal(found.mrope_positions, expected.mrope_positions)
    assert len(found.mm_items) == len(expected.mm_items)
    for one, other in zip(found.mm_items, expected.mm_items, strict=True):
        assert (one.hash, one.pad_values, one.offsets) == (other.hash, other.pad_values, other.offsets)
        assert torch.equal(one.feature, other.feature)
        assert one.feature.stride() == other.feature.stride()


REQUESTS = [[photo(1, 280)], [photo(2, 560), photo(3, 280)], [photo(n, 140) for n in range(4, 9)]]


def test_it_is_the_same_as_in_the_tokenizer(manager: Any) -> None:
    expected = [alone(manager, *images) for images in REQUESTS]

    async def all_at_once() -> list[Any]:
        return await asyncio.gather(*(inputs(manager, *images) for images in REQUESTS * 4))

    before = manager.mm_processor.mm_processor_executor.stats().casts
    for found, other in zip(asyncio.run(all_at_once()), expected * 4, strict=True):
        same(found, other)
    assert manager.mm_processor.mm_processor_executor.stats().casts == before + 12
    for item in expected[1].mm_items:
        item.feature.zero_()
    same(asyncio.run(inputs(manager, *REQUESTS[0])), expected[0])


def test_what_the_processor_raises_is_raised(manager: Any) -> None:
    processor = manager.mm_processor
    with pytest.raises(AttributeError, match="organize_results"):
        asyncio.run(processor.mm_processor_executor.run(processor.process_and_combine_mm_data, None, None))
    same(asyncio.run(inputs(manager, *REQUESTS[0])), alone(manager, *REQUESTS[0]))


class OddError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__(f"{name} {number}")


@pytest.mark.parametrize("error", [ValueError("no image"), OddError("image", 3), OddError(threading.Lock(), 1)])  # type: ignore[arg-type]
def test_an_error_that_does_not_travel_says_what_it_was(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(processors, "_here", SimpleNamespace(fails=fails))
    found = processors.process(processors.Call("fails", (), {})).error
    assert str(error) in str(found)
    assert type(found) is (RuntimeError if isinstance(error, OddError) else ValueError)


def test_what_does_not_pickle_or_is_nothing_of_its_runs_in_the_tokenizer(manager: Any) -> None:
    executor = manager.mm_processor.mm_processor_executor

    def here(lock: Any, processor: Any = None) -> str:
        return f"{os.getpid()}"

    assert asyncio.run(executor.run(here, threading.Lock())) == f"{os.getpid()}"
    with pytest.raises(TypeError, match=r"build_input_ids\(\) got an unexpected keyword argument"):
        asyncio.run(executor.run(manager.mm_processor.build_input_ids, lock=threading.Lock()))
    assert executor.stats().failed == {"EncodeError": 1}


def test_a_helper_that_is_killed_loses_nothing(manager: Any) -> None:
    executor = manager.mm_processor.mm_processor_executor
    expected = alone(manager, *REQUESTS[1])

    async def while_it_is_at_work() -> Any:
        futures = [asyncio.ensure_future(inputs(manager, *REQUESTS[1])) for _ in range(6)]
        while not executor.stats().helpers_busy:
            await asyncio.sleep(0.001)
        os.kill(helpers_of(os.getpid())[0], signal.SIGKILL)
        return await asyncio.gather(*futures)

    for found in asyncio.run(while_it_is_at_work()):
        same(found, expected)


def test_a_call_that_is_cancelled_is_withdrawn(manager: Any) -> None:
    executor = manager.mm_processor.mm_processor_executor

    async def given_up() -> None:
        futures = [asyncio.ensure_future(inputs(manager, *REQUESTS[1])) for _ in range(24)]
        while executor.stats().pending <= 2 and not all(future.done() for future in futures):
            await asyncio.sleep(0.001)  # until more are there than two helpers can be at work on
        for future in futures:
            future.cancel()
        told = await asyncio.gather(*futures, return_exceptions=True)
        assert any(isinstance(one, asyncio.CancelledError) for one in told)

    before = executor.stats()
    asyncio.run(given_up())
    same(asyncio.run(inputs(manager, *REQUESTS[0])), alone(manager, *REQUESTS[0]))
    deadline = time.monotonic() + 60
    while executor.stats().pending and time.monotonic() < deadline:  # the other helper may still be at work on one
        time.sleep(0.01)
    assert executor.stats().pending == 0
    assert executor.stats().aborted > before.aborted


@pytest.mark.parametrize(
    ("helpers", "mib", "hooked"),
    [("", "0", False), ("0", "0", False), ("2", "0", True), ("", "", True), ("", "8", True)],
)
def test_the_plugin_hooks_the_tokenizer_if_there_is_something_to_do(
    monkeypatch: pytest.MonkeyPatch, helpers: str, mib: str, hooked: bool
) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.setenv(processors.PROCESSORS, helpers)
    monkeypatch.setenv(segments.SEGMENTS, mib)
    try:
        plugin.plugin()
        target = f"{processors.TOKENIZER}.TokenizerManager.{processors.METHOD}"
        assert (target in HookRegistry._hooks) is hooked
    finally:
        HookRegistry.reset()


def test_a_number_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processors.PROCESSORS, "two")
    with pytest.raises(ValueError, match="must be a number of processes, got 'two'"):
        plugin.plugin()
    monkeypatch.setenv(processors.PROCESSORS, "2")
    monkeypatch.setenv(segments.SEGMENTS, "two")
    with pytest.raises(ValueError, match="must be a number of MiB, got 'two'"):
        plugin.plugin()


def test_what_uses_a_device_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(processors.PROCESSORS, "2")
    processor = SimpleNamespace(_preprocessing_competes_with_the_scheduler=lambda: True, mm_processor_executor=None)
    processors.work_in_helpers(SimpleNamespace(mm_processor=processor))
    processors.work_in_helpers(SimpleNamespace(mm_processor=None))
    assert processor.mm_processor_executor is None
