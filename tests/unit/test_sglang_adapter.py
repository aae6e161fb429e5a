"""The SGLang adapter where SGLang is not installed. With it: `make test-sglang`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest

from lazycast.adapters.sglang import Binding, UnsupportedReleaseError, install_requests, plugin
from lazycast.bench.sglang import session
from lazycast.bench.sglang.plan import Plan
from lazycast.errors import BackendUnavailableError, LazycastError

pytestmark = pytest.mark.skipif(find_spec("sglang") is not None, reason="SGLang is installed")


def test_importing_it_brings_in_neither_sglang_nor_torch(run_python: Callable[..., str]) -> None:
    code = "import sys, lazycast.adapters.sglang\nprint(*sorted({'sglang', 'torch'} & set(sys.modules)))\n"
    assert run_python(code).split() == []


def test_without_sglang_it_says_so() -> None:
    for call in (Binding.find, install_requests):
        with pytest.raises(UnsupportedReleaseError) as caught:
            call()
        assert isinstance(caught.value, LazycastError)
        assert isinstance(caught.value, ImportError)
    with pytest.raises(BackendUnavailableError, match="not installed"):
        session.run(Plan())


def test_sglang_finds_the_plugin() -> None:
    (point,) = entry_points(group="sglang.srt.plugins", name="lazycast")
    assert point.load() is plugin.plugin


def test_the_plugin_does_nothing_where_no_scheduler_is() -> None:
    plugin.plugin()
    assert not [name for name in sys.modules if name.split(".")[0] == "sglang"]
