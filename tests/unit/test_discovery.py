"""Finding the backend."""

from __future__ import annotations

import concurrent.futures
import importlib
import re
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lazycast
from lazycast.backends.local import LocalBackend
from lazycast.errors import BackendUnavailableError
from lazycast.net.backend import Backend, Context
from lazycast.start import discovery

MARKS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "MPI_LOCALNRANKS")
LOCAL = ("LAZYCAST_RANK", "LAZYCAST_WORLD_SIZE", "LAZYCAST_RENDEZVOUS")


class Fake(Backend):
    name = "fake"
    rank, size = 0, 1

    @classmethod
    def from_environment(cls) -> Fake:
        return cls()

    def open(self, *, timeout_s: float) -> Context:
        raise NotImplementedError


class FakeTorch(Fake):
    name = "torch"


class FakeMPI(Fake):
    name = "mpi"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher, and no torch until a test says so."""
    for name in (*MARKS, *LOCAL, "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch.distributed", raising=False)


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the backends of torch and MPI."""
    real = discovery.by_name
    table: dict[str, type[Backend]] = {"torch": FakeTorch, "mpi": FakeMPI}
    monkeypatch.setattr(discovery, "by_name", lambda name: table.get(name) or real(name))


def _torch(monkeypatch: pytest.MonkeyPatch, *, available: bool = True, initialised: bool = True) -> None:
    fake = types.ModuleType("torch.distributed")
    fake.is_available = lambda: available  # type: ignore[attr-defined]
    fake.is_initialized = lambda: initialised  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.distributed", fake)


def test_alone_it_is_the_local_backend() -> None:
    found = discovery.resolve("auto")
    assert type(found) is LocalBackend
    assert (found.rank, found.size) == (0, 1)


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("mark", MARKS)
def test_an_mpi_launcher_means_mpi(monkeypatch: pytest.MonkeyPatch, mark: str) -> None:
    monkeypatch.setenv(mark, "2")
    assert type(discovery.resolve("auto")) is FakeMPI


@pytest.mark.usefixtures("fakes")
def test_an_initialised_torch_group_comes_before_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    _torch(monkeypatch)
    assert type(discovery.resolve("auto")) is FakeTorch


@pytest.mark.usefixtures("fakes")
@pytest.mark.parametrize("state", [{"available": False}, {"initialised": False}], ids=str)
def test_torch_that_is_imported_but_has_no_group_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, state: dict[str, bool]
) -> None:
    _torch(monkeypatch, **state)
    assert type(discovery.resolve("auto")) is LocalBackend
    monkeypatch.setenv("PMI_SIZE", "2")
    assert type(discovery.resolve("auto")) is FakeMPI


@pytest.mark.usefixtures("fakes")
def test_a_backend_that_is_set_for_this_thread_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    _torch(monkeypatch)
    mine, inner = Fake(), Fake()
    with discovery.using(mine):
        assert discovery.resolve("auto") is mine
        with discovery.using(inner):
            assert discovery.resolve("auto") is inner
        assert discovery.resolve("auto") is mine
        with concurrent.futures.ThreadPoolExecutor(1) as other:
            refused = other.submit(discovery.resolve, "auto").exception()
        assert isinstance(refused, BackendUnavailableError), "a thread that is no rank must not become a group of one"
        assert "ranks are threads of this process" in str(refused)
        assert type(discovery.resolve("mpi")) is FakeMPI, "a name is a name"
    assert type(discovery.resolve("auto")) is FakeTorch


def test_torchrun_without_an_initialised_group_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(BackendUnavailableError, match=r"WORLD_SIZE=4.*init_process_group.*or name the backend"):
        discovery.resolve("auto")


