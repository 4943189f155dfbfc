"""Recognizes environment variables of Kubernetes Services, which look like settings of chatd. Pure.

Kubernetes gives every container the address of each Service of its namespace
(`enableServiceLinks`), as Docker's links did. For a Service named `chatd` these are
CHATD_SERVICE_HOST, CHATD_SERVICE_PORT[_NAME], CHATD_PORT=tcp://10.0.0.1:8080 and
CHATD_PORT_8080_TCP[_PROTO|_PORT|_ADDR]. For one named `chatd-admin` they begin with CHATD_ADMIN_. A
port that is a URL is never meant as a setting. An unknown name that Kubernetes would not make is
still an error, because it is a misspelt setting.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

_LINK: Final = re.compile(r"(tcp|udp|sctp)://[^\s]+:[0-9]+")
_PORT: Final = re.compile(r"CHATD_(?:[A-Z0-9_]+_)?PORT(?:_[0-9]+_(?:TCP|UDP|SCTP))?")
_PART: Final = re.compile(
    r"CHATD_(?:[A-Z0-9_]+_)?"
    r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT_[0-9]+_(?:TCP|UDP|SCTP)_(?:PROTO|PORT|ADDR))"
)


def is_injected(variable: str, value: str) -> bool:
    """Whether this is such a variable, by its name and its value."""
    if _PART.fullmatch(variable) is not None:
        return True
    return _PORT.fullmatch(variable) is not None and _LINK.fullmatch(value) is not None


def warning(variables: Collection[str]) -> str:
    """One line about all such variables."""
    names = ", ".join(sorted(variables)[:3]) + (f" and {len(variables) - 3} more" if len(variables) > 3 else "")
    return (
        f"{names}: set by Kubernetes for a Service, no settings of chatd: passed over; "
        "`enableServiceLinks: false` in the pod leaves them out"
    )
