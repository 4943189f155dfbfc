"""What the page promises those who use it, in a real Chromium: a question is about what it was
asked for; read is what somebody saw.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

import psycopg
import pytest

pytest.importorskip("playwright.async_api", reason="playwright is not installed: `make setup` installs it")

from playwright.async_api import expect

from tests.browser import DESK, LOW, PHONE, Browsing, Size, Tab
from tests.client import Peer
from tests.integration.test_interleavings_session import Gate
from tests.until import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PRESS: Final = "document.querySelector('dialog .danger').click()"  # also where it is not to be seen


async def say(peer: Peer, to: str, first: int, last: int) -> None:
    """m<first> ... m<last>, pipelined. In a new conversation they have these seqs."""
    ids = [await peer.post("send", to=to, cid=str(uuid.uuid4()), body=f"m{n}") for n in range(first, last + 1)]
    for one in ids:
        reply = await peer.reply(one)
        assert reply["t"] == "ok", reply


async def read_to(peer: Peer, seq: int) -> set[int]:
    """Wait until the user of this connection has read so far by another device; gives all read
    cursors that were told on the way.
    """
    told: set[int] = set()
    while seq not in told:
        told.add((await peer.push("receipt"))["read"])
        assert max(told) <= seq
    return told


async def told_so_far(peer: Peer) -> int:
    """How far the user of this connection has read, by what was told until now."""
    assert (await peer.request("ping"))["t"] == "pong"
    return max((push["read"] for push in peer.pushes if push["t"] == "receipt"), default=0)


async def bodies(peer: Peer, of: str) -> list[Any]:
    return [entry["body"] for entry in (await peer.request("history", to=of))["entries"] if entry["kind"] == "message"]


# --- signing in
# --------------------------------------------------------------------------------------------------


async def test_a_name_that_no_new_user_may_have_is_refused_with_the_reason(browsing: Browsing) -> None:
    """Right: the reason, under the name as it was typed; another name then goes in."""
    tab = await browsing.tab(browsing.user("alice"))
    await tab.page.get_by_role("button", name="Use another name").click()
    for name in ("👩\u200d💻", "bob\u200b"):
        await tab.page.get_by_label("Your name").fill(name)
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.locator("#who-fault")).to_contain_text("This name is refused: ")
        await expect(tab.page.locator("#who-fault")).to_contain_text("and U+200")
        await expect(tab.page.get_by_label("Your name")).to_have_value(name)
    await tab.sign_in(browsing.user("bob"))


# --- a question is about what it was asked for
# ------------------------------------------------------------------------


async def asked(browsing: Browsing, size: Size) -> tuple[Tab, Peer, str, str]:
    """Alice has written to two people, one after the other is on her screen, and she is asked
    whether to delete what the second got.
    """
    alice, ann, bob = map(browsing.user, ("alice", "ann", "bob"))
    other = await browsing.server.connect(alice, "other")
    await other.say(ann, "to ann")
    await other.say(bob, "to bob")
    tab = await browsing.tab(alice, size=size)
    for peer in (ann, bob):
        await tab.open(peer)
        if size is DESK:  # as the browser's history is once a narrow window was made wide
            await tab.page.evaluate("(peer) => history.pushState({ peer }, '')", peer)
        elif peer == ann:
            await tab.page.get_by_role("button", name="Back to the conversations").click()
    await tab.hit("to bob", "Delete")
    await expect(tab.dialog).to_be_visible()
    return tab, other, ann, bob


@pytest.mark.parametrize("size", [PHONE, DESK], ids=["phone", "desk"])
async def test_a_question_goes_with_what_it_was_asked_for(browsing: Browsing, size: Size) -> None:
    tab, other, ann, bob = await asked(browsing, size)
    await tab.page.go_back()
    await expect(tab.dialog).to_be_hidden()
    await tab.page.evaluate(PRESS)
    await tab.page.go_forward()
    await expect(tab.page.locator(".pane-head .name")).to_have_text(bob)
    await tab.page.evaluate(PRESS)
    await tab.settled()
    assert (
        await tab.page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('chatd.outbox')).length") == 0
    )
    assert [await bodies(other, one) for one in (ann, bob)] == [["to ann"], ["to bob"]]
    await tab.hit("to bob", "Delete")
    await tab.dialog.get_by_role("button", name="Delete").click()
    await expect(tab.page.get_by_text("You deleted this message")).to_be_visible()
    await tab.settled()
    assert [await bodies(other, one) for one in (ann, bob)] == [["to ann"], [None]]


async def test_a_question_on_a_phone_that_is_left_by_back_does_nothing_to_nobody(browsing: Browsing) -> None:
    tab, other, ann, bob = await asked(browsing, PHONE)
    await tab.page.evaluate("history.replaceState(null, '')")
    await tab.page.get_by_role("button", name="Back to the conversations", include_hidden=True).evaluate(
        "(button) => button.click()"
    )
    await expect(tab.dialog).to_be_hidden()
    await tab.page.evaluate(PRESS)
    await tab.page.reload()
    await expect(tab.page.locator(".conversation")).to_have_count(2)
    assert sorted(await tab.peers()) == sorted([ann, bob])
    assert await bodies(other, bob) == ["to bob"]


async def test_a_question_about_a_message_that_another_device_deletes_goes(browsing: Browsing) -> None:
    tab, other, _, bob = await asked(browsing, DESK)
    await other.request("delete", to=bob, cid="00000000-0000-4000-8000-000000000001", ref=1)
    await expect(tab.dialog).to_be_hidden()


async def test_an_edit_ends_with_its_conversation_and_its_words_are_kept(browsing: Browsing) -> None:
    tab, other, ann, bob = await asked(browsing, DESK)
    await tab.dialog.get_by_role("button", name="Cancel").click()
    await tab.hit("to bob", "Edit")
    await tab.writing.fill("to bob, better")
    await tab.open(ann)
    await expect(tab.writing).to_have_value("")
    await expect(tab.page.locator(".edit-bar")).to_be_hidden()
    await tab.open(bob)
    await expect(tab.writing).to_have_value("to bob, better")
    await tab.hit("to bob", "Edit")
    await tab.writing.fill("to bob, best")
    await other.request("delete", to=bob, cid="00000000-0000-4000-8000-000000000002", ref=1)
    await expect(tab.page.locator(".edit-bar")).to_be_hidden()
    await expect(tab.writing).to_have_value("to bob, better\nto bob, best")
    assert await bodies(other, ann) == ["to ann"]


async def test_an_edit_of_another_message_keeps_what_was_typed_into_the_first(browsing: Browsing) -> None:
    tab, other, _, bob = await asked(browsing, DESK)
    await tab.dialog.get_by_role("button", name="Cancel").click()
    await other.say(bob, "second")
    await tab.writing.fill("a draft")
    await tab.hit("to bob", "Edit")
    await tab.writing.fill("to bob, better")
    await tab.hit("to bob", "Edit")  # once more: nothing begins anew
    await expect(tab.writing).to_have_value("to bob, better")
    await tab.hit("second", "Edit")
    await expect(tab.writing).to_have_value("second")
    await tab.writing.fill("second, better")
    await tab.page.keyboard.press("Enter")
    await expect(tab.writing).to_have_value("a draft\nto bob, better")
    await expect(tab.message("second, better")).to_be_visible()
    assert await bodies(other, bob) == ["to bob", "second, better"]


async def test_drafts_of_one_user_are_not_shown_to_the_next(
    browsing: Browsing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else signs in on this tab, and is not welcomed yet; what was typed at the last
    moment is there when its author comes back.
    """
    tab, _, _, bob = await asked(browsing, DESK)
    alice, eve = browsing.user("alice"), browsing.user("eve")
    await tab.dialog.get_by_role("button", name="Cancel").click()
    await tab.writing.fill("a draft")
    await tab.hit("to bob", "Edit")
    await tab.writing.fill("for bob alone")
    leave, name = tab.page.get_by_role("button", name="Use another name"), tab.page.get_by_label("Your name")
    await leave.click()
    with monkeypatch.context() as held:
        gate = Gate(held, browsing.server.node.store, "list_changed")
        await name.fill(eve)
        await tab.page.keyboard.press("Enter")
        await gate.until_reached()
        await tab.page.locator("#search").fill(bob)
        await tab.page.keyboard.press("Enter")
        await expect(tab.page.locator(".pane-head .name")).to_have_text(bob)
        await expect(tab.writing).to_have_value("")
        gate.go.set()
    await expect(tab.page.locator(".side .state", has_text="online")).to_be_visible()
    await leave.click()
    await name.fill(alice)
    await tab.page.keyboard.press("Enter")
    await tab.open(bob)
    await expect(tab.writing).to_have_value("a draft\nfor bob alone")


