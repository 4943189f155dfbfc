"""A run as one HTML file: verdict, latency by percentile, figures over time, the whole table. Pure.

Nothing is loaded from anywhere: plots are inline SVG, colours follow the reader's light or dark
setting, a point tells its value on hovering.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

Line = Sequence[Sequence[float]]
WIDTH, HEIGHT = 720, 260
LEFT, RIGHT, TOP, BOTTOM = 64, 164, 16, 40
COLOURS: Final = 6

STYLE: Final = """
:root { color-scheme: light dark; --ink: #1c2024; --soft: #5f6770; --rule: #dfe3e8; --ground: #ffffff; --card: #f6f7f9;
  --good: #1a7f4b; --bad: #c02f2f;
  --c0: #2563c9; --c1: #c85a17; --c2: #1a7f6b; --c3: #8b3fb5; --c4: #97700b; --c5: #b8326b }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6e9ed; --soft: #9aa4af; --rule: #333a42; --ground: #14171a; --card: #1d2125; --good: #5cc98e; --bad: #ff8a80;
  --c0: #7fb0ff; --c1: #ffa768; --c2: #5fd0b8; --c3: #d19bf0; --c4: #e0bd55; --c5: #f78bb4 } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  margin: 0 auto; padding: 24px 16px 64px; max-width: 780px }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 17px; margin: 32px 0 8px } p { margin: 4px 0 }
.soft { color: var(--soft) }
.verdict { padding: 10px 14px; border-left: 4px solid; background: var(--card); margin: 16px 0 }
.good { border-color: var(--good) } .bad { border-color: var(--bad) }
.tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 8px; margin: 16px 0 }
.tile { background: var(--card); padding: 8px 12px; min-width: 0; overflow-wrap: anywhere }
.tile b { display: block; font-size: 20px; font-weight: 600; font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: 12px }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--soft); font: 11px system-ui, sans-serif }
svg .grid { stroke: var(--rule); stroke-width: 1 } svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round }
svg .end { font-weight: 600 } svg circle { stroke: var(--ground); stroke-width: 1 }
.scroll { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: 13px }
td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--rule); vertical-align: top }
td + td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
""" + "".join(f".s{n} {{ stroke: var(--c{n}) }} .f{n}, svg text.f{n} {{ fill: var(--c{n}) }}\n" for n in range(COLOURS))

CONTEXT: Final = ("options", "settings", "versions", "machine")
TILES: Final = (
    "highest_rate",
    "rate",
    "delivered_per_s",
    "p50_ms",
    "p95_ms",
    "p99_ms",
    "p999_ms",
    "max_ms",
    "ack_p99_ms",
    "lost",
    "server_cpu_us_per_msg",
    "postgres_cpu_us_per_msg",
    "pss_kib_per_connection",
    "seconds_to_all",
    "pages_p95_ms",
    "pages_p99_ms",
    "lists_p95_ms",
    "back_p99_ms",
    "send_p99_ms",
    *(f"n{n}_{name}" for n in (1, 2, 4, 8) for name in ("p99_ms", "cpu_us_per_msg")),
    "returns",
    "pss_slope_percent",
    "generator_lag_p99_ms",
)


def render(figures: dict[str, Any]) -> str:
    """The page."""
    title = f"chatd: {figures['scenario']}"
    m = figures["machine"]
    on = f"{figures['at']} · {m['cores']} cores, {m['cpu']}, {m['memory_gib']} GiB, Linux {m['kernel']}"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>",
        f"<title>{_text(title)}</title><style>{STYLE}</style><h1>{_text(title)}</h1><p class=soft>{_text(on)}</p>",
        _verdict(figures),
        _tiles(figures),
        *_plots(figures),
        "<h2>All figures</h2>",
        _table((k, v) for k, v in figures.items() if k not in (*CONTEXT, "windows", "curves", "series")),
        *(f"<h2>{name.capitalize()}</h2>" + _table(figures[name].items()) for name in CONTEXT if figures.get(name)),
    ]
    return "\n".join(parts) + "\n"


def _verdict(figures: dict[str, Any]) -> str:
    if figures["void"]:
        return (
            "<div class='verdict bad'><b>Void.</b> The load generator was late itself: the figures say nothing about"
            " the server.</div>"
        )
    if figures["over"]:
        return f"<div class='verdict bad'><b>Over budget.</b> {_text('; '.join(figures['over']))}</div>"
    bounds = [f"{n} ≤ {b:g}" for n, b in figures["budget"]["most"].items()] + [
        f"{n} ≥ {b:g}" for n, b in figures["budget"]["least"].items()
    ]
    return f"<div class='verdict good'><b>Within budget.</b> {_text(', '.join(bounds))}</div>"


def _tiles(figures: dict[str, Any]) -> str:
    tiles = [
        f"<div class=tile><b>{_value(figures[name])}</b><span>{_text(name)}</span></div>"
        for name in TILES
        if name in figures
    ]
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _plots(figures: dict[str, Any]) -> Iterable[str]:
    curves = {name: line for name, line in figures.get("curves", {}).items() if len(line) > 1}
    for names in _groups(list(curves)):
        yield "<h2>Latency by percentile</h2>" + percentiles({name: curves[name] for name in names})
    for title, several, unit in WINDOW_PLOTS:
        lines = {name: _windows(figures, name) for name in several}
        lines = {name: line for name, line in lines.items() if len(line) > 1}
        if lines:
            yield f"<h2>{title}</h2>" + plot(lines, x_name="window", y_name=unit)
    for name, line in figures.get("series", {}).items():
        if len(line) > 1:
            yield f"<h2>{_text(name)}</h2>" + plot({name: line}, x_name="s", y_name="", zero=False)


WINDOW_PLOTS: Final = (
    ("Latency, window by window", ("p50_ms", "p95_ms", "p99_ms"), "ms"),
    ("Pages of history, window by window", ("pages_p50_ms", "pages_p95_ms", "pages_p99_ms"), "ms"),
    ("Lists of conversations, window by window", ("lists_p50_ms", "lists_p95_ms", "lists_p99_ms"), "ms"),
    ("Sends meanwhile, window by window", ("send_p50_ms", "send_p99_ms"), "ms"),
    (
        "CPU a message, window by window",
        ("server_cpu_us_per_msg", "postgres_cpu_us_per_msg", "generator_cpu_us_per_msg"),
        "µs",
    ),
    ("Memory a connection, step by step", ("pss_kib_per_connection", "rss_kib_per_connection"), "KiB"),
    ("Rates tried", ("rate",), "msg/s"),
)


def _windows(figures: dict[str, Any], name: str) -> list[list[float]]:
    return [[n + 1, w[name]] for n, w in enumerate(figures.get("windows", [])) if w.get(name) is not None]


def _groups(names: list[str]) -> list[list[str]]:
    return [names[at : at + COLOURS] for at in range(0, len(names), COLOURS)]


# ---- plots ---------------------------------------------------------------------------------------


def percentiles(lines: Mapping[str, Line]) -> str:
    """Milliseconds by percentile, the tail stretched (each nine as wide as the one before);
    logarithmic where the tail is long.
    """

    def nines(p: float, n: int, line: Line) -> float:
        if p < 100:
            return -math.log10(1 - p / 100)
        return nines(line[-2][0], 0, line) + 0.15 if n and line[-2][0] < 100 else 0.0

    placed = {name: [[nines(p, n, line), ms, p] for n, (p, ms) in enumerate(line)] for name, line in lines.items()}
    furthest = max(x for line in placed.values() for x, *_ in line)
    ticks = [(nines(p, 0, []), f"{p:g}") for p in (0, 50, 90, 99, 99.9, 99.99, 99.999) if nines(p, 0, []) <= furthest]
    values = [ms for line in lines.values() for _, ms in line]
    log = max(values) > 20 * max(min(values), 1e-3)
    return _svg(
        placed,
        ticks,
        "percentile",
        "ms",
        log=log,
        label=lambda at: f"{'max' if at[2] == 100 else f'p{at[2]:g}'}: {at[1]:g} ms",
    )


def plot(lines: Mapping[str, Line], x_name: str, y_name: str, *, zero: bool = True) -> str:
    """Values over windows or seconds."""
    xs = sorted({at[0] for line in lines.values() for at in line})
    ticks = [(x, f"{x:g}") for x in _steps(xs[0], xs[-1], 8) if x_name != "window" or x == int(x)]
    return _svg(lines, ticks, x_name, y_name, zero=zero, label=lambda at: f"{x_name} {at[0]:g}: {at[1]:g} {y_name}")


def _svg(
    lines: Mapping[str, Line],
    x_ticks: list[tuple[float, str]],
    x_name: str,
    y_name: str,
    *,
    log: bool = False,
    zero: bool = True,
    label: Callable[[Sequence[float]], str],
) -> str:
    xs = [at[0] for line in lines.values() for at in line] + [x for x, _ in x_ticks]
    ys = [at[1] for line in lines.values() for at in line]
    low, high = (max(min(ys), 1e-3), max(*ys, 2e-3)) if log else (0.0 if zero else min(ys), max(ys))
    if log:
        y_ticks = [10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    else:
        y_ticks = _steps(low, high if high > low else low + max(abs(low), 1.0) * 0.1, 5)
    low, high = min(y_ticks[0], low), max(y_ticks[-1], high)
    x0, x1 = min(xs), max(max(xs), min(xs) + 1e-9)

    def x(value: float) -> float:
        return round(LEFT + (value - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        part = math.log(max(value, 1e-3) / low) / math.log(high / low) if log else (value - low) / (high - low)
        return round(HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM), 1)

    out = [f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role=img aria-label='{_text(', '.join(lines))} by {_text(x_name)}'>"]
    out += [f"<line class=grid x1={LEFT} x2={WIDTH - RIGHT} y1={y(tick)} y2={y(tick)} />" for tick in y_ticks]
    out += [f"<text x={LEFT - 8} y={y(tick) + 4} text-anchor=end>{tick:,.6g}</text>" for tick in y_ticks]
    out += [f"<text x={x(at)} y={HEIGHT - BOTTOM + 18} text-anchor=middle>{text}</text>" for at, text in x_ticks]
    out.append(
        f"<text x={WIDTH - RIGHT} y={HEIGHT - 6} text-anchor=end>{_text(x_name)}</text><text x=4"
        f" y=12>{_text(y_name)}</text>"
    )
    ends = _apart({name: y(line[-1][1]) for name, line in lines.items()})
    for n, (name, line) in enumerate(lines.items()):
        out.append(f"<polyline class=s{n % COLOURS} points='{' '.join(f'{x(at[0])},{y(at[1])}' for at in line)}' />")
        for at in line:
            told = f"<title>{_text(name)}, {_text(label(at))}</title>"
            out.append(f"<circle class=f{n % COLOURS} cx={x(at[0])} cy={y(at[1])} r=3>{told}</circle>")
        if len(lines) > 1:  # one alone is named by its heading
            out.append(
                f"<text class='end f{n % COLOURS}' x={WIDTH - RIGHT + 8} y={ends[name] + 4}>{_text(name)}</text>"
            )
    return "".join(out) + "</svg>"


def _apart(places: dict[str, float], least: float = 13.0) -> dict[str, float]:
    """Labels at the lines' ends, pushed down until none covers another."""
    found: dict[str, float] = {}
    last = -math.inf
    for name, place in sorted(places.items(), key=lambda item: item[1]):
        last = found[name] = max(place, last + least)
    return found


def _steps(low: float, high: float, n: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, some n of them."""
    if high <= low:
        return [low]
    raw = (high - low) / n
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= raw)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


# ---- text ----------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _value(value: object) -> str:
    return (
        "never"
        if value is None
        else _text(f"{value:,.6g}" if isinstance(value, float | int) and not isinstance(value, bool) else value)
    )


def _table(rows: Iterable[tuple[str, Any]]) -> str:
    cells = (f"<tr><td>{_text(name)}<td>{_text(v if isinstance(v, str) else json.dumps(v))}" for name, v in rows)
    return f"<div class=scroll><table>{''.join(cells)}</table></div>"
