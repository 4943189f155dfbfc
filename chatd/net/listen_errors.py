"""Turns an error of listening into a SettingError that names the wrong setting.

It is the host if this machine does not have the address, else the port.
"""

from __future__ import annotations

import errno
import re
import socket

from chatd.errors import SettingError

_NOT_HERE = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.ENODEV, errno.EINVAL)


def refused(what: str, host: str, port: int, error: OSError | UnicodeError) -> SettingError:
    """The error of a port that cannot be listened on.

    `what`: the prefix of the settings, "" for the chat port, "admin_" for the admin port.
    """
    flag = what.replace("_", "-")
    if isinstance(error, UnicodeError):
        return SettingError(f"{what}host: {host} is no host name; give --{flag}host an address of this machine")
    said = _own_words(error)
    if isinstance(error, socket.gaierror) or error.errno in _NOT_HERE:
        return SettingError(
            f"{what}host: cannot listen on {host}: {said};"
            f" give --{flag}host an address of this machine, or 0.0.0.0 for all"
        )
    if error.errno == errno.EACCES:
        return SettingError(
            f"{what}port: may not listen on {host}:{port}: {said}; give --{flag}port one of 1024 or more"
        )
    none = ", or -1 for none" if what else ""
    return SettingError(
        f"{what}port: cannot listen on {host}:{port}: {said}; stop what uses it or give another --{flag}port{none}"
    )


def _own_words(error: OSError) -> str:
    """The system's text, without the prefix of asyncio and uvloop, which repeats the address."""
    text = error.strerror or str(error)
    return re.sub(r"^error while attempting to bind on address .*\): ", "", text)
