"""A small inference engine around lazycast, to copy from: see README.md, and `python -m examples.engine`."""
