"""What the tests share: the ranks, schedulers with and without lazycast, and what makes two results the same."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
import torch.distributed as dist

from lazycast.adapters.sglang import Binding, install, uninstall
from lazycast.tools.bench.sglang.scheduler import scheduler_class, without_model

T = TypeVar("T")

Scheduler = scheduler_class()
BINDING = Binding.find()


class Ranks:
    """This process among the ranks."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def meet(self) -> None:
        dist.barrier()

    def tell(self, fact: T) -> list[T]:
        """Return what each rank has to tell."""
        facts: list[Any] = [None] * self.size
        dist.all_gather_object(facts, fact)
        return facts

    def agree(self, fact: object) -> None:
        """Make sure that all ranks have the same to tell."""
        facts = self.tell(fact)
        assert all(other == facts[0] for other in facts), facts


def hashes(made: Any) -> list[tuple[Any, ...]]:
    return [(item.hash, item.pad_value, getattr(item, "pad_values", None)) for item in made.mm_items]


def alone(raw: Any, **options: Any) -> Any:
    """What SGLang makes of raw inputs by itself. They are copied first."""
    return dataclasses.replace(BINDING, options=tuple(options.items()))(copy.deepcopy(raw))


def same(found: Any, expected: Any, where: str = "") -> None:
    """Raise unless two objects are equal all the way down, tensors and arrays included."""
    assert type(found) is type(expected), f"{where}: {type(found)} is not {type(expected)}"
    if isinstance(found, torch.Tensor):
        assert found.dtype == expected.dtype, where
        assert torch.equal(found, expected), where
    elif isinstance(found, np.ndarray):
        np.testing.assert_array_equal(found, expected, where)
    elif isinstance(found, dict):
        assert list(found) == list(expected), where
        for key in found:
            same(found[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(found, (list, tuple)):
        assert len(found) == len(expected), where
        for n, (one, other) in enumerate(zip(found, expected, strict=True)):
            same(one, other, f"{where}[{n}]")
    elif hasattr(found, "__struct_fields__"):
        for name in found.__struct_fields__:
            same(getattr(found, name), getattr(expected, name), f"{where}.{name}")
    elif dataclasses.is_dataclass(found):
        same(vars(found), vars(expected), where)
    else:
        assert found == expected, where


@contextlib.contextmanager
def installed(group: Any = None, **options: Any) -> Iterator[Any]:
    """A scheduler of this rank that uses lazycast. Collective."""
    scheduler = without_model(Scheduler, group, **options)
    install(scheduler)
    try:
        yield scheduler
        dist.barrier(scheduler.dp_tp_cpu_group)  # not after a failure: closing ends the others' waiting
    finally:
        uninstall(scheduler)


def process(scheduler: Any, raw: Any) -> Any:
    """SGLang's own method, or what has taken its place."""
    return scheduler._process_and_broadcast_mm_inputs(raw)


def failing(call: Callable[[], object], match: str, within_s: float = 10.0) -> Exception:
    """Return the error of a call, which must come in time, and be what SGLang's callers catch, if they do."""
    module = __import__("sglang.srt.managers.scheduler", fromlist=["scheduler"])
    expected = getattr(module, "_MultimodalInputProcessingError", Exception)
    began_s = time.monotonic()
    with pytest.raises(expected, match=match) as caught:
        call()
    took_s = time.monotonic() - began_s
    assert took_s < within_s, f"it took {took_s:.1f} s"
    return caught.value


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Set environment variables, which SGLang reads whenever it looks at a setting."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setitem(os.environ, name, value)  # type: ignore[arg-type]
        yield
