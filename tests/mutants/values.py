"""Defects of what makes values: codecs, reducers, trust, materializers, placements, fingerprints."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

_CODEC = "lazycast/codec/pickling.py"
_NUMPY = "lazycast/codec/reducers/numpy_arrays.py"
_TORCH = "lazycast/codec/reducers/torch_tensors.py"
_PIL = "lazycast/codec/reducers/pil_images.py"
_DESCRIBED = "lazycast/codec/reducers/described.py"
_ALLOWED = "lazycast/codec/allowed.py"
_CAREFUL = "lazycast/codec/careful.py"
_MATERIALIZERS = "lazycast/materialize/materializers.py"
_PACKING = "lazycast/codec/data/packing.py"
_UNPACKING = "lazycast/codec/data/unpacking.py"
_MODEL = "lazycast/materialize/placement/model.py"
_RECORD = "lazycast/materialize/placement/record.py"
_CHOOSER = "lazycast/materialize/placement/chooser.py"
_FINGERPRINT = "lazycast/codec/fingerprint.py"

MUTANTS = (
    Mutant(
        "codec-alignment",
        _CODEC,
        "ALIGNMENT = 64",
        "ALIGNMENT = 8",
        "arrays arrive on a 64-byte boundary",
    ),
    Mutant(
        "numpy-read-only-lost",
        _NUMPY,
        "        array.flags.writeable = writeable\n",
        "",
        "read-only arrays arrive read-only, also those with strides",
    ),
    Mutant(
        "torch-read-only-memory",
        _TORCH,
        "if memoryview(buffer).readonly:",
        "if False:",
        "a tensor never lies on memory that cannot be written to",
    ),
    Mutant(
        "torch-offset-sign",
        _TORCH,
        "offset = (start - stretch.start) // shown.itemsize",
        "offset = start // shown.itemsize",
        "a tensor shows the bytes that it showed on the root",
    ),
    Mutant(
        "pil-palette-lost",
        _PIL,
        'return None if mode == "RGB" else',
        "return None if mode else",
        "an image keeps the transparency of its palette",
    ),
    Mutant(
        "described-image-unchecked",
        _DESCRIBED,
        "if type(mode) is not str or width * height > 8 * memoryview(pixels).nbytes:",
        "if type(mode) is not str:",
        "with allow=, an image is no larger than the pixels that came for it",
    ),
    Mutant(
        "allowed-state-of-anything",
        _CAREFUL,
        "if is_array_class(kind) or (_named(kind) not in self._listed and kind is not collections.OrderedDict):",
        "if False:",
        "with allow=, a stream sets the state of instances of listed classes, and of nothing else",
    ),
    Mutant(
        "allowed-anything",
        _ALLOWED,
        "        if name not in self._names:\n",
        "        if False:\n",
        "with allow=, what is not listed is not found",
    ),
    Mutant(
        "materializers-loaded-unasked",
        _MATERIALIZERS,
        "(refused := self._policy.objection(ref.name, ref.path)) is not None",
        "False",
        "with trust='data' or allow=, nothing else is imported because somebody names it",
    ),
    Mutant(
        "materializers-shadowed",
        _MATERIALIZERS,
        "if _follow(module, qualname) == fn else None",
        "if _follow(module, qualname) is not None else None",
        "a function travels by its path only if that leads to it",
    ),
    Mutant(
        "data-bytes-twice",
        _PACKING,
        "if known is None:\n            known = self._frames",
        "if True:\n            known = self._frames",
        "bytes of an object that is met twice travel once",
    ),
    Mutant(
        "data-frame-from-behind",
        _UNPACKING,
        "not 0 <= number < len(self._frames)",
        "not number < len(self._frames)",
        "with trust='data', a frame that there is not is refused",
    ),
    Mutant(
        "model-least-bound",
        _MODEL,
        "return max(self.latency_s, casts * self.bottleneck_s)",
        "return min(self.latency_s, casts * self.bottleneck_s)",
        "placements are compared by the time of a cast under the present load",
    ),
    Mutant(
        "record-ban-sign",
        _RECORD,
        "self._banned_until = self.casts + self._ban",
        "self._banned_until = self.casts - self._ban",
        "a value that cannot be shared is not asked for again with every cast",
    ),
    Mutant(
        "chooser-alone-in-a-crowd",
        _CHOOSER,
        "alone = sample.depth == 0 and self._last_depth == 0",
        "alone = True",
        "what a cast took beside others is not taken for what it takes alone",
    ),
    Mutant(
        "fingerprint-sets-in-order",
        _FINGERPRINT,
        "self._facts += sorted(marks)",
        "self._facts += marks",
        "equal sets have equal fingerprints on every rank",
    ),
    Mutant(
        "fingerprint-even-weights",
        _FINGERPRINT,
        "odd: np.ndarray = z | np.uint64(1)",
        "odd: np.ndarray = z & np.uint64(0xFFFFFFFFFFFFFFFE)",
        "where one word differs, the fingerprint does for certain",
    ),
)
