"""In each interpreter that is started with this folder on its path, as helpers are: makes SGLang importable."""

from lazycast.tools.bench.sglang_loop import on_cpu

on_cpu.prepare()
