"""What one rank takes from another: by which codec objects travel, and in which ways materializers do.

Guarantees: the choice is made at construction, from options that all ranks have agreed on. No message changes it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple

from lazycast.codec import data, pickling
from lazycast.codec.allowed import AllowCodec
from lazycast.codec.doors import problem
from lazycast.codec.pickling import Codec

if TYPE_CHECKING:
    from lazycast.options import Options


class Policy(NamedTuple):
    """The rules of one object.

    Attributes:
        codec: for payloads, values and hints.
        paths: the import paths, "module.qualname", by which a materializer may travel if it is not registered. None:
            any, and its code too.
        rule: how messages call it.
        same_program: whether all ranks run one program, so that what belongs to it travels by name.
    """

    codec: Codec
    paths: frozenset[str] | None
    rule: str
    same_program: bool = False

    def objection(self, name: str, path: tuple[str, str] | None) -> str | None:
        """Say why a materializer that is not registered may not travel, or be loaded; None if it may.

        Args:
            path: module and qualified name; None if it can travel only as code.
        """
        if self.paths is None or (path is not None and ".".join(path) in self.paths):
            return None
        if self.codec is data:
            why = "by registered name only:"
        elif path is None:
            why = "by name only, and this one has none that can be imported (code cannot be allowed):"
        else:
            refused = problem(".".join(path))
            way = "add it to trust= on every rank, or" if refused is None else f"and cannot be, for it {refused}:"
            why = f"by allowed names only, and {'.'.join(path)!r} is not one: {way}"
        return (
            f"materializer {name!r} is not registered, and with {self.rule} materializers travel {why} call "
            "lazycast.register_materializer(name, fn) with it on every rank"
        )


#: Ranks trust each other.
EVERYTHING = Policy(pickling, None, "trust='pickle'")


def policy_of(options: Options, *, same_program: bool = False) -> Policy:
    """Return the rules that checked options stand for."""
    return policy_for(options.trust, options.allow, same_program=same_program)


def policy_for(trust: str, allow: Collection[str] | None, *, same_program: bool) -> Policy:
    """Return the rules for these options, which have been checked."""
    if trust == "data":
        return Policy(data, frozenset(), "trust='data'")
    if allow is not None:
        return Policy(AllowCodec(allow), frozenset(allow), "allow=", same_program)
    return EVERYTHING._replace(codec=pickling.ProgramCodec(same_program), same_program=same_program)
