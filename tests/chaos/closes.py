"""Who was closed with 4004 and 4005, judged at that moment by who was there: the nodes run in this
process, so their order is known exactly.

    Closes(lease_s)                   `sittings` are all sessions since their hello, `wrong` the sentences; none is
                                      right
    installed(closes)                 wraps where a session takes its device's place, is active, and ends

    4004    a newer session of the same device took its place, on whatever node
    4005    the user has more devices than may be, and no other that could go is idle for longer. A node that has
            too many by
            itself closes the longest idle of its own; over several nodes all decide by what each told of its devices

What other nodes know of a session is late: its end by a lease, if its node or Redis is away; its
activity by SETTLED_S.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from chatd.chat import device_limit
from chatd.chat import hello as opening
from chatd.chat.services import Services
from chatd.core.session import Session, State
from chatd.errors import CloseCode
from chatd.net.connection import ClientConnection

SETTLED_S: Final = device_limit.SURPLUS_S + 0.5  # before this a device may have been told to be idle that is not
KNOWN_S: Final = 1.0  # a lease more, and all nodes know of a session, or of its end
CLOCKS_S: Final = 0.06  # by so much steady times of nodes may differ here: readings of PostgreSQL's clock are held up


@dataclass(slots=True, eq=False)
class Sitting:
    """A session since it took its device's place. Times by the nodes' monotonic clock; 0: not yet."""

    n: int  # in which order they came
    services: int  # which node
    user: str
    device: str
    session: Session
    at: float
    ended_at: float = 0.0
    code: int = 0
    active: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"the session of {self.user}/{self.device} that began at {self.at:.3f} and ended at {self.ended_at:.3f}"

    def active_at(self, when: float) -> float:
        """Its last activity until then."""
        n = bisect_right(self.active, when)
        return self.active[n - 1] if n else self.at


class Closes:
    """`wrong`: what was closed and should not have been."""

    def __init__(self, lease_s: float) -> None:
        self.devices_max, self.lease_s = 0, lease_s
        self.sittings: dict[Session, Sitting] = {}
        self.wrong: list[str] = []

    def began(self, services: Services, session: Session, user: str, device: str) -> None:
        self.devices_max = services.settings.devices_max
        n, now = len(self.sittings), asyncio.get_running_loop().time()
        self.sittings[session] = Sitting(n, id(services), user, device, session, now, active=[session.active_at])

    def ended(self, session: Session, code: int) -> None:
        sitting = self.sittings.get(session)
        if sitting is None or sitting.ended_at:
            return
        sitting.ended_at, sitting.code = asyncio.get_running_loop().time(), code
        if code == CloseCode.REPLACED:
            self._replaced(sitting)
        elif code == CloseCode.TOO_MANY_DEVICES:
            self._too_many(sitting)

    def _replaced(self, closed: Sitting) -> None:
        mine = [
            one
            for one in self.sittings.values()
            if one is not closed and (one.user, one.device) == (closed.user, closed.device)
        ]
        if not any(
            one.n > closed.n or (one.services != closed.services and one.at > closed.at - CLOCKS_S) for one in mine
        ):
            self.wrong.append(f"{closed} was closed as replaced, and nothing of its device came after it")

    def _too_many(self, closed: Sitting) -> None:
        now = closed.ended_at
        there = self._newest(closed, now)
        here = [one for one in there if one.services == closed.services and (one is closed or not one.ended_at)]
        if len(here) > self.devices_max:
            idler = [one for one in here[:-1] if one.active_at(now) < closed.active_at(now)]
            over = 1
        else:
            known = [one for one in there if not one.ended_at or one.code == CloseCode.TOO_MANY_DEVICES]
            idler = [
                one
                for one in known
                if self._is_known(one, now) and one.active_at(now) + CLOCKS_S < closed.active_at(now - SETTLED_S)
            ]
            over = len(there) - self.devices_max
        if over <= 0:
            self.wrong.append(f"{closed} was closed as one too many, beside {[one.device for one in there]}")
        elif len(idler) >= over:
            self.wrong.append(
                f"{closed} was closed as the longest idle, and {[str(one) for one in idler]} were idle for longer"
            )

    def _newest(self, closed: Sitting, now: float) -> list[Sitting]:
        """Of each device of the user the newest session that another node may think there, by when
        they began; `closed` itself.
        """
        late_s = self.lease_s + KNOWN_S
        mine = [
            one
            for one in self.sittings.values()
            if one.user == closed.user and (not one.ended_at or one.ended_at > now - late_s)
        ]
        newest = {one.device: one for one in mine}
        newest[closed.device] = closed
        return sorted(newest.values(), key=lambda one: one.n)

    def _is_known(self, one: Sitting, now: float) -> bool:
        return one.at < now - self.lease_s - KNOWN_S


@contextlib.contextmanager
def installed(closes: Closes) -> Iterator[None]:
    attach, receive, end = opening._attach, Session.receive, ClientConnection._end_session

    def attached(s: Any, session: Session, hello: Any, identity: Any) -> Any:
        closes.began(s, session, identity.user, hello.device)  # before the one that it replaces is closed
        return attach(s, session, hello, identity)

    def received(self: Session, payload: bytes, now: float) -> Any:
        if (sitting := closes.sittings.get(self)) is not None:
            sitting.active.append(now)
        return receive(self, payload, now)

    def ended(self: ClientConnection, reason: str) -> None:
        if self._session is not None and self._session.state is not State.CLOSED:
            closes.ended(self._session, self._close_code)
        end(self, reason)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "_attach", attached)
        patch.setattr(Session, "receive", received)
        patch.setattr(ClientConnection, "_end_session", ended)
        yield
