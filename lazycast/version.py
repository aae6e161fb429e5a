"""The version: here and nowhere else. The build reads it from this line, without importing anything."""

__version__ = "0.1.0"
