"""What a generator can do, one load a file:

`LOAD` is its class. Runs in a process of its own (see `bench.generator`); scenarios give the
orders.
"""
