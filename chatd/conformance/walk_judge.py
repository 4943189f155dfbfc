"""The judge of a random walk: holds what the devices got to what was sent.

    await judge.settled()       everybody who is connected has all entries, and they are right
    await judge.receipts()      the last cursors of each side are known to those who may know them
    await judge.presence()      everybody sees the others as they are
    await judge.whole_logs()    the log, read page by page, is what was sent

Each raises Mismatch that begins with the rule.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from chatd.conformance.log_model import LogModel
from chatd.conformance.values import Frame, Mismatch, as_frames, as_int
from chatd.conformance.walk_device import WalkDevice

PAGE: Final = 7  # so that a log has several pages


class WalkJudge:
    """Knows all devices and all logs of a walk."""

    def __init__(self, devices: list[WalkDevice], logs: list[LogModel], checks: Counter[str]) -> None:
        self._devices = devices
        self._logs = logs
        self._checks = checks

    def _of(self, device: WalkDevice) -> list[LogModel]:
        return [log for log in self._logs if device.user in log.users and log.lines]

    async def settled(self) -> None:
        """Everybody who is connected holds every log to its head, and nothing else comes."""
        for log in self._logs:
            log.check_whole()
        for device in [device for device in self._devices if device.is_connected]:
            for log in self._of(device):
                await self._arrived(device, log)
            await device.ask({"t": "ping"})
            device.check()
            for log in self._of(device):
                if device.held[log.c] != log.head:
                    raise Mismatch(f"nothing comes that nobody sent: {device} holds {log.c} to {device.held[log.c]}")
            self._entries(device)
            self._texts(device)

    async def _arrived(self, device: WalkDevice, log: LogModel) -> None:
        await device.until(
            lambda: device.held.get(log.c, 0) >= log.head,
            lambda: f"each entry reaches each device: {device} has {device.held.get(log.c)} of {log.head} in {log.c}",
        )

    def _entries(self, device: WalkDevice) -> None:
        by_c = {log.c: log for log in self._of(device)}
        for c, frame in device.given:
            if c not in by_c:
                raise Mismatch(f"entries are of one's own conversations: {device} got {frame}")
            if problem := by_c[c].problem(frame, is_page="t" not in frame):
                raise Mismatch(f"an entry says what was sent: {problem}, and {device} got {frame}")
            self._checks["entries"] += 1
        device.given = []

    def _texts(self, device: WalkDevice) -> None:
        """For each message the state with the highest `rev` wins, whatever arrived first."""
        for log in self._of(device):
            best: dict[int, tuple[int, object]] = {}
            for seq, frame in device.shown.get(log.c, {}).items():
                ref = as_int(frame.get("ref", seq))
                rev = seq if "ref" in frame else as_int(frame.get("rev", 0))
                if "ref" in frame and frame.get("body") is None and frame["kind"] == "edit":
                    continue  # another entry has its text
                best[ref] = max(best.get(ref, (-1, None)), (rev, frame.get("body")), key=lambda state: state[0])
            for ref, (_, text) in best.items():
                if ref in device.shown.get(log.c, {}) and text != log.text(ref):
                    raise Mismatch(f"all copies end alike: seq {ref} is {log.text(ref)!r}, and {text!r} at {device}")
                self._checks["copies"] += 1

    # ---- what was asked for ----------------------------------------------------------------------

    def page(self, device: WalkDevice, log: LogModel, asked: Frame, page: Frame, known_head: int) -> None:
        """A page of history: an unbroken run, as it stands now."""
        if page["t"] != "ok":
            raise Mismatch(f"history is answered by ok: {asked} gives {page}")
        entries = as_frames(page["entries"])
        seqs = [as_int(entry["seq"]) for entry in entries]
        if seqs != list(range(seqs[0], seqs[0] + len(seqs)) if seqs else []):
            raise Mismatch(f"a page is an unbroken run: {asked} gives {seqs}")
        head, floor = as_int(page["head"]), as_int(page["floor"])
        if not (seqs and known_head <= seqs[-1] < head and "before" not in asked):
            self._edges(asked, page, seqs, (head, floor))  # else the log grew while the page was read
        messages = sum(entry["kind"] == "message" for entry in entries)
        if messages > as_int(asked["limit"]) or head < known_head:
            raise Mismatch(f"a page has at most `limit` messages, and the head: {asked} gives {page}")
        for entry in entries:
            if as_int(entry["seq"]) not in log.lines:
                continue  # nobody was answered yet: it is judged when its outcome is known
            if problem := log.problem(entry, known_head=known_head, is_page=True):
                raise Mismatch(f"history says what was sent: {problem}, and {device} got {entry} by {asked}")
        self._checks["history"] += 1

    def _edges(self, asked: Frame, page: Frame, seqs: list[int], bounds: tuple[int, int]) -> None:
        """It begins where it was asked to, and `more` says whether there is more that way."""
        head, floor = bounds
        if "after" in asked:
            first, is_last = as_int(asked["after"]) + 1, bool(seqs) and seqs[-1] < head
            is_right = not seqs or seqs[0] == max(first, floor)
        else:
            last = min(as_int(asked.get("before", head + 1)) - 1, head)
            is_last = bool(seqs) and seqs[0] > floor
            is_right = not seqs or seqs[-1] == last
        if not is_right or page["more"] is not is_last:
            raise Mismatch(f"a page begins where it was asked to, and tells if there is more: {asked} gives {page}")

    def items(self, device: WalkDevice, items: list[Frame]) -> None:
        """The list of conversations, at a moment when all outcomes are known."""
        by_c = {log.c: log for log in self._of(device)}
        if {item["c"] for item in items} != set(by_c):
            raise Mismatch(f"a list has all conversations: {device} got {items}")
        for item in items:
            wanted = by_c[str(item["c"])].item(device.user)
            if wrong := {key: value for key, value in wanted.items() if item.get(key) != value}:
                raise Mismatch(f"a list tells heads, cursors and unread: {device} got {item}, not {wrong}")
        times = [as_int(item["ts"]) for item in items]
        if times != sorted(times, reverse=True):
            raise Mismatch(f"a list has the latest entry first: {device} got {items}")
        self._checks["lists"] += 1

    # ---- when nothing happens any more -----------------------------------------------------------

    async def receipts(self) -> None:
        """The last move of each cursor reaches those who may know of it."""
        for device in [device for device in self._devices if device.is_connected]:
            for log in self._of(device):
                for user in log.users:
                    if user == device.user or log.is_open:
                        await self._receipt(device, log, user)
                    elif device.cursors.get((log.c, user), (0, 0)) != (0, 0):
                        raise Mismatch(f"who was not answered learns nothing: {device} knows of {user} in {log.c}")

    async def _receipt(self, device: WalkDevice, log: LogModel, user: str) -> None:
        wanted = log.cursors[user].delivered, log.cursors[user].read
        await device.until(
            lambda: device.cursors.get((log.c, user), (0, 0)) == wanted,
            lambda: f"receipts arrive: {device} has {device.cursors.get((log.c, user))} of {user}, not {wanted}",
        )
        self._checks["receipts"] += 1

    async def presence(self) -> None:
        """Online, away or offline for those who have both sent; hidden for others."""
        for device in [device for device in self._devices if device.is_connected]:
            for log in self._logs:
                if device.user in log.users:
                    await self._status(device, log.other(device.user), log.is_open)

    async def _status(self, device: WalkDevice, user: str, is_open: bool) -> None:
        theirs = [one for one in self._devices if one.user == user and one.is_connected]
        is_away = all(one.away for one in theirs)
        wanted = "hidden" if not is_open else "offline" if not theirs else "away" if is_away else "online"
        await device.until(
            lambda: device.statuses.get(user, ("hidden", 0))[0] == wanted,
            lambda: f"presence is seen: {device} sees {user} as {device.statuses.get(user)}, not {wanted}",
        )
        self._checks["presence"] += 1

    async def whole_logs(self, device: WalkDevice) -> None:
        """Each log by `history`, page after page, is what was sent and nothing else."""
        for log in self._of(device):
            after, seqs = 0, list[int]()
            while True:
                asked: Frame = {"t": "history", "c": log.c, "after": after, "limit": PAGE}
                page = await device.ask(asked)
                self.page(device, log, asked, page, log.head)
                seqs += [as_int(entry["seq"]) for entry in as_frames(page["entries"])]
                if not page["more"]:
                    break
                after = seqs[-1]
            if seqs != sorted(log.lines):
                raise Mismatch(f"the log is what was sent: {log.c} has {seqs}, not {sorted(log.lines)}")
            self._checks["logs"] += 1
