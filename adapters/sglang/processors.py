"""SGLang's image processor in helper processes, beside the tokenizer: its own executor for it, with lazycast's helpers.

Guarantees:

* SGLang's own processor does the work; each helper builds one as the tokenizer has built its own. What comes back is
  what it would have made here, tensors in shared memory. An error of the processor is raised as itself.
* Items come back with their hashes, as `SGLANG_MM_PRECOMPUTE_HASH` sets them, so that no scheduler hashes.
* What helpers cannot do is done as SGLang does it: processors that use a device, and calls that do not pickle.
* A call that is cancelled is withdrawn. One that crashes its helper is tried once more, in another one, and then fails.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import logging
import os
import pickle
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from lazycast import Helpers, Tuning
from lazycast.api import LazyBroadcast
from lazycast.errors import EncodeError
from lazycast.start import discovery

from .binding import skips_hashing

logger = logging.getLogger("lazycast")

#: How many helpers process images beside each tokenizer; without it, none.
PROCESSORS = "LAZYCAST_SGLANG_PROCESSORS"
TOKENIZER = "sglang.srt.managers.tokenizer_manager"
METHOD = "init_tokenizer_and_processor"
_ATTRIBUTE = "mm_processor_executor"
_LIMIT_S = 600.0  # of one call, waiting for a helper included
_AHEAD = 1 << 12  # calls: SGLang itself limits how many there are

_here: Any = None  # in a helper: its processor


class Call(NamedTuple):
    """What a helper is to do: a method of the processor, by its name."""

    method: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Raised(NamedTuple):
    """What it has raised."""

    error: Exception


class View(NamedTuple):
    """A feature that is part of a tensor which is sent, too: by its name there, and where it lies in its memory."""

    name: str
    size: tuple[int, ...]
    stride: tuple[int, ...]
    start: int  # elements after that tensor's own


class HelperExecutor:
    """Takes the place of SGLang's `MultimodalProcessorExecutor`.

    Args:
        processor: whose methods are run.
        arguments: the server's.
        count: how many helpers.
        instead: SGLang's executor; None where it has none, and runs such methods in the event loop.
        load: builds a helper's processor from the arguments; `build` if None.
    Raises: MaterializeError if a helper cannot build its processor.
    Blocking: until all helpers have, as long as SGLang takes to be imported.
    """

    def __init__(
        self,
        processor: Any,
        arguments: Any,
        count: int,
        instead: Any,
        *,
        load: Callable[[Any], None] | None = None,
    ) -> None:
        self._processor, self._instead = processor, instead
        self._lazy: LazyBroadcast[Call, Any] = LazyBroadcast(
            process,
            backend=discovery.by_name("local").threads(1)[0],  # type: ignore[attr-defined]
            name="sglang-processors",
            placement=Helpers(count, init=functools.partial(load or build, arguments)),
            timeout_s=_LIMIT_S,
            tuning=Tuning(max_inflight=_AHEAD, warn_after_s=_LIMIT_S),
        )

    async def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a method of the processor in a helper.

        Raises: what it raises; MaterializeError if two helpers have died of it.
        """
        if getattr(function, "__self__", None) is self._processor:
            try:
                future = self._lazy.broadcast_async(Call(function.__name__, args, kwargs))
                try:
                    made = await future
                except asyncio.CancelledError:  # it has ended the waiting alone
                    future.cancel()
                    raise
            except EncodeError as exc:
                logger.info("lazycast: %s runs in the tokenizer: %s", function.__name__, exc)
            else:
                if isinstance(made, Raised):
                    raise made.error
                return _joined(made)
        if self._instead is not None:
            return await self._instead.run(function, *args, **kwargs)
        return function(*args, **kwargs)

    def stats(self) -> Any:
        """Return counts and timings, as `LazyBroadcast.stats` does."""
        return self._lazy.stats()

    def shutdown(self) -> None:
        """End the helpers. What they have not done fails."""
        self._lazy.close(timeout_s=0)
        if self._instead is not None:
            self._instead.shutdown()


