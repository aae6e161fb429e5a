"""`python -m lazycast.cli`."""

import sys

from lazycast.cli import main

if __name__ == "__main__":
    sys.exit(main())
