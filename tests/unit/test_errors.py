"""The error classes: one root, stdlib parents, and a pickle round trip."""

from __future__ import annotations

import copy
import inspect
import pickle

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


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_the_one_root_an_error_name_and_a_docstring(cls: type[LazycastError]) -> None:
    assert issubclass(cls, LazycastError)
    assert cls.__name__.endswith("Error")
    assert inspect.getdoc(cls)


@pytest.mark.parametrize(("name", "parent"), PARENTS.items())
def test_errors_are_the_stdlib_class_they_specialise(name: str, parent: type[BaseException]) -> None:
    cls = getattr(errors, name)
    with pytest.raises(parent, match="why"):
        raise cls("why")


@pytest.mark.parametrize("clone", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy])
@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_pickling_and_copying(cls: type[LazycastError], clone: object) -> None:
    exc = cls("what happened", rank=3, host="node7", remote_traceback="Traceback ...\nValueError: x")
    back = clone(exc)  # type: ignore[operator]
    assert type(back) is cls
    assert (back.rank, back.host, back.remote_traceback) == (3, "node7", "Traceback ...\nValueError: x")
    assert str(back) == str(exc)
    assert back.args == exc.args


@pytest.mark.parametrize("cls", CLASSES)
def test_the_text_is_the_message_also_where_a_parent_would_show_something_else(cls: type[LazycastError]) -> None:
    exc = cls("cast 'a' is\nin use")
    assert str(exc) == "cast 'a' is\nin use"
    assert (exc.rank, exc.host, exc.remote_traceback) == (None, None, None)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_remote_traceback_follows_the_message(cls: type[LazycastError]) -> None:
    exc = cls("it broke", rank=2, host="h", remote_traceback="Traceback\n  line\n\n")
    assert str(exc) == "it broke\n\nTraceback of rank 2 on h:\nTraceback\n  line"


def test_key_in_use_is_not_shown_as_a_repr() -> None:
    assert str(KeyInUseError("key 'a'\nis in use")) == "key 'a'\nis in use"


def test_notes_and_causes_are_the_exceptions_own() -> None:
    exc = errors.MaterializeError("m")
    exc.__cause__ = ValueError("original")
    assert repr(exc) == "MaterializeError('m')"
    with pytest.raises(errors.MaterializeError) as caught:
        raise exc
    assert isinstance(caught.value.__cause__, ValueError)
