"""How long presence takes to be right once the last fault is over. Pure.

    Convergence.look(now, truth, wrong)      again and again; `late` is what was wrong for longer than is promised

Promised is: right within `bound_s` of the last fault. A change after that (a session that comes or
goes, two who have both written) is seen within `CHANGE_S`: what is told is compared with `truth`,
and a change of that begins a new count.

Time is counted as far as this loop had it: of a pause between two looks only `LOOK_S_MAX` counts.
The nodes run here too, and what a busy machine keeps from all of them is nobody's fault. Likewise a
call to Redis that had no answer in time, although nothing was in its way any more: `failures`
rises, and it is the last fault then.
"""

from __future__ import annotations

from typing import Final

CHANGE_S: Final = 1.0
LOOK_S_MAX: Final = 0.1


class Convergence:
    """`right_s`: when it became right for the last time, counted from the first look."""

    def __init__(self, bound_s: float) -> None:
        self.bound_s = bound_s
        self.late: list[str] = []
        self.right_s = 0.0
        self._looked_at: float | None = None
        self._at_s = self._changed_s = self._failed_s = 0.0
        self._failures = 0
        self._truth: object = None

    @property
    def is_over(self) -> bool:
        """Whatever is wrong from now on is late, unless something happens."""
        return self._at_s > max(self._failed_s + self.bound_s, self._changed_s + CHANGE_S)

    def look(self, now: float, truth: object, wrong: list[str], failures: int = 0) -> None:
        if self._looked_at is not None:
            self._at_s += min(now - self._looked_at, LOOK_S_MAX)
        self._looked_at = now
        if failures != self._failures:
            self._failures, self._failed_s = failures, self._at_s
        if truth != self._truth:
            self._truth, self._changed_s = truth, self._at_s
        if wrong:
            self.right_s = self._at_s
            if not self.late and self.is_over:
                self.late = [f"late: {self._at_s:.1f} s after the last fault {one}" for one in wrong]
