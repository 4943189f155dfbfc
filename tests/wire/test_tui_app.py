"""`chatd chat` under textual's Pilot, against the fake server: what is typed, and what is seen."""

from __future__ import annotations

import pytest
from textual.widgets import Button

from chatd.tui.dialogs import KEYS, Confirm
from tests.fix_fake_chatd import Frame, Session
from tests.fix_terminal import FakeChatd, terminal
from tests.until import until


async def test_a_message_goes_out_and_comes_in_with_its_signs() -> None:
    async with FakeChatd() as server, terminal(server, "bob") as t:
        await t.shows("nothing has been written here yet", "● online", "as me")
        await t.write("hello bob")
        await t.press("enter")
        await t.shows("✓   hello bob", but="✓✓")
        conv = server.say("bob", "me", "hi there")
        await t.shows("hi there")
        await until(lambda: conv.cursors.get("me") == [2, 2])
        conv.cursors["bob"] = [2, 0]
        server.session("me").push(**conv.receipt("bob"))
        await t.shows("✓✓  hello bob")
        conv.cursors["bob"] = [2, 1]
        server.session("me").push(**conv.receipt("bob"))
        await t.shows("✓✓✓ hello bob")
        assert server.texts("me", "bob") == ["hello bob", "hi there"]


async def test_the_list_has_unread_presence_and_typing_and_enter_opens() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "one", "two")
        server.say("carol", "me", "three")
        server.say("me", "carol", "four")
        async with terminal(server) as t:
            await t.shows("○ carol", "○ bob", "3 unread")
            bob = next(line for line in t.screen.splitlines() if "bob" in line)
            assert bob.split("│")[0].split() == ["○", "bob", "2"]
            server.session("me").push(t="presence", user="carol", state="away", v=10**6)
            await t.shows("◐ carol")
            carol = server.conv("me", "carol")
            server.session("me").push(t="typing", c=carol.c, **{"from": "carol"}, to="me")
            await t.press("home", "enter")
            await t.shows("carol  ◐ away  typing…", "three", "four")
            await until(lambda: carol.cursors["me"][1] == 2)
            await t.shows("2 unread")
            server.say("carol", "me", "five")
            await t.shows("five", but="typing…")
            server.say("bob", "me", "unseen")
            await t.shows("3 unread")


async def test_a_refusal_has_its_reason_and_can_be_sent_again() -> None:
    def fault(_session: Session, frame: Frame) -> Frame | None:
        return {"code": "refused"} if frame.get("body") == "no" else None

    async with FakeChatd() as server:
        server.say("bob", "me", "hi")
        async with terminal(server, "bob") as t:
            await t.shows("hi")
            server.fault = fault
            await t.write("no")
            await t.press("enter")
            await t.shows("!!  no", "not sent: refused", "!! 1 failed")
            await t.press("shift+tab", "up", "r")
            await t.shows("!!  no")
            server.fault = lambda _session, _frame: None
            await t.press("up", "r")
            await t.shows("✓   no", but="!!")
            assert server.texts("me", "bob") == ["hi", "no"]


async def test_what_waits_is_sent_after_a_cut() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "hi")
        async with terminal(server, "bob") as t:
            await t.shows("hi", "● online")
            port = server.port
            await server.stop()
            await t.shows("✕ offline")
            await t.write("later")
            await t.press("enter")
            await t.shows("..  later", ".. 1 waiting")
            await server.listen(port)
            await t.shows("✓   later", "● online")
            assert server.texts("me", "bob") == ["hi", "later"]


