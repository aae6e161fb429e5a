"""The default of `payload`."""

from __future__ import annotations

import copy
import pickle

from lazycast.missing import MISSING


def test_it_is_one_object_however_it_is_copied() -> None:
    assert copy.deepcopy(MISSING) is MISSING
    assert pickle.loads(pickle.dumps(MISSING)) is MISSING
    assert MISSING is not None
    assert repr(MISSING) == "MISSING"
