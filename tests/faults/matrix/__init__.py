"""The fault matrix: every fault, to every rank that plays a part, at every step of an object's life, on every backend.

`combinations` says what there is, `rank` is what a rank does, `start` starts ranks and watches them, `network` does so
on two hosts, `verdict` says what each surviving rank must have seen, and `page` writes it down.
`python -m tests.faults.matrix --out docs/faults.md` runs all.
"""
