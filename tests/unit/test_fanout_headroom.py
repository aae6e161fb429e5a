"""How much memory a cgroup leaves, from made-up trees of both versions."""

from __future__ import annotations

from pathlib import Path

import pytest

from lazycast.net.host import headroom as module
from lazycast.net.host.headroom import RESERVE_NBYTES, check, headroom

V1_UNLIMITED = 9223372036854771712  # what the kernel writes: the largest long, in whole pages


class Tree:
    """A cgroup file system in a folder."""

    def __init__(self, folder: Path) -> None:
        self.root, self.membership = folder / "cgroup", folder / "self"
        self.root.mkdir()

    def v2(self, path: str, limit: object, use: object) -> None:
        self._group(self.root / path, {"memory.max": limit, "memory.current": use})

    def v1(self, path: str, limit: object, use: object) -> None:
        files = {"memory.limit_in_bytes": limit, "memory.usage_in_bytes": use}
        self._group(self.root / "memory" / path, files)

    @staticmethod
    def _group(folder: Path, files: dict[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            if value is not None:
                (folder / name).write_text(f"{value}\n")

    def left(self, *membership: str) -> int | None:
        self.membership.write_text("".join(f"{line}\n" for line in membership))
        return headroom(self.root, self.membership)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def test_v2_leaves_the_limit_less_the_use(tree: Tree) -> None:
    tree.v2("job", 1000, 300)
    assert tree.left("0::/job") == 700


@pytest.mark.parametrize(("outer", "inner", "left"), [(1000, 500, 100), (450, 500, 50), ("max", 500, 100)])
def test_v2_the_tightest_of_nested_groups_wins(tree: Tree, outer: object, inner: object, left: int) -> None:
    tree.v2("", None, 400)
    tree.v2("outer", outer, 400)
    tree.v2("outer/middle", "max", 400)
    tree.v2("outer/middle/inner", inner, 400)
    assert tree.left("0::/outer/middle/inner") == left


def test_v2_without_a_limit_leaves_any_amount(tree: Tree) -> None:
    tree.v2("job", "max", 300)
    assert tree.left("0::/job") is None


def test_v2_in_a_namespace_the_own_group_is_the_root(tree: Tree) -> None:
    tree.v2("", 1000, 1)
    assert tree.left("0::/") == 999


def test_v1_leaves_the_limit_less_the_use(tree: Tree) -> None:
    tree.v1("docker/abc", 1000, 300)
    tree.v1("docker", V1_UNLIMITED, 400)
    tree.v1("", V1_UNLIMITED, 5000)
    assert tree.left("12:cpu,cpuacct:/docker/abc", "4:memory:/docker/abc", "1:name=systemd:/", "0::/") == 700


def test_v1_the_tightest_of_nested_groups_wins(tree: Tree) -> None:
    tree.v1("outer/inner", 1000, 300)
    tree.v1("outer", 350, 340)
    assert tree.left("4:memory:/outer/inner") == 10


def test_v1_without_a_limit_leaves_any_amount(tree: Tree) -> None:
    tree.v1("", V1_UNLIMITED, 300)
    assert tree.left("4:memory:/") is None


def test_v1_in_a_container_the_path_is_the_hosts_and_what_is_mounted_counts(tree: Tree) -> None:
    tree.v1("", 1000, 300)  # the container's own group is mounted as the root, but named by its path on the host
    assert tree.left("4:memory:/docker/0123456789abcdef") == 700


def test_of_both_versions_the_tightest_wins(tree: Tree) -> None:
    tree.v1("a", 1000, 300)
    tree.v2("b", 800, 300)
    assert tree.left("4:memory:/a", "0::/b") == 500
    assert tree.left("4:memory:/a", "0::/elsewhere") == 700


@pytest.mark.parametrize("membership", [[], ["nonsense"], ["0::/not/mounted"], ["3:cpu:/a"], ["4:memory:/a"]])
def test_what_is_missing_or_strange_limits_nothing(tree: Tree, membership: list[str]) -> None:
    tree.v2("half", 1000, None)
    tree.v1("a", "many", "some")
    assert tree.left(*membership) is None
    assert tree.left("0::/half") is None
    tree.membership.unlink()
    assert headroom(tree.root, tree.membership) is None


def test_a_group_beyond_its_limit_leaves_less_than_nothing(tree: Tree) -> None:
    tree.v2("job", 1000, 1300)
    assert tree.left("0::/job") == -300


def test_check_refuses_what_comes_near_the_limit_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    left: int | None = RESERVE_NBYTES + 1000
    monkeypatch.setattr(module, "headroom", lambda: left)
    check(1000)
    with pytest.raises(MemoryError) as caught:
        check(1001)
    message = str(caught.value)
    assert "1001 bytes of shared memory" in message
    assert f"({left} bytes are left)" in message
    assert "raise the limit, or lower arena_nbytes or max_inflight_nbytes" in message
    left = None
    check(1 << 60)
