"""At most `devices_max` devices a user, over all nodes; the same device once.

A session is closed here when its device has connected to another node since (4004), or when the
user has too many devices and this one was idle longest (4005). Devices of one node are handled by
the hello itself (hello.py).
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Final

from chatd.chat.services import Services
from chatd.errors import CloseCode
from chatd.ids import UserId

SURPLUS_S: Final = 0.3  # what one node publishes of its devices' activity has reached all others by then


def close_displaced(s: Services, id: UserId) -> None:
    """Close sessions whose device has connected to another node since, or that are too many.

    Called after a hello, and when another node has published devices of this user. All nodes decide
    by the same data.
    """
    user = s.registry.users.get(id)
    if user is None:
        return
    for device in s.presence.displaced(id):
        if (session := user.sessions.get(device)) is not None:
            session.sink.close(CloseCode.REPLACED, "the same device connected again")
    if id not in s.settling and s.presence.surplus(id, s.settings.devices_max):
        s.settling.add(id)
        s.tasks.spawn(_close_surplus(s, id))


async def _close_surplus(s: Services, id: UserId) -> None:
    """Close the sessions over the limit, after all nodes have published their devices' activity.

    Each node knows best when its own devices were last active; then all decide by the same times.
    """
    publish_activity(s, (id,), math.inf)
    try:
        await asyncio.sleep(SURPLUS_S)
    finally:
        s.settling.discard(id)
    if (user := s.registry.users.get(id)) is not None:
        for device in s.presence.surplus(id, s.settings.devices_max):
            if (session := user.sessions.get(device)) is not None:
                session.sink.close(CloseCode.TOO_MANY_DEVICES, "another device came and this was the longest idle")


def publish_activity(s: Services, users: Iterable[UserId], seconds: float) -> None:
    """Publish which devices of these users were active in the last `seconds`, and when."""
    now, steady_ms = s.clock.now(), s.steady.ms()
    for id in users:
        if (user := s.registry.users.get(id)) is not None:
            for device, session in user.sessions.items():
                if now - session.active_at < seconds:
                    s.presence.touch(id, device, steady_ms - int((now - session.active_at) * 1000))
