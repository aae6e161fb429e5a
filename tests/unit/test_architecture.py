"""The shape of the house: who imports whom, and what `import lazycast` brings in."""

from __future__ import annotations

import ast
import functools
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import lazycast

ROOT = Path(__file__).resolve().parents[2]
CORE, BACKENDS, ADAPTERS = (sorted((ROOT / f).rglob("*.py")) for f in ("lazycast", "backends", "adapters"))
NATIVE = {"torch", "mpi4py"}
#: The wings of the house, and which others each may import.
ARROWS: dict[str, set[str]] = {
    "codec": set(),
    "net": {"codec"},
    "materialize": {"codec", "net"},
    "core": {"codec", "net", "materialize", "watch"},
    "start": {"codec", "net", "materialize", "core"},
    "watch": {"materialize", "core", "start"},
    "testing": {"codec", "net", "materialize", "core", "start", "watch"},
    "tools": {"codec", "net", "materialize", "core", "start", "watch", "testing"},
}
#: What a cast writes as it passes. The rest of that wing looks on from outside.
WRITTEN = tuple(f"lazycast.watch.{name}" for name in ("group_stats", "notices", "stats", "timing", "tracing"))
HEAVY = {"torch", "mpi4py", "rich", "PIL", "sklearn", "matplotlib", "opentelemetry", "prometheus_client"}


def _package_of(path: Path) -> str:
    """The dotted name of the package that a file lies in, as installed."""
    parts = path.relative_to(ROOT).parent.parts
    return ".".join(parts if parts[0] == "lazycast" else ("lazycast", *parts))


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _runs_later(node: ast.AST) -> bool:
    """Whether importing a file does not run this part of it."""
    if isinstance(node, ast.If):
        return "TYPE_CHECKING" in ast.unparse(node.test)
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))


def _imports(path: Path, *, at_module_level: bool = False) -> Iterator[str]:
    """The names a file imports; with `at_module_level`, only those that its own import runs."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                above = _package_of(path).split(".")[: -(child.level - 1) or None] if child.level else []
                module = ".".join([*above, *([child.module] if child.module else [])])
                yield module
                yield from (f"{module}.{alias.name}" for alias in child.names)
            elif not (at_module_level and _runs_later(child)):
                yield from walk(child)

    yield from walk(_tree(path))


def test_the_walk_sees_the_house() -> None:
    assert len(CORE) > 20
    assert {path.stem for path in BACKENDS} >= {"local", "mpi", "torch_distributed"}
    assert "torch.distributed" in set(_imports(ROOT / "backends" / "torch_distributed.py"))


def _wing_of(name: str) -> str | None:
    """The wing that a dotted name lies in; None on the ground floor, which all wings may use, and outside."""
    parts = name.split(".")
    return parts[1] if parts[0] == "lazycast" and len(parts) > 1 and parts[1] in ARROWS else None


def test_every_package_is_a_wing() -> None:
    assert {path.parent.name for path in (ROOT / "lazycast").glob("*/__init__.py")} == set(ARROWS)


def test_arrows_between_wings_point_one_way() -> None:
    for path in CORE:
        wing = _wing_of(_package_of(path))
        if wing is None:
            continue
        reached = {_wing_of(name) for name in _imports(path, at_module_level=True)} - {None, wing}
        assert reached <= ARROWS[wing], path


def test_the_core_knows_of_those_who_watch_what_it_writes_for_them() -> None:
    for path in CORE:
        names = set(_imports(path, at_module_level=True))
        if _wing_of(_package_of(path)) == "core":
            assert all(name.startswith(WRITTEN) for name in names if _wing_of(name) == "watch"), path
        if any(".".join(path.relative_to(ROOT).with_suffix("").parts).startswith(written) for written in WRITTEN):
            assert not [name for name in names if _wing_of(name) in ("core", "start")], path


def test_the_library_uses_no_tool() -> None:
    for path in CORE:
        if _wing_of(_package_of(path)) != "tools" and path != ROOT / "lazycast" / "__main__.py":
            assert "tools" not in {_wing_of(name) for name in _imports(path)}, path


def test_the_core_imports_no_backend_and_no_adapter() -> None:
    for path in CORE:
        found = [name for name in _imports(path) if name.startswith(("lazycast.backends", "lazycast.adapters"))]
        assert not found, path


def test_the_core_imports_no_framework_when_it_is_imported() -> None:
    for path in CORE:
        found = [name for name in _imports(path, at_module_level=True) if name.split(".")[0] in HEAVY]
        assert not found, path


def test_backends_and_adapters_never_import_each_other() -> None:
    for path in BACKENDS:
        for name in _imports(path):
            private = name.startswith("lazycast.backends._")  # a backend's own second file
            assert private or not name.startswith(("lazycast.backends.", "lazycast.adapters")), path
    for path in ADAPTERS:
        for name in _imports(path):
            own = name.startswith(f"{_package_of(path)}.") and _package_of(path) != "lazycast.adapters"
            assert own or not name.startswith(("lazycast.backends", "lazycast.adapters.")), path


def test_a_backend_knows_one_native_library_at_most() -> None:
    for path in BACKENDS:
        assert len({name.split(".")[0] for name in _imports(path)} & NATIVE) <= 1, path


def test_a_backend_moves_bytes_and_knows_nothing_of_casts() -> None:
    offered = {"lazycast.net.backend", "lazycast.net.threaded_link", "lazycast.net.tree"}
    for path in [*BACKENDS]:
        ours = {name for name in _imports(path) if name.startswith("lazycast.") and _wing_of(name) is not None}
        assert all(any(name.startswith(module) for module in offered) for name in ours), (path, ours)


@pytest.mark.cold
def test_importing_lazycast_brings_in_no_framework(run_python: Callable[..., str]) -> None:
    code = f"import sys, lazycast, lazycast.tools.cli\nprint(*sorted({HEAVY!r} & set(sys.modules)))\n"
    assert run_python(code).split() == []


@pytest.mark.cold
def test_the_local_backend_brings_in_no_framework(run_python: Callable[..., str]) -> None:
    code = f"""
