"""Implementations of `lazycast.backend.Backend`, one file and one native library each."""
