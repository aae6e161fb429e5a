"""Casts whose items several make: `Each` under `shard` and under `Helpers`.

`gathering` is the state of such a cast on one rank, `sharing` makes the parts that are this rank's, and, once all are
there, the value.
"""
