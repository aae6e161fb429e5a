"""Bindings of lazycast for particular inference engines, one file each."""
