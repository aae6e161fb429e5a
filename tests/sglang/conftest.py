"""Each rank runs these tests, in step with the others: `run.py` starts them with torchrun."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version

import pytest

from lazycast.tools.bench.sglang import without_gpu

without_gpu.prepare()
os.environ["LAZYCAST_SGLANG_CAST_FROM_NBYTES"] = "0"  # however small the inputs are that a test casts

import torch.distributed as dist  # noqa: E402
from kit import Ranks  # noqa: E402

RELEASE = version("sglang")
collect_ignore = ["loop"]  # not on ranks of torchrun: it starts schedulers of its own


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        marker = item.get_closest_marker("release")
        if marker is not None and marker.args[0] != RELEASE:
            item.add_marker(pytest.mark.skip(reason=f"for SGLang {marker.args[0]}, this is {RELEASE}"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Say at once what has failed: the other ranks may hang now, and be killed, and this one with them."""
    if report.failed:
        text = f"== rank {os.environ['RANK']}: {report.nodeid} ({report.when})\n{report.longreprtext}"
        print(text, file=sys.__stderr__, flush=True)


@pytest.fixture(scope="session", autouse=True)
def _group() -> Iterator[None]:
    dist.init_process_group("gloo")
    yield
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture
def ranks(_group: None) -> Iterator[Ranks]:
    """This rank among the others. A test begins and ends at the same time on all of them."""
    found = Ranks()
    found.meet()
    yield found
    found.meet()
