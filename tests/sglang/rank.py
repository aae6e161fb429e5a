"""One rank of a run: pytest, which says what it does on rank 0, and on the others only what has failed."""

from __future__ import annotations

import contextlib
import io
import os
import sys

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def main() -> int:
    rank = os.environ["RANK"]
    if rank == "0":
        return int(pytest.main(sys.argv[1:]))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        code = int(pytest.main(sys.argv[1:]))
    if code != 0:
        print(f"== rank {rank}:\n{said.getvalue()}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
