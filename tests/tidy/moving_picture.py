"""docs/drawings/cut.svg: two people chat, a line is cut, both go on writing, and nothing is lost.

`make docs` draws it from SCENE, and tests/tidy/test_generated_pages.py holds it as current.
tests/site/test_moving_picture.py plays the same scene on a real server, over a proxy that cuts:
both ends show the log that the picture ends with.

Styles alone move it, so it works as an image of a README. Without them, and for who wants less
motion, it stands still and shows the end.

    seconds     0 ──────── cut ───────── back ───────── 16
    alice       has the line, has none, has it again
    an entry    `Shown`: when it is written, stored, and seen at each end
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final, Literal

Person = Literal["alice", "bob"]
ENDS: Final[tuple[Person, Person]] = ("alice", "bob")

LENGTH_S: Final = 16.0
CUT_S: Final = 4.2
BACK_S: Final = 9.4
END_S: Final = 12.4  # from here on all is still
TRAVEL_S: Final = 0.7  # from one end to the other, as the eye likes it
APART_S: Final = 0.7  # between entries that go out together


@dataclass(frozen=True, slots=True)
class Said:
    """What somebody writes, and when. Where the line is cut, it waits."""

    at_s: float
    by: Person
    body: str


SCENE: Final = (
    Said(0.0, "alice", "Lunch at one?"),
    Said(1.4, "bob", "Yes! Same place?"),
    Said(5.2, "alice", "I will book a table."),
    Said(6.2, "bob", "Bring the plans."),
    Said(7.4, "alice", "By the window."),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """An entry of the log; `seq` is its place."""

    said: Said
    seq: int
    stored_s: float
    seen_s: float  # at the other end

    def row_s(self, end: Person) -> float:
        return self.said.at_s if self.said.by == end else self.seen_s


def waits(said: Said) -> bool:
    return said.by == "alice" and CUT_S <= said.at_s < BACK_S


def log() -> list[Shown]:
    """SCENE in the order of the log: what waited is stored when the line is back."""
    later = [said for said in SCENE if waits(said)]
    shown: list[Shown] = []
    for said in [*(said for said in SCENE if not waits(said)), *later]:
        begins = BACK_S + 0.7 + APART_S * (1 + later.index(said)) if waits(said) else said.at_s
        is_missed = said.by == "bob" and CUT_S <= said.at_s < BACK_S
        seen = BACK_S + 0.7 if is_missed else begins + TRAVEL_S
        shown.append(Shown(said, len(shown) + 1, begins + TRAVEL_S / 2, seen if said.at_s > 0 else 0.0))
    return shown


# ---- how it looks --------------------------------------------------------------------------------

WIDTH, HEIGHT = 880, 330
PANES: Final = {"alice": 10, "bob": 580}
PANE_WIDTH: Final = 290
ROW_TOP, ROW_STEP = 66, 40
WIRES: Final = {"alice": (304, 372), "bob": (508, 576)}
WIRE_Y: Final = 160
CAPTIONS: Final = (
    (0.0, "alice and bob chat."),
    (CUT_S, "alice’s line is cut. Both go on writing."),
    (BACK_S, "The line is back: what waited is sent, what was missed arrives."),
    (END_S, "One log at both ends. Nothing is lost, nothing is there twice."),
)

STYLE: Final = """\
svg{--paper:#fff;--ink:#1f2328;--faint:#59636e;--edge:#d1d9e0;--pane:#f6f8fa;--own:#0969da;--good:#1a7f37;--bad:#cf222e}
@media (prefers-color-scheme:dark){svg{--paper:#0d1117;--ink:#f0f6fc;--faint:#9198a1;--edge:#3d444d;--pane:#151b23;
--own:#1f6feb;--good:#3fb950;--bad:#f85149}}
text{font:14px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;fill:var(--ink)}
.name{font-weight:600}.seq{font-size:12px;fill:var(--faint)}.own{fill:#fff}.caption{font-size:17px;font-weight:600}
.pane{fill:var(--pane);stroke:var(--edge)}.peer{fill:var(--paper);stroke:var(--edge)}.mine{fill:var(--own)}
.mark{fill:none;stroke:#fff;stroke-width:1.6}.wire{stroke:var(--good);stroke-width:3}
.gone{stroke:var(--bad);stroke-width:3;stroke-dasharray:5 6}.cross{stroke:var(--bad);stroke-width:4}
.online{fill:var(--good)}.offline{fill:none;stroke:var(--bad);stroke-width:2.5}
.m{animation-duration:%ss;animation-iteration-count:infinite;animation-timing-function:ease-in-out}
@media (prefers-reduced-motion:reduce){.m{animation:none}}
"""


class Picture:
    """Elements, and the keyframes that move them."""

    def __init__(self) -> None:
        self.styles: list[str] = []
        self.parts: list[str] = []

    def moving(self, *at: tuple[float, str], over_s: float = 0.25) -> str:
        """Attributes of an element that has each style from a time on; the first ones at 0."""
        frames = [f"0%{{{at[0][1]}}}"]
        for (_, before), (begin, after) in pairwise(at):
            frames += [f"{_percent(begin)}{{{before}}}", f"{_percent(begin + over_s)}{{{after}}}"]
        frames.append(f"100%{{{at[-1][1]}}}")
        return self.named("".join(frames))

    def named(self, frames: str) -> str:
        """Attributes of an element that these keyframes move."""
        name = f"k{len(self.styles)}"
        self.styles.append(f"@keyframes {name}{{{frames}}}")
        return f'class="m" style="animation-name:{name}"'

    def between(self, *times: float, ends_shown: bool) -> str:
        """Shown and hidden in turns at these times; without motion as at the end."""
        is_shown = ends_shown == (len(times) % 2 == 0)
        at = [(0.0, f"opacity:{int(is_shown)}")]
        for time in times:
            is_shown = not is_shown
            at.append((time, f"opacity:{int(is_shown)}"))
        return ("" if ends_shown else 'opacity="0" ') + self.moving(*at)

    def add(self, *parts: str) -> None:
        self.parts.extend(parts)


def _percent(at_s: float) -> str:
    return f"{100 * at_s / LENGTH_S:.2f}%"


def _tick(x: float, y: float) -> str:
    return f'<path class="mark" d="M{x:g} {y:g}l3.5 4 6-8"/>'


def _row(picture: Picture, end: Person, entry: Shown, rows: list[tuple[float, int]]) -> None:
    """One entry at one end. `rows`: from when it stands in which row."""
    said, is_own = entry.said, entry.said.by == end
    width = 7.4 * len(said.body) + (54 if is_own else 26)
    x = PANES[end] + PANE_WIDTH - 12 - width if is_own else PANES[end] + 12
    last = rows[-1][1]
    y = ROW_TOP + ROW_STEP * last
    moves = [(at, f"transform:translateY({ROW_STEP * (slot - last)}px)") for at, slot in rows]
    appears = entry.row_s(end)
    picture.add(f"<g {picture.moving(*moves)}>" if len(rows) > 1 else "<g>")
    picture.add(f"<g {picture.between(appears, ends_shown=True)}>" if appears else "<g>")
    picture.add(
        f'<rect class="{"mine" if is_own else "peer"}" x="{x:g}" y="{y}" width="{width:g}" height="30" rx="9"/>',
        f'<text class="{"own" if is_own else ""}" x="{x + 12:g}" y="{y + 20}">{escape(said.body)}</text>',
    )
    at_x = x - 18 if is_own else x + width + 9
    number = f'<text class="seq" x="{at_x:g}" y="{y + 20}">{entry.seq}</text>'
    if is_own and said.at_s:
        clock = f'<path class="mark" d="M{x + width - 17:g} {y + 11}v4.5h4"/>'
        face = f'<circle class="mark" cx="{x + width - 17:g}" cy="{y + 15}" r="6.5"/>'
        if waits(said):
            picture.add(f"<g {picture.between(entry.stored_s, ends_shown=False)}>{clock}{face}</g>")
        ticks = _tick(x + width - 28, y + 15), _tick(x + width - 21, y + 15)
        picture.add(f"<g {picture.between(entry.stored_s, ends_shown=True)}>{number}{ticks[0]}</g>")
        picture.add(f"<g {picture.between(entry.seen_s, ends_shown=True)}>{ticks[1]}</g>")
    else:
        picture.add(number + (_tick(x + width - 28, y + 15) + _tick(x + width - 21, y + 15) if is_own else ""))
    picture.add("</g></g>")


def slots(end: Person, entry: Shown, entries: list[Shown]) -> list[tuple[float, int]]:
    """An own entry that waits stands below what is there, and moves down for what was before it."""
    first = sum(other.seq < entry.seq and other.row_s(end) < entry.row_s(end) for other in entries)
    rows = [(0.0, first)]
    for other in sorted(entries, key=lambda one: one.row_s(end)):
        if other.seq < entry.seq and other.row_s(end) > entry.row_s(end):
            rows.append((other.row_s(end) - 0.3, rows[-1][1] + 1))
    return rows


def _pane(picture: Picture, end: Person, entries: list[Shown]) -> None:
    x = PANES[end]
    picture.add(f'<rect class="pane" x="{x}" y="12" width="{PANE_WIDTH}" height="264" rx="12"/>')
    picture.add(f'<text class="name" x="{x + 34}" y="42">{end}</text>')
    online, offline = (f'<circle class="{word}" cx="{x + 20}" cy="37" r="5"/>' for word in ("online", "offline"))
    if end == "alice":
        picture.add(f"<g {picture.between(CUT_S, BACK_S, ends_shown=True)}>{online}</g>")
        picture.add(f"<g {picture.between(CUT_S, BACK_S, ends_shown=False)}>{offline}</g>")
    else:
        picture.add(online)
    for entry in entries:
        _row(picture, end, entry, slots(end, entry, entries))


def _wires(picture: Picture, entries: list[Shown]) -> None:
    for end, (left, right) in WIRES.items():
        line = f'x1="{left}" x2="{right}" y1="{WIRE_Y}" y2="{WIRE_Y}"'
        if end == "bob":
            picture.add(f'<line class="wire" {line}/>')
            continue
        at = (left + right) // 2
        cross = f'<path class="cross" d="M{at - 8} {WIRE_Y - 8}l16 16m0-16l-16 16"/>'
        picture.add(f'<g {picture.between(CUT_S, BACK_S, ends_shown=True)}><line class="wire" {line}/></g>')
        picture.add(f'<g {picture.between(CUT_S, BACK_S, ends_shown=False)}><line class="gone" {line}/>{cross}</g>')
    for entry in entries:
        if entry.said.at_s:
            _travels(picture, entry)


def _travels(picture: Picture, entry: Shown) -> None:
    """A dot along the wires: to the server, and from there to the other end."""
    wires = (WIRES["alice"], WIRES["bob"]) if entry.said.by == "alice" else (WIRES["bob"][::-1], WIRES["alice"][::-1])
    half = TRAVEL_S / 2
    for (begin, end), at in zip(wires, (entry.stored_s - half, entry.seen_s - half), strict=True):
        way = f"transform:translateX({end - begin}px)"
        frames = (
            f"0%,{_percent(at - 0.01)}{{opacity:0}}{_percent(at)}{{opacity:1;transform:translateX(0)}}"
            f"{_percent(at + half)}{{opacity:1;{way}}}{_percent(at + half + 0.01)},100%{{opacity:0;{way}}}"
        )
        moves = picture.named(frames)
        picture.add(f'<circle {moves} opacity="0" fill="var(--own)" cx="{begin}" cy="{WIRE_Y}" r="6"/>')


def _server(picture: Picture, entries: list[Shown]) -> None:
    picture.add('<rect class="pane" x="376" y="76" width="128" height="168" rx="12"/>')
    picture.add('<text class="name" x="440" y="100" text-anchor="middle">chatd</text>')
    for entry in entries:
        y = 112 + 26 * (entry.seq - 1)
        is_there = picture.between(entry.stored_s, ends_shown=True) if entry.said.at_s else ""
        picture.add(
            f'<g {is_there}><rect class="peer" x="392" y="{y}" width="96" height="20" rx="5"/>',
            f'<text class="seq" x="402" y="{y + 14}">{entry.seq}</text>',
            f'<text class="seq" x="420" y="{y + 14}">{entry.said.by}</text></g>',
        )


def _captions(picture: Picture) -> Iterator[str]:
    for (begin, text), end in zip(CAPTIONS, [*(at for at, _ in CAPTIONS[1:]), LENGTH_S], strict=True):
        if begin == 0.0:
            when = picture.between(end, ends_shown=False)
        elif end == LENGTH_S:
            when = picture.between(begin, ends_shown=True)
        else:
            when = picture.between(begin, end, ends_shown=False)
        yield f'<g {when}><text class="caption" x="{WIDTH // 2}" y="310" text-anchor="middle">{text}</text></g>'


def page() -> str:
    """The whole file."""
    picture, entries = Picture(), log()
    for end in ENDS:
        _pane(picture, end, entries)
    _wires(picture, entries)
    _server(picture, entries)
    picture.add(*_captions(picture))
    title = "alice and bob chat; alice’s line is cut, both go on writing, the line is back, and both have one log"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
            f"<title>{title}</title>",
            "<style>",
            STYLE.replace("%s", f"{LENGTH_S:g}") + "\n".join(picture.styles),
            "</style>",
            f'<rect width="{WIDTH}" height="{HEIGHT}" rx="14" style="fill:var(--paper)"/>',
            *picture.parts,
            "</svg>\n",
        ]
    )
