"""The version, single-sourced from the package's metadata."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("lazycast")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"