import sys, lazycast
with lazycast.LazyBroadcast(len) as lazy:
    assert lazy.broadcast([1, 2]) == 2
print(*sorted({HEAVY!r} & set(sys.modules)))
"""
    assert run_python(code).split() == []


def test_every_public_name_exists_and_is_explained() -> None:
    assert isinstance(lazycast.__version__, str)
    for name in set(lazycast.__all__) - {"__version__"}:
        thing = getattr(lazycast, name)
        assert thing.__doc__, f"{name} has no docstring of its own"
        for member, value in vars(thing).items() if inspect.isclass(thing) else ():
            if inspect.isfunction(value) and not member.startswith("_"):
                assert value.__doc__, f"{name}.{member} has no docstring"


def test_every_module_opens_with_what_it_is_for() -> None:
    for path in [*CORE, *BACKENDS, *ADAPTERS]:
        assert not _tree(path).body or ast.get_docstring(_tree(path)), path


def test_all_is_sorted_and_complete() -> None:
    assert lazycast.__all__ == sorted(lazycast.__all__)
    errors = {n for n, c in vars(lazycast.errors).items() if inspect.isclass(c)}  # type: ignore[attr-defined]
    assert errors <= set(lazycast.__all__)


def test_no_class_of_the_core_derives_from_another() -> None:
    """Roles are composed: whoever reads a class has read all of it."""
    core = [path for path in CORE if path.relative_to(ROOT / "lazycast").parts[0] == "core"]
    classes = {node.name for path in core for node in ast.walk(_tree(path)) if isinstance(node, ast.ClassDef)}
    assert len(classes) > 60
    for path in core:
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.ClassDef):
                bases = [ast.unparse(base).split("[")[0].rsplit(".")[-1] for base in node.bases]
                ours = classes & set(bases)
                assert not ours, f"{path.name}: {node.name} derives from {', '.join(sorted(ours))}"


def test_nobody_waits_on_a_simple_queue_for_a_time() -> None:
    """Before Python 3.13 `SimpleQueue.get` waits for ever if its time is over as it begins to wait."""
    examples = sorted((ROOT / "examples").rglob("*.py"))
    using = [path for path in [*CORE, *BACKENDS, *ADAPTERS, *examples] if "SimpleQueue" in path.read_text()]
    assert len(using) > 1
    for path in using:
        assert not re.search(r"\.get\((timeout|True)", path.read_text()), path
