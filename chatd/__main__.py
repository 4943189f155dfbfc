"""The command `chatd`, and `python -m chatd`.

While its code is being loaded, and once it has done its work, Ctrl-C ends the process by the
signal's default action: nothing is held that somebody must give back, and a KeyboardInterrupt would
be a traceback out of some import. In between, a command ends by KeyboardInterrupt, or handles it.
"""

import signal
import sys


def main() -> int:
    """Entry point of the console script; returns the exit status."""
    is_caught = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else a parent has it ignored
    if is_caught:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from chatd import cli
    from chatd.ops.surroundings import INTERRUPTED

    try:
        if is_caught:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = cli.main()
        if is_caught:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    except KeyboardInterrupt:  # just before or after the command, which has its own
        return INTERRUPTED
    return status


if __name__ == "__main__":
    sys.exit(main())
