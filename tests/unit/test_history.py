"""A page of history: what fits, and each text once."""

from __future__ import annotations

import random
from typing import Any

import pytest

from chatd.chat import history
from chatd.chat.history import HistoryPage
from chatd.protocol import EDIT, MESSAGE, Stored, stored_entry

BODY = "x" * 1_000


def encode(e: Stored) -> bytes:
    return stored_entry(b"{", e, b'"alice"', b'"bob"', True)


def entry(seq: int, kind: int = MESSAGE, body: str | None = BODY, ref: int | None = None) -> Stored:
    return Stored(seq, 1, 0, kind, "c", body, ref, None, None, 1, 0)


def page_of(entries: list[Stored], most: int = 100) -> HistoryPage:
    page = HistoryPage(most, encode)
    for e in entries:
        if not page.take(e):
            break
    assert page.items == [encode(e) for e in page.entries]
    assert page._bytes == sum(map(len, page.items)) + len(page.items)
    return page


EDITED = [entry(1), *(entry(seq, EDIT, ref=1) for seq in range(2, 500))]


@pytest.mark.parametrize("forwards", [True, False])
def test_an_edit_does_not_repeat_the_text_of_a_message_in_the_page(forwards: bool) -> None:
    page = page_of(EDITED if forwards else EDITED[::-1])
    assert len(page.entries) == 499, "without it the bound would have cut the page"
    assert [e.seq for e in page.entries if e.body is not None] == [1]


@pytest.mark.parametrize("forwards", [True, False])
def test_of_the_edits_of_a_message_elsewhere_the_latest_has_the_text(forwards: bool) -> None:
    page = page_of(EDITED[100:200] if forwards else EDITED[100:200][::-1])
    assert [e.seq for e in page.entries if e.body is not None] == [200]


@pytest.mark.parametrize("most", [history.PAGE_BYTES_MAX, 500])
def test_a_page_ends_with_its_bytes_and_has_one_entry_at_least(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    monkeypatch.setattr(history, "PAGE_BYTES_MAX", most)
    page = page_of([entry(seq) for seq in range(1, 1_000)], 1_000)
    assert len(page.entries) == 1 or most - 2 * len(BODY) < page._bytes <= most + 1
    assert (most < len(BODY)) == (len(page.entries) == 1)


def test_a_page_ends_with_its_messages() -> None:
    page = page_of([entry(1), entry(2, EDIT, "new", 1), entry(3), entry(4, EDIT, "new", 3), entry(5)], 2)
    assert [e.seq for e in page.entries] == [1, 2, 3, 4]


@pytest.mark.parametrize("seed", range(20))
def test_whoever_applies_the_highest_rev_has_the_texts_as_without_it(seed: int) -> None:
    """What a client makes of a page (docs/protocol.md, section 4), in both directions."""
    rng = random.Random(seed)
    texts = {seq: f"text {seq} " + "y" * rng.randrange(500) for seq in range(1, 20)}
    log = [entry(seq, MESSAGE, text) for seq, text in texts.items()]
    for seq in range(20, 200):
        ref = rng.randrange(1, 20)
        log.append(entry(seq, EDIT, texts[ref], ref))
    log = [
        e._replace(rev=max((c.seq for c in log if c.ref == e.seq), default=None)) if e.kind == MESSAGE else e
        for e in log
    ]
    cut = log[rng.randrange(50) :]
    page = page_of(cut if rng.random() < 0.5 else cut[::-1])
    assert applied(page.entries) == applied(cut)


def applied(entries: list[Stored]) -> dict[int, tuple[int, Any]]:
    texts: dict[int, tuple[int, Any]] = {}
    for e in entries:
        about, rev = (e.seq, e.rev or 0) if e.kind == MESSAGE else (e.ref or 0, e.seq)
        if (e.kind == MESSAGE or e.body is not None) and rev >= texts.get(about, (-1, ""))[0]:
            texts[about] = (rev, e.body)
    return texts