async def test_names_that_differ_by_a_space_look_different(browsing: Browsing) -> None:
    """Both may be ids (chatd/conformance/vectors/user_ids.json).

    As HTML collapses spaces, one could pass for the other.
    """
    alice, one = browsing.user("alice"), browsing.user("bob smith")
    two = one.replace(" ", "  ")
    for name in (one, two):
        await (await browsing.server.connect(name)).say(alice)
    tab = await browsing.tab(alice)
    await expect(tab.page.locator(".conversation")).to_have_count(2)
    assert set(await tab.peers()) == {one, two}
    await tab.page.locator(".conversation").first.click()
    assert await tab.page.locator(".pane-head .name").inner_text() == two
    await tab.page.locator("#search").fill(one.replace(" ", "   "))
    assert await tab.page.locator(".start bdi").inner_text() == one.replace(" ", "   ")


# --- read is what was in view
# -----------------------------------------------------------------------------------------


async def chat(browsing: Browsing, said: int, **how: Any) -> tuple[Tab, Peer, Peer, str, str]:
    """Bob has said so much; Alice has her list on the screen.

    Gives his connection and one of another device of hers, which is told what she reads: he is not,
    before she answers.
    """
    alice, bob = browsing.user("alice"), browsing.user("bob")
    peer, own = await browsing.server.connect(bob), await browsing.server.connect(alice, "own")
    await say(peer, alice, 1, said)
    return await browsing.tab(alice, **how), peer, own, alice, bob


