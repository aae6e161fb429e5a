"""What a run of the loop measures: ways, sizes of requests, and loads."""

from __future__ import annotations

from dataclasses import dataclass

FLAG = "--enable-broadcast-mm-inputs-process"
ADMISSION = "LAZYCAST_SGLANG_ADMISSION"


@dataclass(frozen=True)
class Way:
    """How a server is started.

    Attributes:
        about: what it is, for people.
        flag: whether with SGLang's own flag.
        environment: of its ranks.
        hashed: whether the tokenizer hashes, on two threads as SGLang's.
    """

    about: str
    flag: bool
    environment: dict[str, str]
    hashed: bool = False

    @property
    def plugin(self) -> bool:
        """Whether lazycast is there, in the tokenizer too."""
        return self.environment is not _WITHOUT


_WITHOUT = {"SGLANG_PLUGINS": "none"}
WAYS = {
    "itself": Way("every rank makes its inputs by itself, as without the flag", False, _WITHOUT),
    "flag": Way("SGLang's flag: the entry rank makes them and broadcasts the object", True, _WITHOUT),
    "tokenizer": Way("SGLANG_MM_PRECOMPUTE_HASH: the tokenizer hashes, on two threads", False, _WITHOUT, hashed=True),
    "prehashed": Way(
        "the same with lazycast: what the tokenizer sends lies in memory that is kept", False, {}, hashed=True
    ),
    "blocking": Way("the flag with lazycast, whose scheduler waits", True, {ADMISSION: "blocking"}),
    "deferred": Way("the flag with lazycast, whose scheduler puts requests aside", True, {ADMISSION: "deferred"}),
    "requests": Way(
        "the same, and whole requests travel by lazycast",
        True,
        {ADMISSION: "deferred", "LAZYCAST_SGLANG_REQUESTS": "1"},
    ),
}


@dataclass(frozen=True)
class Size:
    """A request: `images` of `side` x `side` patches, of 4.7 KB each."""

    images: int
    side: int


SIZES = {"small": Size(1, 16), "one": Size(1, 40), "large": Size(2, 40)}


@dataclass(frozen=True)
class Load:
    """How requests come: `outstanding` at any time, or, if that is 0, `per_s` a second at random times."""

    outstanding: int = 0
    per_s: float = 0.0

    @property
    def text(self) -> str:
        """What people call it."""
        return f"{self.outstanding} outstanding" if self.outstanding else f"{self.per_s:g} a second"


@dataclass(frozen=True)
class LoopPlan:
    """One run. Each round of a cell takes every way in turn, and begins with another one.

    Attributes:
        ways, sizes: names.
        loads: one after another.
        rounds: how many.
        seconds: of each measurement, after a quarter of it that does not count.
        texts: requests without images that decode all the time.
        tokens: new ones of a request with images.
        overlap: whether SGLang's overlap loop runs, or the normal one.
    """

    ways: tuple[str, ...] = tuple(WAYS)
    sizes: tuple[str, ...] = tuple(SIZES)
    loads: tuple[Load, ...] = (Load(outstanding=8), Load(outstanding=32), Load(per_s=4), Load(per_s=8))
    rounds: int = 3
    seconds: float = 4.0
    texts: int = 8
    tokens: int = 8
    overlap: bool = True
