"""`python -m lazycast.doctor`: the same as `lazycast doctor`, in the form that launchers take."""

import sys

from lazycast.cli import main

if __name__ == "__main__":
    sys.exit(main(["doctor", *sys.argv[1:]]))