async def last_in_view(tab: Tab) -> int:
    """The last message whose end is in view, by its number."""
    found: int = await tab.page.evaluate(
        """() => {
          const pane = document.querySelector('.scroller');
          const bottom = pane.getBoundingClientRect().bottom + 2;
          const isAbove = (node) => node.getBoundingClientRect().bottom <= bottom;
          const seen = [...pane.querySelectorAll('.message')].filter(isAbove);
          return Number(seen.at(-1).querySelector('.text').textContent.slice(1));
        }"""
    )
    return found


async def another_epoch(browsing: Browsing, peer: Peer, name: str) -> Peer:
    """As after a restore: all begin anew. Gives the peer's next connection."""
    with psycopg.connect(browsing.database, autocommit=True) as db:
        db.execute("UPDATE meta SET epoch = %s", (uuid.uuid4().hex,))
    await peer.closed()
    return await browsing.server.connect(name)


@pytest.mark.parametrize(("missed", "restored"), [(40, False), (600, False), (600, True)])
async def test_what_was_missed_offline_is_read_as_it_comes_into_view(
    browsing: Browsing, missed: int, restored: bool
) -> None:
    tab, bob, own, alice, name = await chat(browsing, 11)
    await tab.open(name)
    await read_to(own, 11)
    await tab.offline()
    head = 11 + missed
    await say(bob, alice, 12, head)
    read = 11
    if restored:
        bob = await another_epoch(browsing, bob, name)
        own = await browsing.server.connect(alice, "other")
        (listed,) = own.welcome["conversations"]
        read = listed["read"]  # the last second of cursors may be lost
    await tab.online()
    await expect(tab.page.locator(".new + .message .text")).to_have_text(f"m{read + 1}")
    await expect(tab.line).to_be_in_viewport()
    await expect(tab.message(f"m{read + 1}")).to_be_in_viewport()
    seen = await last_in_view(tab)
    assert read + 1 < seen < 51
    await tab.unread(head - seen)
    assert min(await read_to(own, seen)) >= read
    await tab.scroll("m30")
    await tab.unread(head - 30)
    await expect(tab.page.locator(".conversation .preview-text")).to_have_text(f"m{head}")
    for last in range(100, min(head, 200), 60):  # more is fetched on the way
        await tab.scroll(f"m{last}")
        await tab.unread(head - last)
    await tab.page.get_by_role("button", name="Go to the latest message").click()
    await expect(tab.message(f"m{head}")).to_be_in_viewport()
    await tab.unread(0)
    await read_to(own, head)
    await say(bob, alice, head + 1, head + 1)
    await expect(tab.message(f"m{head + 1}")).to_be_in_viewport()
    await tab.unread(0)


async def test_what_was_read_in_part_stays_so_over_a_reload(browsing: Browsing) -> None:
    tab, _, own, alice, name = await chat(browsing, 60)
    await tab.unread(60)
    await tab.open(name)
    await expect(tab.line).to_be_in_viewport()
    await tab.scroll("m46")
    await tab.unread(14)
    await expect(tab.page.locator(".conversation .badge")).to_have_text("14")
    await read_to(own, 46)
    (listed,) = (await browsing.server.connect(alice, "other")).welcome["conversations"]
    assert (listed["read"], listed["unread"]) == (46, 14)
    await tab.page.reload()
    await expect(tab.page.locator(".new + .message .text")).to_have_text("m47")
    await expect(tab.message("m47")).to_be_in_viewport()


