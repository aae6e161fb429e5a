"""`python -m lazycast.bench`: the same as `lazycast bench`."""

import sys

from lazycast.cli import main

if __name__ == "__main__":
    sys.exit(main(["bench", *sys.argv[1:]]))
