"""The page in Chromium: it is visited over a slow line; a long conversation is open, and messages arrive in it.

First the page is visited `--visits` times over each of two slow lines, with nothing cached (`first_visit`), until its
sign-in can be used.

The log holds `--messages` messages, all of them loaded. Then the peer sends `--arrivals` more, one after
another, `PAUSE_S` apart, while the page is at the end of the log: faster ones would be a burst, which the log does
not follow. Two figures of one, both CPU time of the page's main thread:

    arriving   all that follows from it, from the socket to the last receipt and paint, over several frames
               (`Performance.getMetrics`, TaskDuration by thread ticks), less what the same time costs without one
    longest    the longest task of those, which is a frame or a script: what a key or a wheel waits for at most. Of
               `--traced` more, by Chromium's trace, which adds to it

Then the log is scrolled by a wheel's step a frame: the time from frame to frame. Last, the page is loaded again, and
its first conversation is awaited.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import shutil
import statistics
import sys
import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from bench import first_visit, old_logs, report
from bench.old_logs import Old
from bench.report import say
from bench.target import Target, TargetError
from chatd.chat.auth import issue
from chatd.client import Connection
from chatd.ids import UserId

if TYPE_CHECKING:
    from playwright.async_api import Browser, CDPSession, Page

EXAMPLES = """\
  python -m bench browser                     5,000 messages, 100 arrive
  python -m bench browser --messages 200      a short conversation, to compare with"""
NOT_HERE: Final = 3  # see bench.budget
NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ME: Final = "alice"
PEER: Final = "bob"
STEP_PX: Final = 120  # of a mouse wheel
PAUSE_S: Final = 0.6
MARK: Final = "bench.arriving"
TASK: Final = "ThreadControllerImpl::RunTask"
TRACED: Final = ("toplevel", "blink.user_timing")  # categories of Chromium's trace
SHOWN: Final = "(text) => [...document.querySelectorAll('.message .text')].some((one) => one.textContent === text)"
IS_WHOLE: Final = """() => {
  const scroller = document.querySelector('.scroller');
  scroller.scrollTop = 0;
  const top = document.querySelector('.top');
  return top !== null && !top.classList.contains('loading') && top.textContent.includes('beginning');
}"""
SCROLL: Final = """([step, frames]) => new Promise((done) => {
  const scroller = document.querySelector('.scroller');
  const times = [];
  const turn = (at) => {
    times.push(at);
    scroller.scrollTop -= step;
    if (times.length <= frames) requestAnimationFrame(turn);
    else done(times.slice(1).map((time, i) => time - times[i]));
  };
  requestAnimationFrame(turn);
})"""


def flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--messages", type=int, default=5_000, metavar="N", help="held by the page (default: 5000)")
    parser.add_argument("--arrivals", type=int, default=100, metavar="N", help="that arrive (default: 100)")
    parser.add_argument("--traced", type=int, default=20, metavar="N", help="that arrive traced (default: 20)")
    parser.add_argument("--visits", type=int, default=10, metavar="N", help="first ones, over each line (default: 10)")
    parser.add_argument("--frames", type=int, default=600, metavar="N", help="that are scrolled (default: 600)")
    parser.add_argument(
        "--budget-arriving-ms", type=float, default=16, metavar="MS", help="median of an arriving one (default: 16)"
    )
    parser.add_argument(
        "--budget-longest-ms", type=float, default=16, metavar="MS", help="median of its longest task (default: 16)"
    )
    parser.add_argument("--budget-frame-p95-ms", type=float, default=20, metavar="MS", help="scrolled (default: 20)")
    parser.add_argument(
        "--budget-sign-in-ms", type=float, default=1500, metavar="MS", help="a first visit's longest (default: 1500)"
    )


def chromium() -> str | None:
    """Where it is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


async def run(options: argparse.Namespace) -> int:
    from playwright.async_api import async_playwright

    binary = chromium()
    if binary is None:
        print("bench: browser cannot run here: no chromium (`apt-get install chromium`)", file=sys.stderr)
        return NOT_HERE
    async with Target(options) as target, async_playwright() as playwright:
        target.need_own("browser: what a conversation holds")
        old = Old(ME, PEER, options.messages, 100)
        await asyncio.to_thread(old_logs.write, target.conninfo, [old], options.seed)
        me, peer = [await _connection(target, name) for name in (ME, PEER)]
        await me.request("read", to=PEER, seq=options.messages)
        browser = await playwright.chromium.launch(executable_path=binary)
        say(f"{options.visits} first visits over each slow line")
        figures = await first_visit.measure(browser, target.endpoint.ports[0], options.visits)
        page = await browser.new_page(viewport={"width": 1100, "height": 800})
        page.set_default_timeout(120_000)
        say(f"the page gets {options.messages} messages")
        await _open(page, target)
        figures |= await _arrivals(page, peer, options.arrivals)
        figures |= await _longest(browser, page, peer, options.traced)
        figures |= await _scrolled(page, options.frames)
        figures |= await _reloaded(page)
        figures |= {"messages": options.messages, **report.context(options, target)}
        await browser.close()
        for connection in (me, peer):
            await connection.close()
    most = {
        "arriving_p50_ms": options.budget_arriving_ms,
        "longest_p50_ms": options.budget_longest_ms,
        "frame_p95_ms": options.budget_frame_p95_ms,
        "sign_in_slow_max_ms": options.budget_sign_in_ms,
    }
    return report.finish(options, figures, most)


