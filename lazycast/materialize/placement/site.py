"""What a group has to work with: its hosts, their ranks, cores and owners."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """The hosts of a group, by index.

    Attributes:
        ranks: ranks per host.
        cores: cores that the ranks of that host may use together; fractions of a core count (a container's quota).
        owners: how many ranks of that host may own shards.
        root_host: index of the root's host.
        root_makes: whether the root may make a value for all.
        helpers: how many processes each host has that materialize, and are no ranks.
    """

    ranks: tuple[int, ...]
    cores: tuple[float, ...]
    owners: tuple[int, ...]
    root_host: int
    root_makes: bool = True
    helpers: int = 0

    def __post_init__(self) -> None:
        if not len(self.ranks) == len(self.cores) == len(self.owners) or not self.ranks:
            raise ValueError(f"a site needs ranks, cores and owners for each of its hosts, got {self}")
        if min(self.ranks) < 1 or not min(self.cores) > 0 or min(self.owners) < 0:
            raise ValueError(f"every host of a site needs a rank and a part of a core, got {self}")
        if not 0 <= self.root_host < len(self.ranks):
            raise ValueError(f"the root's host is not one of the site's: {self}")

    def threads(self, host: int) -> int:
        """Return how many materializers one rank of `host` runs at once: its share of the cores, at least one."""
        return max(1, int(self.cores[host]) // self.ranks[host])

    @property
    def placements(self) -> tuple[str, ...]:
        """What a cast may be placed as: "shard" only where some host has ranks to share with and all have an owner."""
        shared = max(self.ranks) > 1 and min(self.owners) > 0
        root, helpers = ("root",) if self.root_makes else (), ("helpers",) if self.helpers else ()
        return (*(("shard",) if shared else ()), "every", *root, *helpers)
