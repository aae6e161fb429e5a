"""`python -m lazycast.soak`: the same as `lazycast soak`."""

import sys

from lazycast.cli import main

if __name__ == "__main__":
    sys.exit(main(["soak", *sys.argv[1:]]))
