"""Bindings of lazycast for particular inference engines, one package each."""