@pytest.mark.parametrize("size", ["1", ""])
def test_torchrun_with_one_process_is_local(monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    assert type(discovery.resolve("auto")) is LocalBackend


def test_a_world_size_that_is_no_number_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(BackendUnavailableError, match="WORLD_SIZE"):
        discovery.resolve("auto")


def test_launched_by_lazycast_is_local_whatever_else_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name, value in zip(LOCAL, ("2", "3", str(tmp_path)), strict=True):
        monkeypatch.setenv(name, value)
    found = discovery.resolve("auto")
    assert (type(found), found.rank, found.size) == (LocalBackend, 2, 3)


def test_an_instance_is_taken_as_it_is() -> None:
    mine = Fake()
    assert discovery.resolve(mine) is mine


@pytest.mark.parametrize("what", [None, 3, Fake, object()], ids=["None", "int", "class", "object"])
def test_what_is_no_backend_is_refused(what: Any) -> None:
    with pytest.raises(
        TypeError, match="backend must be a name, a Backend instance, a process group of torch or a communicator of "
    ):
        discovery.resolve(what)


def test_an_unknown_name_lists_what_is_installed() -> None:
    with pytest.raises(ValueError, match=r"unknown backend 'nccl'; installed are: 'auto', .*'local', 'mpi', 'torch'"):
        discovery.resolve("nccl")


def test_the_built_in_backends_are_installed() -> None:
    assert {"local", "mpi", "torch"} <= set(discovery.names())
    assert discovery.by_name("local") is LocalBackend


# A third party's, found through a real entry point


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Install a distribution with one module and one entry point of the group."""

    def run(entry: str, source: str) -> None:
        (tmp_path / "third_party_backend.py").write_text(textwrap.dedent(source))
        info = tmp_path / "third_party-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[lazycast.backends]\n{entry}\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.delitem(sys.modules, "third_party_backend", raising=False)
        importlib.invalidate_caches()

    return run


def test_a_checkouts_folder_that_hides_the_installed_package_is_told_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Backends lie beside the core in a checkout, and get into the package when it is installed.
    class Absent:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == "lazycast.backends":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.delitem(sys.modules, "lazycast.backends")
    monkeypatch.delitem(sys.modules, "lazycast.backends.local")
    monkeypatch.setattr(sys, "meta_path", [Absent, *sys.meta_path])
    root = re.escape(str(Path(lazycast.__file__).parents[1]))
    text = rf"imported from {root}/lazycast, which is not a whole installation: .*`pip install -e {root}`, or start in"
    with pytest.raises(BackendUnavailableError, match=text):
        discovery.by_name("local")


GOOD = """
from lazycast.net.backend import Backend

class Theirs(Backend):
    name = "theirs"
    rank, size = 0, 1

    @classmethod
    def from_environment(cls):
        return cls()

    def open(self, *, timeout_s):
        raise NotImplementedError
"""


def test_a_third_partys_backend_is_found(install: Callable[[str, str], None]) -> None:
    install("theirs = third_party_backend:Theirs", GOOD)
    assert "theirs" in discovery.names()
    assert type(discovery.resolve("theirs")).__name__ == "Theirs"
    with pytest.raises(ValueError, match="'theirs'"):
        discovery.resolve("unknown")


@pytest.mark.parametrize(
    ("entry", "source", "why"),
    [
        ("theirs = third_party_backend:Theirs", "class Theirs: pass", "is not a lazycast.net.backend.Backend"),
        ("theirs = third_party_backend:theirs", "def theirs(): pass", "is not a lazycast.net.backend.Backend"),
        ("theirs = third_party_backend", "", "is not a lazycast.net.backend.Backend"),
        ("theirs = third_party_backend:Theirs", "import no_such_library", "cannot be imported: No module named"),
        ("theirs = third_party_backend:Gone", GOOD, "cannot be imported: .*Gone"),
    ],
    ids=["another class", "function", "module", "library missing", "attribute missing"],
)
def test_an_entry_that_is_no_usable_backend_is_refused(
    install: Callable[[str, str], None], entry: str, source: str, why: str
) -> None:
    install(entry, source)
    with pytest.raises(BackendUnavailableError, match=rf"backend 'theirs' \(third_party_backend.*\) {why}"):
        discovery.by_name("theirs")


def test_a_backend_that_says_itself_what_is_missing_has_the_word(install: Callable[[str, str], None]) -> None:
    source = "from lazycast.errors import BackendUnavailableError\nraise BackendUnavailableError('pip install it')\n"
    install("theirs = third_party_backend:Theirs", source)
    with pytest.raises(BackendUnavailableError, match=r"^pip install it$"):
        discovery.resolve("theirs")
