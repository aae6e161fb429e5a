"""The two stages of a request: one rank hashes its items, the others set the result on their own.

Guarantees:

* Both stages run SGLang's own function once. The rank that prepares does nothing else, and keeps what it made; on the
  others the items have their hashes beforehand, so that the same function hashes nothing.
* Items, tensors and results belong to one rank and one request. All that travels is a hash and its pad values per item.
* Several items are hashed at the same time, on threads that take a core each, since the other ranks of the host wait.
* Presets are kept as SGLang keeps them, since SGLang itself decides on the rank that prepares.
* Hashing changes items in place, as SGLang does: nobody looks at a request's raw inputs after its first stage.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

from lazycast.materialize.staged import Staged

from .binding import Binding, hashed_fields, uses_feature_buffer
from .features import open_all
from .hashing import hash_beforehand

Hint = list[tuple[Any, ...]]
_COPIER = "__deepcopy__"
_TENSORS = ("feature", "precomputed_embeddings", "model_specific_data")
_buffer_lock = threading.Lock()


class Request:
    """Raw inputs as one rank has them. Its attributes are what ranks compare: nothing here may differ among them."""

    def __init__(self, binding: Binding, raw: Any) -> None:
        self.binding = binding
        self.raw = raw
        self.made: Any = None  # by this rank, if it has prepared


def prepare(request: Request) -> Hint:
    """Make this rank's inputs, with all the hashing. Return what the others need."""
    request.made = _make(request)
    return [tuple(getattr(item, name) for name in hashed_fields(item)) for item in request.made.mm_items]


def finish(request: Request, hint: Hint) -> Any:
    """Return this rank's inputs, without hashing.

    Raises: ValueError if they do not have the items that were hashed.
    """
    made, request.made = request.made, None
    return made if made is not None else _make(request, hint)


def _nothing(payload: object, hint: object = None) -> None:
    """Take no time: what is left is what a cast costs."""


PREPARE_AND_FINISH: Staged[Request, Hint, Any] = Staged(prepare, finish)
PROBE: Staged[Any, None, None] = Staged(_nothing, _nothing)


def _make(request: Request, hint: Hint | None = None) -> Any:
    binding = request.binding
    with _buffer_lock if uses_feature_buffer() else contextlib.nullcontext():
        if binding.method != "from_dict":
            open_all(binding.items(request.raw))
        if binding.splits:
            return _make_split(binding, request.raw, hint)
        if hint is not None:
            for item, values in _matched(binding.items(request.raw), hint):
                _set(item, values)
        elif not uses_feature_buffer():
            hash_beforehand(binding.items(request.raw), copies=binding.copies)
        return binding(request.raw)


def _matched(items: list[Any], hint: Hint) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    if len(items) != len(hint):
        raise ValueError(f"{len(items)} items here, {len(hint)} where they were hashed")
    return zip(items, hint, strict=True)


def _set(item: Any, values: tuple[Any, ...]) -> None:
    for name, value in zip(hashed_fields(item), values, strict=True):
        setattr(item, name, value)


# Splitting: SGLang copies a whole bundle for each of its images, then gives the copy a slice in place of each tensor.
# With stand-ins for the bundles, whose copies share the tensors until then, the result is the same without the copying.
# A stand-in has a pad value where there are hashes already: what has one is not hashed.


def _make_split(binding: Binding, raw: dict[str, Any], hint: Hint | None) -> Any:
    originals = {}
    stand_ins = []
    for item in raw["mm_items"]:
        stand_in = _stand_in(item, unhashed=hint is None)
        originals[id(stand_in)] = item
        stand_ins.append(stand_in)
    made = binding({**raw, "mm_items": stand_ins})
    made.mm_items = [_original(item, originals) for item in made.mm_items]
    if hint is not None:
        for item, values in _matched(made.mm_items, hint):
            _set(item, values)
    return made


def _stand_in(item: Any, *, unhashed: bool) -> Any:
    stand_in = copy.copy(item)
    if not unhashed:
        stand_in.pad_value = 0
    vars(stand_in)[_COPIER] = _copier(stand_in)
    return stand_in


def _copier(stand_in: Any) -> Callable[[dict[int, Any]], Any]:
    def copied(memo: dict[int, Any]) -> Any:
        bare = copy.copy(stand_in)
        del vars(bare)[_COPIER]
        tensors = {name: vars(bare).pop(name) for name in _TENSORS}
        made = copy.copy(bare)
        vars(made).update(copy.deepcopy(vars(bare), memo), **tensors)
        return made

    return copied


def _original(item: Any, originals: dict[int, Any]) -> Any:
    """Return an item that was not split as the object that the request had."""
    original = originals.get(id(item))
    if original is None:
        return item
    state = dict(vars(item))
    del state[_COPIER]
    vars(original).update(state)
    return original
