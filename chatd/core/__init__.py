"""The functional core: chatd's decisions, without an event loop, a clock, a socket or a database.

`now` is an argument, in seconds.
"""
