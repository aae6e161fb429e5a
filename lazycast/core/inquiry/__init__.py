"""Whom a call waits for: ranks ask the root while their calls wait, and it asks all who do not answer.

A rank whose call waits long asks (`asking`); the root answers at once with what its books say, calls the roll, and
answers again with who is silent (`answering`, `rollcall`).
"""
