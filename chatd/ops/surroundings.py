"""What surrounds every command: whatever it was started in, it says at most one line about that and
its exit status is true.

    run(command) ─► exit status        0 done, 1 it failed, 2 a setting or a flag is wrong, 130 Ctrl-C, 141 nobody reads the output

- stdin, stdout and stderr may be closed: a descriptor in their place keeps a socket from getting
  the number 1, and what is written to it is an error.
- Output that cannot be written (a full disk, a closed descriptor) is a failure, told on stderr. A
  reader that has gone (`| head`) is none of our business: no word, and the status that a shell
  shows for SIGPIPE.
- What a terminal's encoding lacks is written as an escape.
- An OSError that comes this far is the machine's: no descriptors, no right, no space. A traceback
  is left to what only a bug can cause.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import warnings
from collections.abc import Callable
from typing import Final

from chatd import log
from chatd.errors import ChatdError, SettingError
from chatd.ops import descriptors

FAILED: Final = 1
WRONG_SETTING: Final = 2
INTERRUPTED: Final = 130
NOBODY_READS: Final = 141

_OUTPUT_ERRORS: Final = (errno.ENOSPC, errno.EBADF, errno.EIO, errno.EFBIG, errno.EDQUOT)


def run(command: Callable[[], int]) -> int:
    """Run it; gives the exit status of the process."""
    _complete_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    status = _status(command)
    lost = _flush(is_told=status != 0)
    return status or lost


def say(text: str) -> None:
    """One line on stderr, if it can be had."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        priority = "<3>" if log.is_journal(sys.stderr.buffer) else ""
        sys.stderr.write(f"{priority}chatd: {text}\n")
        sys.stderr.flush()


def _status(command: Callable[[], int]) -> int:
    try:
        return command()
    except SystemExit as e:  # --help, --version
        return e.code if isinstance(e.code, int) else 0
    except SettingError as e:
        say(str(e))
        return WRONG_SETTING
    except ChatdError as e:
        say(str(e))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return NOBODY_READS
    except OSError as e:
        warnings.simplefilter("ignore", RuntimeWarning)  # a coroutine that no loop could be made for
        say(_reason(e))
        return FAILED


def _reason(error: OSError) -> str:
    what = error.strerror or str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"no further file can be opened, {descriptors.limit()} are allowed; {descriptors.REMEDY}"
    if error.filename is not None:
        return f"{error.filename}: {what}"
    return f"cannot write the output: {what}" if error.errno in _OUTPUT_ERRORS else what


def _flush(*, is_told: bool) -> int:
    """What is still in Python's buffers goes out now, where a failure can be told; else the
    interpreter would tell it, in its own words.
    """
    status = 0
    for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            status = status or NOBODY_READS
        except (OSError, ValueError) as e:
            if fd == 1 and not is_told:
                say(_reason(e) if isinstance(e, OSError) else "cannot write the output: it is closed")
            status = status or (FAILED if fd == 1 else 0)
        else:
            continue
        _silence(fd)
    return status


def _silence(fd: int) -> None:
    with contextlib.suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, fd)
        os.close(nowhere)


def _complete_descriptors() -> None:
    for fd, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            with contextlib.suppress(OSError):
                # The lowest free number, which is this one; for 1 and 2: not to be written
                os.open(os.devnull, os.O_RDONLY)
                if fd:
                    setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115 (for the life of the process)
