"""Which of SGLang's functions makes `MultimodalInputs`, found at run time, since releases differ.

Guarantees: nothing of SGLang is imported before it is asked for, and nothing of it is changed.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lazycast.errors import LazycastError

_BATCH = "sglang.srt.managers.schedule_batch"
_SCHEDULER = "sglang.srt.managers.scheduler"
_MESSAGES = "sglang.srt.managers.io_struct"
_METHODS = ("from_processor_output", "from_dict")  # since 0.5.10, and until 0.5.9
_MODALITIES = "requires_mm_token_modalities"
#: What hashing an item sets on it, as far as the release has it, in the order in which it is to be set.
_HASHED = ("hash", "identity", "pad_values", "pad_value")


class UnsupportedReleaseError(LazycastError, ImportError):
    """SGLang is not installed, or this release has none of the functions that the adapter knows."""


@dataclass(frozen=True)
class Binding:
    """The function of one release, and how it is called. The same on every rank."""

    inputs: type
    method: str
    options: tuple[tuple[str, object], ...] = ()

    @classmethod
    def find(cls, *, requires_mm_token_modalities: bool = False) -> Binding:
        """Look for the function of the SGLang that is installed.

        Args:
            requires_mm_token_modalities: as the model's config says; left out for releases that do not ask for it.
        Raises: UnsupportedReleaseError.
        """
        try:
            inputs = importlib.import_module(_BATCH).MultimodalInputs
        except (ImportError, AttributeError) as exc:
            raise UnsupportedReleaseError(
                f"lazycast's adapter needs SGLang's {_BATCH}.MultimodalInputs, which cannot be imported here: {exc}"
            ) from exc
        return cls.of(inputs, requires_mm_token_modalities=requires_mm_token_modalities)

    @classmethod
    def of(cls, inputs: type, *, requires_mm_token_modalities: bool = False) -> Binding:
        """Look for the function of a class. Raises: UnsupportedReleaseError."""
        method = next((name for name in _METHODS if callable(getattr(inputs, name, None))), None)
        if method is None:
            raise UnsupportedReleaseError(
                f"{inputs.__module__}.{inputs.__qualname__} has neither {' nor '.join(_METHODS)}, which lazycast's "
                f"adapter calls (SGLang {release()}; it is tested with 0.5.9 and 0.5.23)"
            )
        asks = _MODALITIES in inspect.signature(getattr(inputs, method)).parameters
        return cls(inputs, method, ((_MODALITIES, bool(requires_mm_token_modalities)),) if asks else ())

    def __call__(self, raw: Any) -> Any:
        """Make `MultimodalInputs` as SGLang alone would."""
        return getattr(self.inputs, self.method)(raw, **dict(self.options))

    def items(self, raw: Any) -> list[Any]:
        """Return the items of raw inputs that `MultimodalInputs` will have, before any is split."""
        items = raw["mm_items"] if self.method == "from_dict" else raw.mm_items
        return [item for item in items if item.is_valid()]

    @property
    def copies(self) -> bool:
        """Whether a tensor is copied to be hashed (0.5.9)."""
        return self.method == "from_dict"

    @property
    def splits(self) -> bool:
        """Whether bundles of images are split into items, which forgets the hashes that they had (0.5.9)."""
        return self.method == "from_dict" and bool(setting("SGLANG_ENABLE_MM_SPLITTING", False))


def hashed_fields(item: object) -> tuple[str, ...]:
    """Return the names of what hashing sets on an item of this release."""
    declared: Collection[str] = getattr(item, "__struct_fields__", ()) or getattr(item, "__dataclass_fields__", ())
    return tuple(name for name in _HASHED if name in declared)


def skips_hashing() -> bool:
    """Whether SGLang makes up an item's hash."""
    return bool(setting("SGLANG_MM_SKIP_COMPUTE_HASH", False))


def uses_feature_buffer() -> bool:
    """Whether SGLang hashes in a buffer of this process, one request at a time."""
    return bool(setting("SGLANG_MM_BUFFER_SIZE_MB", 0) > 0)


def setting(name: str, default: Any) -> Any:
    """Return one of SGLang's environment variables as SGLang reads it."""
    variable = getattr(importlib.import_module("sglang.srt.environ").envs, name, None)
    return default if variable is None else variable.get()


def release() -> str:
    """Return the release that is installed, for messages."""
    return str(getattr(sys.modules.get("sglang"), "__version__", "unknown"))


def caught_error() -> type[Exception] | None:
    """Return the error that the scheduler's callers catch, in releases that have one."""
    return getattr(sys.modules.get(_SCHEDULER), "_MultimodalInputProcessingError", None)


def input_error(raw: object) -> str | None:
    """Return what SGLang has to say of inputs that failed before they came here."""
    kind = getattr(sys.modules.get(_MESSAGES), "MMInputsProcessError", None)
    return str(getattr(raw, "message", "")) if kind is not None and isinstance(raw, kind) else None
