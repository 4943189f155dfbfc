"""The functional core: what chatd decides, without a loop, a clock, a socket or a database.

`now` is an argument, in seconds.
"""
