"""Traces: each rank writes what its casts did and when (`writer`, `tracer`); `merge` makes one file of a group's."""
