"""Looks through a pickle stream, without unpickling it, for what sets the state of objects.

Guarantees: whatever this does not know or cannot follow (opcodes of text, extension codes, a stream that is cut off)
counts as setting state, so that whoever asks errs on the careful side. Runs of opcodes of fixed length are skipped by
one regular expression, so numbers cost next to nothing, and each text or key less than a microsecond.
"""

from __future__ import annotations

import re
from typing import Final

#: All of protocols 2 to 5 whose length is fixed, but BUILD, STOP, extension codes and persistent ids.
_FIXED: Final = re.compile(
    rb"(?:[]()}adelostuNR012\x81\x85-\x89\x8f-\x94\x97\x98]|[Khq\x80].|M..|[Jjr].{4}|[G\x95].{8}){1,500}", re.DOTALL
)
#: By opcode: how many bytes say the length of what follows.
_LENGTHS: Final = {
    ord(opcode): size
    for size, opcodes in ((1, "\x8cCU\x8a"), (4, "XBT\x8b"), (8, "\x8d\x8e\x96"))
    for opcode in opcodes
}
_STOP: Final = ord(".")


def may_set_state(stream: bytes) -> bool:
    """Whether unpickling may set the state, or the attributes, of an object. May say yes where no is true."""
    at, nbytes = 0, len(stream)
    while at < nbytes:
        run = _FIXED.match(stream, at)
        if run is not None:
            at = run.end()
            continue
        opcode = stream[at]
        if opcode == _STOP:
            return False
        size = _LENGTHS.get(opcode)
        if size is None:
            return True
        at += 1 + size + int.from_bytes(stream[at + 1 : at + 1 + size], "little")
    return True
