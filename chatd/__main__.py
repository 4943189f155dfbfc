"""`python -m chatd` is the command `chatd`."""

import sys

from chatd.cli import main

sys.exit(main())
