"""Makes the real SGLang importable on a machine without a GPU. Call `prepare()` before the first `import sglang`.

Two things are replaced, and nothing that the adapter or its tests touch:

* The wheel of torchvision has a C++ library built for CUDA, which does not load beside torch for CPU: its import dies
  of a missing operator. The two operators that its `__init__` asks for are declared first, without kernels.
* Releases before 0.5.10 import names from `sgl_kernel`, a wheel for CUDA alone, unconditionally. An empty package takes
  its place, with one module of functions that raise. Whatever else is asked of it is an ImportError, as SGLang expects
  where there is no such wheel.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import types
from importlib.metadata import version
from typing import Any, NoReturn

_COPIES = [
    *("all_layer", "all_layer_direct_lf_pf", "all_layer_lf_pf", "all_layer_lf_ph", "all_layer_mla"),
    *("all_layer_mla_lf_pf", "direct", "per_layer", "per_layer_direct_pf_lf", "per_layer_mla"),
    *("per_layer_mla_pf_lf", "per_layer_pf_lf", "per_layer_ph_lf"),
]
_kept: list[Any] = []  # a library of operators is undone when it is collected


def _refusing(name: str) -> Any:
    def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(f"{name} stands for a CUDA kernel, which this machine does not have")

    return refuse


def _empty(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name, "Stands for a package of CUDA kernels.")
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    vars(module).update(members, __version__="0")
    sys.modules[name] = module
    return module


def release_text() -> str:
    """Return the release of SGLang that is installed."""
    return version("sglang")


def prepare() -> None:
    """Do it, once."""
    if _kept:
        return
    import torch

    library: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
    _kept.append(library)
    if "torchvision" not in sys.modules:
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    release = tuple(int(part) for part in release_text().split(".")[:3])
    if release < (0, 5, 10) and importlib.util.find_spec("sgl_kernel") is None:
        names = [f"transfer_kv_{what}" for what in _COPIES]
        copies = _empty("sgl_kernel.kvcacheio", **{name: _refusing(name) for name in names})
        _empty("sgl_kernel", kvcacheio=copies)
