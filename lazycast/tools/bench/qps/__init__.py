"""Throughput under requests: `python -m lazycast bench qps`, or `lazycast bench qps`.

Starts ranks on this machine. Each has an engine's loop, whose main thread asks for request after request and takes the
values as they come; ways to get the value to every rank take turns, in alternating rounds of one run::

    plan            what to measure                         (plain data, made from the command line)
    session         start the ranks, put together what they bring back
    measure         on each rank: workloads, rounds, verification
    loop            the loop of one rank over one way
    tally           how far every rank is, for loops that are closed over all of them
    slowdown        the same beside a scheduler that never rests
    ways            one small class per way
    workloads       what is asked for;  materializers  what is made of it, and how long that took
    records         what a rank brings back                 (plain data)
    summary         figures from the records of all ranks   (plain functions)
    report, plot    tables; picture

Importing this package imports neither torch nor mpi4py.
"""
