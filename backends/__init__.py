"""Implementations of `lazycast.net.backend.Backend`, one file and one native library each."""
