"""What plain `pytest` leaves alone: the tests in `sglang` run inside environments of their own (`make test-sglang`)."""

collect_ignore = ["sglang"]
