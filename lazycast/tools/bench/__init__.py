"""The project's own benchmark: `python -m lazycast bench`, or `lazycast bench`.

Starts ranks on this machine and compares ways to bring an object to all of them, in alternating rounds of one run::

    plan        what to measure                      (plain data, made from the command line)
    session     start the ranks, show progress
    measure     on each rank: the rounds             (over sync, which is no part of lazycast's casts)
    ways        one small class per way, and which are not installed
    payloads    what is sent
    touch       read it, overwrite it, compare it
    memory      how much of it the ranks need, seen from a process beside them
    report      table, JSON, Markdown; plot

Importing this package imports neither torch nor mpi4py.
"""
