"""The cast engine: one ordered lane per object and rank.

`lane` holds what all ranks do with a cast; `root` and `follower` what only one side does; `solo` is a group of one.
`mailbox`, `ledger` and `waits` decide what comes next on plain data; `workers` runs user code.
"""