async def test_own_messages_are_edited_and_deleted_and_others_are_not() -> None:
    async with FakeChatd() as server:
        server.say("me", "bob", "helo")
        server.say("bob", "me", "hi")
        async with terminal(server, "bob") as t:
            await t.shows("helo", "hi")
            await t.press("up")
            await t.shows("editing: Enter saves, Esc gives up")
            await t.press("escape")
            await t.shows("helo", but="editing:")
            await t.press("up", "backspace", "l", "o", "enter")
            await t.shows("hello (edited)")
            await t.press("shift+tab", "up", "e")
            await t.shows("only your own messages")
            await t.press("up", "d")
            await t.shows("Delete this message for both?", "«hello»")
            await t.press("enter")
            await t.shows("hello (edited)", but="Delete this")
            await t.press("d", "y")
            await t.shows("(deleted)", but="hello")
            assert [e["kind"] for e in server.conv("me", "bob").log] == ["message", "message", "edit", "delete"]


async def test_changes_by_the_peer_are_shown() -> None:
    async with FakeChatd() as server:
        conv = server.say("bob", "me", "first", "second")
        async with terminal(server, "bob") as t:
            await t.shows("first", "second")
            server.add(conv, "bob", "edit", "e1", body="premier", ref=1)
            server.add(conv, "bob", "delete", "d1", ref=2)
            await t.shows("premier (edited)", "(deleted)", but="second")


async def test_a_new_conversation_is_asked_for_by_name() -> None:
    async with FakeChatd() as server, terminal(server) as t:
        await t.shows("● online")
        await t.press("ctrl+n")
        await t.press("enter")
        await t.shows("that is no user id")
        await t.write("zed")
        await t.press("enter")
        await t.shows("nothing has been written here yet")
        await t.write("ho")
        await t.press("ctrl+j", "h", "o", "enter")
        await t.shows("✓   ho")
        assert server.texts("me", "zed") == ["ho\nho"]


async def test_search_goes_from_hit_to_hit_in_what_is_loaded() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", *(f"{'needle' if n % 20 == 5 else 'hay'} {n}" for n in range(50)))
        async with terminal(server, "bob", (80, 16)) as t:
            await t.shows("hay 49")
            await t.press("ctrl+f")
            await t.write("NEEDLE")
            await t.shows("needle 45", "3 of 3 in what is loaded", "NEEDLE")
            await t.press("enter")
            await t.shows("needle 25", "2 of 3")
            await t.press("up", "up")
            await t.shows("needle 5", "1 of 3")
            await t.press("down")
            await t.shows("needle 25")
            await t.write("x")
            await t.shows("not found in what is loaded")
            await t.press("escape")
            await t.shows("needle 25", but="NEEDLE")


async def test_quitting_tells_what_is_unsent() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "hi")
        server.fault = lambda _session, frame: "ignore" if frame["t"] == "send" else None
        async with terminal(server, "bob") as t:
            await t.shows("hi")
            await t.write("stuck")
            await t.press("enter")
            await t.write("half")
            await t.press("ctrl+q")
            await t.shows("Not sent yet:", "to bob: «stuck» (is being sent)", "to bob: «half» (a draft)")
            await t.press("escape")
            await t.shows("stuck", but="Not sent yet:")
            await t.press("ctrl+q")
            await t.shows("Not sent yet:")
            assert isinstance(t.app.screen, Confirm)
            await t.pilot.click("#yes")
            await until(lambda: not t.app.is_running)


async def test_quitting_with_nothing_unsent_asks_nothing() -> None:
    async with FakeChatd() as server, terminal(server, "bob") as t:
        await t.shows("● online")
        await t.press("ctrl+q")
        await until(lambda: not t.app.is_running)


async def test_a_draft_stays_with_its_conversation() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "hi")
        server.say("carol", "me", "ho")
        async with terminal(server, "bob") as t:
            await t.shows("hi", "carol")
            await t.write("half")
            await t.press("ctrl+l", "up", "enter")
            await t.shows("ho", "draft", but="half")
            await t.press("escape", "down", "enter")
            await t.shows("half")


async def test_an_end_by_the_server_is_told_with_its_reason() -> None:
    async with FakeChatd() as server, terminal(server, "bob") as t:
        await t.shows("● online")
        server.session("me").close(4004, "replaced")
        await t.shows("■ ended: the same device connected elsewhere")


