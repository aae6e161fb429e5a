"""The error classes: one root, stdlib parents, and a pickle round trip."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable

import pytest

from lazycast import errors
from lazycast.errors import KeyInUseError, LazycastError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
PARENTS: dict[str, type[BaseException]] = {
    "PeerLostError": ConnectionError,
    "CastTimeoutError": TimeoutError,
    "KeyInUseError": KeyError,
    "ConfigMismatchError": ValueError,
    "BackendError": RuntimeError,
    "BackendUnavailableError": errors.BackendError,
    "LaunchError": RuntimeError,
    "ReentrantCallError": RuntimeError,
    "TrustError": PermissionError,
}


def test_every_error_has_the_one_root_an_error_name_and_a_docstring() -> None:
    for cls in CLASSES:
        assert issubclass(cls, LazycastError), cls
        assert cls.__name__.endswith("Error"), cls
        assert inspect.getdoc(cls), cls


def test_errors_are_the_stdlib_class_they_specialise() -> None:
    for name, parent in PARENTS.items():
        cls = getattr(errors, name)
        assert issubclass(cls, parent), cls
        with pytest.raises(parent, match="why"):
            raise cls("why")


@pytest.mark.parametrize("clone", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
def test_every_error_survives_pickling_and_copying(clone: Callable[[LazycastError], LazycastError]) -> None:
    for cls in CLASSES:
        exc = cls("what happened", rank=3, host="node7", remote_traceback="Traceback ...\nValueError: x")
        back = clone(exc)
        assert type(back) is cls
        assert (back.rank, back.host, back.remote_traceback) == (3, "node7", "Traceback ...\nValueError: x"), cls
        assert str(back) == str(exc), cls
        assert back.args == exc.args, cls


def test_the_text_is_the_message_also_where_a_parent_would_show_something_else() -> None:
    for cls in CLASSES:
        exc = cls("cast 'a' is\nin use")
        assert str(exc) == "cast 'a' is\nin use", cls
        assert (exc.rank, exc.host, exc.remote_traceback) == (None, None, None), cls


def test_a_remote_traceback_follows_the_message() -> None:
    for cls in CLASSES:
        exc = cls("it broke", rank=2, host="h", remote_traceback="Traceback\n  line\n\n")
        assert str(exc) == "it broke\n\nTraceback of rank 2 on h:\nTraceback\n  line", cls


def test_key_in_use_is_not_shown_as_a_repr() -> None:
    assert str(KeyInUseError("key 'a'\nis in use")) == "key 'a'\nis in use"


def test_notes_and_causes_are_the_exceptions_own() -> None:
    exc = errors.MaterializeError("m")
    exc.__cause__ = ValueError("original")
    assert repr(exc) == "MaterializeError('m')"
    with pytest.raises(errors.MaterializeError) as caught:
        raise exc
    assert isinstance(caught.value.__cause__, ValueError)
