"""Runs a command of `chatd`: its standard streams, its exit status, one line for each error.

    run(command) ─► exit status   0 done, 1 failed, 2 a setting or a flag is wrong,
                                  130 Ctrl-C, 141 the output's reader has closed it

- stdin, stdout and stderr may be closed at the start. Each gets a descriptor, so that no socket
  gets number 1; writing to it is an error.
- Output that cannot be written (a full disk, a closed descriptor) is a failure, reported on stderr.
  A reader that has closed its end (`| head`) is not reported; the status is that of SIGPIPE.
- Characters that the terminal's encoding lacks are written as escapes.
- An OSError that reaches this module is caused by the machine: no descriptors, no permission, no
  space. It gets one line. Only a bug shows a traceback.
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
    """Run a command; returns the exit status of the process."""
    _complete_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    status = _status(command)
    lost = _flush(is_reported=status != 0)
    return status or lost


def say(text: str) -> None:
    """Write one line to stderr; errors are ignored."""
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
        warnings.simplefilter("ignore", RuntimeWarning)  # of a coroutine that no loop could be made for
        say(_reason(e))
        return FAILED


def _reason(error: OSError) -> str:
    what = error.strerror or str(error)
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"no further file can be opened, {descriptors.limit()} are allowed; {descriptors.REMEDY}"
    if error.filename is not None:
        return f"{error.filename}: {what}"
    return f"cannot write the output: {what}" if error.errno in _OUTPUT_ERRORS else what


def _flush(*, is_reported: bool) -> int:
    """Write what is in Python's buffers; returns the exit status of a failure, else 0.

    At its end the interpreter would do it, and report a failure in its own words.
    `is_reported`: the command has reported an error already.
    """
    status = 0
    for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except BrokenPipeError:
            status = status or NOBODY_READS
        except (OSError, ValueError) as e:
            if fd == 1 and not is_reported:
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
                # It gets the lowest free number, which is `fd`. Read-only, so that a write fails.
                os.open(os.devnull, os.O_RDONLY)
                if fd:
                    setattr(sys, name, open(fd, "w", closefd=False))  # noqa: SIM115 (for the life of the process)