async def test_another_log_is_read_again() -> None:
    async with FakeChatd() as server:
        conv = server.say("bob", "me", "one", "lost")
        async with terminal(server, "bob") as t:
            await t.shows("one", "lost")
            server.epoch = "epoch-2"
            conv.log.pop()
            server.session("me").cut()
            await t.shows("one", but="lost")
            server.say("bob", "me", "instead")
            await t.shows("instead")


MARKS = "\u0301" * 60
HOSTILE = f"[bold red]x[/] \x1b]0;title\x07\x1b[2J \x9b5A \u202ecod.exe א a{MARKS}\r\n@click=app.quit() {{$x}}"


async def test_text_from_the_wire_is_inert_wherever_it_is_shown() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", HOSTILE)
        server.say("me", "bob", HOSTILE)
        async with terminal(server, "bob", (160, 24)) as t:
            await t.shows("[bold red]x[/]", "@click=app.quit() {$x}", r"\u202ecod.exe")
            await t.press("up")  # into the composer
            await t.shows("editing:")
            await t.press("escape", "shift+tab", "up", "d")
            await t.shows("Delete this message")
            screens = [t.screen]
            await t.press("n")
            await t.press("tab", "up")
            await t.shows("editing:")
            screens.append(t.screen)
            for screen in screens:
                assert not set(screen) & {"\x1b", "\x07", "\x9b", "\u202e", "\r"}
                assert "\u0301" * 5 not in screen


@pytest.mark.parametrize("size", [(40, 12), (200, 60), (20, 6)])
async def test_it_works_at_any_size(size: tuple[int, int]) -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", *(f"no. {n}" for n in range(30)))
        async with terminal(server, None, size) as t:
            await t.shows("bob")
            await t.press("home", "enter")
            await t.shows("no. 29")
            await t.write("hi")
            await t.press("enter")
            await t.shows("✓   hi")
            await t.press("f1")
            await t.shows("Ctrl+N" if size[0] > 30 else "anywhere")
            await t.press("escape", "ctrl+l")
            await t.shows("bob")
            assert (len(t.screen.splitlines()), max(map(len, t.screen.splitlines())) <= size[0]) == (size[1], True)


async def test_a_narrow_screen_shows_one_part_at_a_time_and_follows_a_resize() -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "from bob")
        server.say("carol", "me", "from carol")
        async with terminal(server, "bob", (40, 12)) as t:
            await t.shows("from bob", but="carol")
            await t.press("escape")
            await t.shows("carol", but="from bob")
            await t.pilot.resize_terminal(100, 20)
            await t.shows("carol", "from bob")


async def test_the_mouse_opens_selects_and_answers() -> None:
    async with FakeChatd() as server:
        server.say("me", "bob", "mine")
        server.say("bob", "me", "theirs")
        async with terminal(server) as t:
            await t.shows("bob")
            await t.pilot.click("#list", offset=(3, 0))
            await t.shows("mine", "theirs")
            y = next(y for y, row in enumerate(t.app.log_view.rows) if "mine" in row.text.plain)
            await t.pilot.click("#log", offset=(12, y))
            assert t.app.log_view.selected == ("message", 1)
            await t.press("d")
            await t.shows("Delete this message")
            await t.pilot.click(Button)  # the first one keeps it
            await t.shows("mine", but="Delete this")


async def test_nothing_is_read_while_it_cannot_be_seen() -> None:
    async with FakeChatd() as server:
        conv = server.say("bob", "me", "one")
        async with terminal(server, "bob", (40, 12)) as t:
            await until(lambda: conv.cursors.get("me") == [1, 1])
            await t.press("escape")
            server.say("bob", "me", "two")
            await t.shows("1 unread")
            assert conv.cursors["me"][1] == 1
            await t.press("enter")
            await until(lambda: conv.cursors["me"] == [2, 2])


def test_the_page_of_keys_fits_a_small_screen() -> None:
    assert max(map(len, KEYS.splitlines())) <= 36
