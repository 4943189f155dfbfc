"""One scenario a file: `flags(parser)` adds its flags, `run(options)` measures and gives the exit status; the docstring's first line is its help."""
