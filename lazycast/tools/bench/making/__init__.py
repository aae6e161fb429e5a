"""`lazycast bench making`: who makes values, and what that costs a rank: helpers, shards, memory, pools by hand.

`plan` says what is measured, `session` runs it from outside, `measure` is what each rank does, `rows` measures each
row. `workloads` and `materializers` are what is asked for, `ways` and `by_hand` how it is made, `strangers` load that
has nothing to do with the ranks, `scheduler` the thread that must not be held up. `lru` is what a memo should remember.
`verdicts` holds what was measured against what it must reach, `report` shows it.
"""
