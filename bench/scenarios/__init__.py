"""One scenario a file:

`flags(parser)` adds its flags, `run(options)` measures and gives the exit status; the docstring and
EXAMPLES are its help.
"""
