"""The programs on the docs' pages do what the pages say, over kills of the server and cuts of the line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.fix_process import MakeProcess
from tests.proxy import Proxy
from tests.site import pages
from tests.site.programs import Page, echoes_over_a_kill, line_of, say
from tests.until import until

OWN_CLIENT: Final = pages.DOCS / "guides" / "own-client.md"
QUICK_START: Final = pages.DOCS / "quickstart.md"
CUTS: Final = 6
KILLS: Final = 3
LINES: Final = 10


async def test_the_own_client_prints_what_the_page_shows_and_resyncs(make_process: MakeProcess, tmp_path: Path) -> None:
    page = Page(OWN_CLIENT, tmp_path, await make_process())
    assert page.programs == ["link", "send", "follow", "chat"]
    for words in ("link.py", "send.py"):
        assert await page.prints(words) == page.command(words)[1] != "", words
    async with page.running("follow.py") as bob:
        assert f"{await line_of(bob)}\n" == page.command("follow.py")[1]
        await page.sends("live")
        assert await line_of(bob) == "2 alice: live"
        page.server.kill()
        await page.server.start()
        await page.sends("after the kill")
        assert await line_of(bob) == "3 alice: after the kill"
        await until(lambda: 3 in saved(page)["cursors"].values())  # a line is printed before it is saved
    await page.sends("while nobody follows")
    async with page.running("follow.py") as bob:
        assert await line_of(bob) == "4 alice: while nobody follows"


def saved(page: Page) -> Any:
    """What `follow.py` knows of its place when it is started again."""
    return json.loads((page.folder / "bob.json").read_text())


async def _over_cuts(page: Page, proxy: Proxy) -> list[str]:
    """alice writes while her line is cut before a message, and before its `ok`; what bob sees."""
    others = f'exec python chat.py {page.server.url} "$(chatd token bob)" bob.json'
    async with page.running("chat.py") as alice, page.running("", others) as bob:
        for number in range(CUTS):
            proxy.cut(requests=0) if number % 2 else proxy.cut(answers=0)
            await say(alice, f"bob cut {number}")
            await proxy.lost.wait()
            await say(alice, f"bob line {number}")
            while not (await line_of(alice)).endswith(f"alice: line {number}"):
                pass
        await say(alice, "bob end")
        seen = [await line_of(bob)]
        while not seen[-1].endswith("alice: end"):
            seen.append(await line_of(bob))
    return seen


BODIES: Final = [*(f"{what} {number}" for number in range(CUTS) for what in ("cut", "line")), "end"]


@pytest.mark.parametrize(
    "seeded",
    [
        pytest.param((), id="as-it-stands"),
        pytest.param(
            (("message = dict(self.outbox[0])", 'message = {**self.outbox[0], "cid": str(uuid.uuid4())}'),),
            id="a-new-cid-for-each-try",
        ),
        pytest.param(
            (
                ('self.outbox[0]["retry"] = True', "self.outbox.popleft()"),
                ("        self.outbox.popleft()\n\n    async def live", "\n    async def live"),
            ),
            id="out-of-the-outbox-before-the-ok",
        ),
    ],
)
async def test_the_own_client_loses_and_doubles_nothing_over_cuts(
    make_process: MakeProcess, tmp_path: Path, seeded: tuple[tuple[str, str], ...]
) -> None:
    server = await make_process(rate_messages=1_000)
    async with Proxy(server.port) as proxy:
        seen = await _over_cuts(Page(OWN_CLIENT, tmp_path, server, seeded, proxy.port), proxy)
    expected = [f"{seq} alice: {body}" for seq, body in enumerate(BODIES, 1)]
    assert (seen == expected) == (not seeded)


async def test_the_own_client_loses_and_doubles_nothing_when_the_server_is_killed(
    make_process: MakeProcess, tmp_path: Path
) -> None:
    page = Page(OWN_CLIENT, tmp_path, await make_process(rate_messages=1_000))
    others = f'exec python chat.py {page.url} "$(chatd token bob)" bob.json'
    async with page.running("chat.py") as alice, page.running("", others) as bob:
        seen = []
        for number in range(KILLS):
            for line in range(LINES):
                await say(alice, f"bob {number}.{line}")
            seen.append(await line_of(bob))  # now some are under way
            page.server.kill()
            await say(alice, f"bob {number} in the dark")
            await page.server.start()
        while len(seen) < KILLS * (LINES + 1):
            seen.append(await line_of(bob))
    bodies = [body for n in range(KILLS) for body in (*(f"{n}.{line}" for line in range(LINES)), f"{n} in the dark")]
    assert seen == [f"{seq} alice: {body}" for seq, body in enumerate(bodies, 1)]


async def test_the_runner_sees_a_program_that_prints_something_else_or_fails(
    make_process: MakeProcess, tmp_path: Path
) -> None:
    server = await make_process()
    page = Page(OWN_CLIENT, tmp_path / "a", server, (('print("I am"', 'print("You are"'),))
    assert await page.prints("link.py") != page.command("link.py")[1]
    page = Page(OWN_CLIENT, tmp_path / "b", server, (('"hello", v=1', '"hello", v=2'),))
    with pytest.raises(AssertionError, match="bad_version"):
        await page.prints("link.py")


async def test_the_echo_of_the_quick_start_answers_once_over_a_kill(make_process: MakeProcess, tmp_path: Path) -> None:
    server = await make_process()
    page, own = Page(QUICK_START, tmp_path, server), Page(OWN_CLIENT, tmp_path / "own", server)
    async with page.running("echo.py") as echo, own.running("chat.py") as alice:
        assert await line_of(echo) == "connected as echo"
        await echoes_over_a_kill(alice, server)
