"""What SGLang 0.5.23 needs to serve on a machine without a GPU. `prepare()` before the first `import sglang`.

Beside what `without_gpu` replaces, one more: `vllm._custom_ops.rotary_embedding` is imported where there is neither
CUDA nor SGLang's own build for CPUs, and never called, since layers run their `forward_native`.
"""

from __future__ import annotations

import os
import sys
import types
from typing import NoReturn

from lazycast.tools.bench.sglang import without_gpu

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # Or more ranks than NUMA nodes are refused. Nothing is bound: that needs a build for AMX.
    "SGLANG_CPU_OMP_THREADS_BIND": "|".join(map(str, range(8))),
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "GLOO_SOCKET_IFNAME": "lo",
    "SGLANG_USE_CPU_ENGINE": "0",
    "TORCHDYNAMO_DISABLE": "1",  # or the first request waits half a minute for a compiler
}
#: Options of the server.
ARGUMENTS = (
    *("--device", "cpu", "--attention-backend", "torch_native", "--load-format", "dummy"),
    *("--mem-fraction-static", "0.2", "--max-total-tokens", "131072", "--max-running-requests", "64"),
    *("--cuda-graph-backend-decode", "disabled", "--cuda-graph-backend-prefill", "disabled"),
    *("--grammar-backend", "none", "--skip-server-warmup", "--log-level", "warning"),
)


def _never(*args: object, **kwargs: object) -> NoReturn:
    raise RuntimeError("vllm._custom_ops stands for CUDA kernels, which this machine does not have")


def prepare() -> None:
    """Do it, once."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    without_gpu.prepare()
    if "vllm" in sys.modules or "vllm._custom_ops" in sys.modules:
        return
    vllm, operators = types.ModuleType("vllm"), types.ModuleType("vllm._custom_ops")
    vllm.__path__ = []
    vars(operators)["rotary_embedding"] = _never
    vars(vllm)["_custom_ops"] = operators
    sys.modules["vllm._custom_ops"] = operators  # only this one: `import vllm` itself still fails, as elsewhere
