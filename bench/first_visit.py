"""A first visit to the page over a slow line, with nothing cached: how long until its sign-in is there.

Two lines, of 400 ms and 50 KB/s each way:

    slow   Chromium's emulation: each request waits 400 ms for its answer, and all share the rate
    tcp    a proxy (`long_line`), where making a connection costs a round trip, too

It is there when the field has the focus, the button is enabled, and both were drawn: by the page's own
clock, which begins with the navigation. Then Enter is pressed, and the page must ask for a name.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any, Final

from bench.long_line import LongLine

if TYPE_CHECKING:
    from playwright.async_api import Browser

LATENCY_S: Final = 0.4
BYTES_PER_S: Final = 50_000
EMULATED: Final = {
    "offline": False,
    "latency": LATENCY_S * 1000,
    "downloadThroughput": BYTES_PER_S,
    "uploadThroughput": BYTES_PER_S,
}
# `elementFromPoint` is what somebody would click at: null before there is a layout.
WATCH: Final = """
  const look = () => {
    const input = document.querySelector('.signin input');
    const button = document.querySelector('.signin button');
    const box = input?.getBoundingClientRect();
    const isThere = input && document.activeElement === input && button && !button.disabled
      && document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2) === input;
    requestAnimationFrame(isThere ? () => setTimeout(() => { window.benchSignIn = performance.now(); }) : look);
  };
  requestAnimationFrame(look);
"""


async def measure(browser: Browser, port: int, visits: int) -> dict[str, Any]:
    """Figures of `visits` visits over each line, and the bytes and requests of one."""
    slow = [await _visit(browser, port, is_emulated=True) for _ in range(visits)]
    line = LongLine(port, LATENCY_S, BYTES_PER_S)
    await line.start()
    try:
        tcp = [await _visit(browser, line.port, is_emulated=False) for _ in range(visits)]
    finally:
        await line.stop()
    return {**_of("sign_in_slow", slow), **_of("sign_in_tcp", tcp)}


async def _visit(browser: Browser, port: int, *, is_emulated: bool) -> float:
    """How long it takes, in ms. A context of its own has no cache and no connection."""
    context = await browser.new_context(viewport={"width": 1100, "height": 800})
    try:
        page = await context.new_page()
        await page.add_init_script(WATCH)
        if is_emulated:
            session = await context.new_cdp_session(page)
            await session.send("Network.enable")
            await session.send("Network.emulateNetworkConditions", EMULATED)
        await page.goto(f"http://127.0.0.1:{port}/", wait_until="commit")
        await page.wait_for_function("() => window.benchSignIn !== undefined", polling=20)
        await page.keyboard.press("Enter")
        await page.get_by_text("Type a name first.").wait_for()
        return float(await page.evaluate("window.benchSignIn"))
    finally:
        await context.close()


def _of(name: str, values: list[float]) -> dict[str, Any]:
    return {f"{name}_p50_ms": round(statistics.median(values), 1), f"{name}_max_ms": round(max(values), 1)}
