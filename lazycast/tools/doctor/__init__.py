"""Looks at where lazycast runs and says what is well, what is not, and what to do about it: `lazycast doctor`.

A rank looks at itself (`facts`), the ranks try to work together (`trial`), and rank 0 judges what all of them have
found. Looking and judging are apart: a check is a plain function from what was found to a `Finding`.

Guarantees: nothing here waits without a time limit, and a rank that does not answer is named.
"""

from lazycast.tools.doctor.finding import Finding

__all__ = ["Finding"]