def helpers_wanted() -> int:
    """Return how many helpers the environment asks for. Raises: ValueError for what is no number."""
    given = os.environ.get(PROCESSORS) or "0"
    if not given.isdecimal():
        raise ValueError(f"{PROCESSORS} must be a number of processes, got {given!r}")
    return int(given)


def work_in_helpers(manager: Any) -> None:
    """After `METHOD`: let a tokenizer's processor work in helpers, if the environment says so and it can."""
    count, processor = helpers_wanted(), manager.mm_processor
    if not count or processor is None:
        return
    if processor._preprocessing_competes_with_the_scheduler() or getattr(processor, "use_cuda_ipc", False):
        logger.warning("lazycast: %s processes images on a device, not in helpers", type(processor).__name__)
        return
    executor = HelperExecutor(processor, manager.server_args, count, getattr(processor, _ATTRIBUTE))
    setattr(processor, _ATTRIBUTE, executor)
    logger.info("lazycast: %d helpers process images for %s", count, type(processor).__name__)


# In a helper


def build(arguments: Any) -> None:
    """Build a processor, as `TokenizerManager.init_tokenizer_and_processor` does."""
    global _here
    importlib.import_module("sglang.srt.plugins").load_plugins()  # others may have hooks of their own there
    importlib.import_module("sglang.srt.runtime_context").publish(arguments, role="tokenizer")
    tokenizer: Any = importlib.import_module(TOKENIZER)
    config = tokenizer.ModelConfig.from_server_args(arguments)
    tokenizer.import_processors("sglang.srt.multimodal.processors")
    if package := tokenizer.envs.SGLANG_EXTERNAL_MM_PROCESSOR_PACKAGE.get():
        tokenizer.import_processors(package, overwrite=True)
    _here = tokenizer.get_mm_processor(
        config.hf_config,
        arguments,
        tokenizer.get_processor_wrapper(),
        tokenizer.determine_tensor_transport_mode(),
        model_config=config,
        skip_mm_pool=True,
    )


def process(call: Call) -> Any:
    """Call a method of this helper's processor, and hash the items that it returns."""
    try:
        made = getattr(_here, call.method)(*call.args, **call.kwargs)
        items = _items(made)
        if not skips_hashing():
            for item in items:
                item.set_pad_value()
        if items:
            _part(items, made[2])
    except Exception as exc:
        return Raised(_that_travels(exc))
    return made


def _items(made: Any) -> list[Any]:
    """Return the items of what a processor has made: of items, tokens, and the outputs that these were made of."""
    kind = importlib.import_module("sglang.srt.managers.schedule_batch").MultimodalDataItem
    items = made[0] if isinstance(made, tuple) and len(made) == 3 else None
    return [item for item in items if isinstance(item, kind)] if isinstance(items, list) else []


def _that_travels(exc: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(exc))
    except Exception:  # its own code: it says at least what it was
        return RuntimeError(f"{type(exc).__name__}: {exc}")
    return exc


def _part(items: Any, outputs: Any) -> None:
    """Send what items share with the outputs once: features are slices of one tensor of all images."""
    torch = sys.modules["torch"]
    whole = {
        value.untyped_storage().data_ptr(): (name, value)
        for name, value in (outputs.items() if outputs else ())
        if isinstance(value, torch.Tensor) and value.is_contiguous()
    }
    for item in items:
        value = item.feature
        if not isinstance(value, torch.Tensor) or not value.is_contiguous():
            continue
        name, of = whole.get(value.untyped_storage().data_ptr(), ("", None))
        if of is not None and of.dtype == value.dtype:
            start = value.storage_offset() - of.storage_offset()
            if 0 <= start <= of.numel() - value.numel():
                item.feature = View(name, tuple(value.shape), value.stride(), start)


def _joined(made: Any) -> Any:
    """Undo `_part`, in the tokenizer."""
    for item in _items(made):
        if isinstance(part := item.feature, View):
            of = made[2][part.name]
            item.feature = of.as_strided(part.size, part.stride, of.storage_offset() + part.start)
    return made
