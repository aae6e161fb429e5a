"""`python -m lazycast`: the command line, in the form that launchers take."""

import sys

from lazycast.tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
