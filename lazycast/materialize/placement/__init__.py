"""How `placement="auto"` decides: plain data on the root, no threads, no clock, no randomness.

`site` says what a group has to work with and `sample` what a cast cost; `model` predicts what a placement costs,
`estimate` keeps what was measured, `record` puts both together for one kind of cast and picks its placement;
`chooser` keeps a record for each kind, and is what the root talks to.
"""
