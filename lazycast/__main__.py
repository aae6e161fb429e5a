"""`python -m lazycast`: the command line."""

import sys

from lazycast.cli import main

sys.exit(main())