async def test_a_chat_with_more_unread_than_is_fetched_at_once_opens_at_the_first(browsing: Browsing) -> None:
    tab, bob, _, alice, name = await chat(browsing, 420)
    await tab.open(name)
    await expect(tab.page.locator(".new + .message .text")).to_have_text("m1")
    seen = await last_in_view(tab)
    await tab.unread(420 - seen)
    await tab.writing.fill("all right")
    await tab.page.keyboard.press("Enter")
    await expect(tab.message("all right")).to_be_in_viewport()
    await expect(tab.message("m420")).to_be_in_viewport()
    await tab.unread(0)
    await say(bob, alice, 422, 422)
    await expect(tab.message("m422")).to_be_in_viewport()


async def test_more_than_the_screen_holds_at_once_is_not_scrolled_past(browsing: Browsing) -> None:
    tab, bob, own, alice, name = await chat(browsing, 3, size=LOW)
    await tab.open(name)
    await read_to(own, 3)
    await say(bob, alice, 4, 30)
    await expect(tab.page.locator(".conversation .preview-text")).to_have_text("m30")
    await tab.settled()
    seen = await last_in_view(tab)
    assert seen < 30
    await tab.unread(30 - seen)
    assert await told_so_far(own) <= seen


# --- nobody there, nothing read
# ---------------------------------------------------------------------------------------


class Absence:
    """Ways to be away, and back."""

    def __init__(self, tab: Tab) -> None:
        self.page = tab.page

    async def idle(self) -> None:
        await self.page.clock.fast_forward("05:00")
        await expect(self.page.locator(".side .state", has_text="away")).to_be_visible()

    async def idle_over(self) -> None:
        await self.page.mouse.move(300, 300)
        await self.page.mouse.move(310, 310)

    async def unfocused(self) -> None:
        session = await self.page.context.new_cdp_session(self.page)
        # Else each page believes that it has the focus
        await session.send("Emulation.setFocusEmulationEnabled", {"enabled": False})
        other = await self.page.context.new_page()
        await other.bring_to_front()
        await until(lambda: self.page.evaluate("!document.hasFocus()"))

    async def unfocused_over(self) -> None:
        await self.page.bring_to_front()

    async def hidden(self) -> None:
        await self._visible("hidden")

    async def hidden_over(self) -> None:
        await self._visible("visible")

    async def _visible(self, state: str) -> None:
        """As Chromium tells it; without a screen it hides no page."""
        await self.page.evaluate(
            """(state) => {
              Object.defineProperty(document, 'visibilityState', { value: state, configurable: true });
              document.dispatchEvent(new Event('visibilitychange'));
            }""",
            state,
        )


@pytest.mark.parametrize("way", ["idle", "unfocused", "hidden"])
async def test_nothing_is_read_while_nobody_is_there(browsing: Browsing, way: str) -> None:
    tab, bob, own, alice, name = await chat(browsing, 3, clock=way == "idle", size=LOW)
    await tab.open(name)
    await read_to(own, 3)
    absence = Absence(tab)
    await getattr(absence, way)()
    await say(bob, alice, 4, 30)
    await expect(tab.page.locator(".conversation .preview-text")).to_have_text("m30")
    await tab.unread(27)
    await expect(tab.line).to_be_in_viewport()
    assert await tab.page.locator(".new + .message .text").inner_text() == "m4"
    assert await told_so_far(own) <= 3
    await getattr(absence, f"{way}_over")()
    seen = await last_in_view(tab)
    assert 4 <= seen < 30
    await tab.unread(30 - seen)
    assert await read_to(own, seen) <= {3, seen}
    await tab.page.get_by_role("button", name="Go to the latest message").click()
    await tab.unread(0)
    await say(bob, alice, 31, 31)
    await tab.unread(0)


# --- what the ticks say
# -----------------------------------------------------------------------------------------------


async def test_a_message_that_nobody_answered_shows_as_sent(browsing: Browsing) -> None:
    """Right: also when the other one has read it, and after a reload; the answer shows what was
    read by then.
    """
    alice, bob = browsing.user("alice"), browsing.user("bob")
    peer, own = await browsing.server.connect(bob), await browsing.server.connect(alice, "own")
    await say(own, bob, 1, 1)
    tab = await browsing.tab(alice)
    await tab.open(bob)
    await peer.request("read", to=alice, seq=1)
    tick = tab.page.locator(".message .tick").first
    await tab.settled()
    await expect(tick).to_have_attribute("aria-label", "Sent")
    await tab.page.reload()
    await expect(tick).to_have_attribute("aria-label", "Sent")
    await peer.say(alice, "an answer")
    await expect(tick).to_have_attribute("aria-label", "Read")