async def _connection(target: Target, name: str) -> Connection:
    endpoint = target.endpoint
    token = issue(endpoint.keys(), UserId(name), 3_600, time.time(), None, None)
    return await Connection.open(f"ws://{endpoint.host}:{endpoint.ports[0]}/ws", token, device="bench")


async def _open(page: Page, target: Target) -> None:
    """Sign in, open the conversation and load all of it; then go to its end."""
    await page.goto(f"http://{target.endpoint.host}:{target.endpoint.ports[0]}/")
    await page.get_by_label("Your name").fill(ME)
    await page.keyboard.press("Enter")
    await page.locator(".conversation").first.click()
    await page.locator(".message").first.wait_for()
    await page.wait_for_function(IS_WHOLE, polling=50)
    await page.get_by_role("button", name="Go to the latest message").click()
    await page.wait_for_function("() => document.querySelector('.down') === null")
    await page.wait_for_timeout(1_000)


async def _arrivals(page: Page, peer: Connection, n: int) -> dict[str, Any]:
    session = await page.context.new_cdp_session(page)
    await session.send("Performance.enable", {"timeDomain": "threadTicks"})
    idle = []
    for _ in range(20):
        before = await _worked_ms(session)
        await asyncio.sleep(PAUSE_S)
        idle.append(await _worked_ms(session) - before)
    waits = statistics.median(idle)
    costs = []
    for i in range(n):
        before = await _worked_ms(session)
        await peer.request("send", to=ME, cid=str(uuid.uuid4()), body=f"arriving {i}")
        await asyncio.sleep(PAUSE_S)
        costs.append(await _worked_ms(session) - before - waits)
    if not await page.evaluate(SHOWN, f"arriving {n - 1}"):
        raise TargetError("the page does not show what arrived last")
    elements = await page.evaluate("document.querySelectorAll('*').length")
    return {"elements": elements, "waiting_ms": round(waits, 2), **_of("arriving", costs)}


async def _worked_ms(session: CDPSession) -> float:
    metrics = await session.send("Performance.getMetrics")
    return next(float(one["value"]) for one in metrics["metrics"] if one["name"] == "TaskDuration") * 1000


async def _longest(browser: Browser, page: Page, peer: Connection, n: int) -> dict[str, Any]:
    session, events, is_over = await browser.new_browser_cdp_session(), list[dict[str, Any]](), asyncio.Event()
    session.on("Tracing.dataCollected", lambda some: events.extend(some["value"]))
    session.on("Tracing.tracingComplete", lambda _: is_over.set())
    config = {"includedCategories": [*TRACED], "excludedCategories": ["*"]}
    await session.send("Tracing.start", {"traceConfig": config, "transferMode": "ReportEvents"})
    for i in range(n):
        await page.evaluate(f"() => void performance.mark('{MARK}')")
        await peer.request("send", to=ME, cid=str(uuid.uuid4()), body=f"traced {i}")
        await asyncio.sleep(PAUSE_S)
    await session.send("Tracing.end")
    await is_over.wait()
    return _of("longest", longest_tasks(events))


def longest_tasks(events: Sequence[dict[str, Any]]) -> list[float]:
    """Of each stretch that begins with a mark, the longest task of the thread that made it: ms of CPU.

    `events`: of a trace, with `ts` in us, and `tdur`, us of the thread's time.
    """
    marks = sorted((one for one in events if one["name"] == MARK), key=lambda one: one["ts"])
    thread = (marks[0]["pid"], marks[0]["tid"])
    begins = [one["ts"] for one in marks]
    longest = [0.0] * len(marks)
    for one in events:
        at = bisect.bisect(begins, one["ts"]) - 1
        if one["name"] == TASK and (one["pid"], one["tid"]) == thread and at >= 0:
            longest[at] = max(longest[at], one.get("tdur", 0) / 1000)
    return longest


async def _scrolled(page: Page, frames: int) -> dict[str, Any]:
    return _of("frame", await page.evaluate(SCROLL, [STEP_PX, frames]))


async def _reloaded(page: Page) -> dict[str, Any]:
    """Until the list is there, by the page's own clock."""
    await page.reload(wait_until="commit")
    await page.locator(".conversation").first.wait_for()
    return {"reload_ms": round(await page.evaluate("performance.now()"), 1)}


def _of(name: str, values: Sequence[float]) -> dict[str, Any]:
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return {
        f"{name}_p50_ms": round(cuts[49], 2),
        f"{name}_p95_ms": round(cuts[94], 2),
        f"{name}_max_ms": round(max(values), 2),
    }
