"""What may become a user id, and that one version of Unicode says so."""

from __future__ import annotations

import configparser
import contextlib
import json
from pathlib import Path

import pytest
import unicodedata2
from hypothesis import given
from hypothesis import strategies as st
from idna import idnadata

from chatd.ids import USER_CHARS_MAX, user_id
from chatd.unicode_ids import UNICODE, new_user_id
from tests.fix_costs import Calls

ROOT = Path(__file__).parent.parent.parent
CASES = json.loads((ROOT / "chatd" / "conformance" / "vectors" / "user_ids.json").read_text())


def test_both_libraries_have_the_version_that_the_rule_names() -> None:
    """An upgrade of either is a deliberate step: the constant, the pins, docs/protocol.md and the
    vectors go with it.
    """
    assert unicodedata2.unidata_version == idnadata.__version__ == UNICODE == CASES["unicode"]
    assert f"Unicode {UNICODE}" in (ROOT / "docs" / "protocol.md").read_text()


def test_setup_pins_what_the_tables_come_from() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    wanted = dict(line.split(" ", 1) for line in config["options"]["install_requires"].split("\n") if " " in line)
    assert wanted["unicodedata2"] == f"=={UNICODE.rpartition('.')[0]}.*"  # its versions are Unicode's
    assert wanted["idna"].startswith("==")


@pytest.mark.parametrize("case", CASES["accepted"], ids=lambda case: case["about"])
def test_what_the_vectors_say_is_taken(case: dict[str, str]) -> None:
    assert new_user_id(case["id"]) == user_id(case["id"]) == case["id"]


@pytest.mark.parametrize("case", CASES["refused"], ids=lambda case: case["about"])
def test_what_the_vectors_say_is_refused(case: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a user id "):
        new_user_id(case["id"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "1 to 64"),
        ("x" * (USER_CHARS_MAX + 1), "1 to 64"),
        ("a\nb", "control"),
        ("\ud800", "control"),
        (" a", "spaces at its ends"),
        ("a\u200bb", r"U\+200B is none here"),
        ("a\u200cb", r"U\+200C is none here"),
        ("\U000e0fff", r"U\+E0FFF is none here"),
        ("\u3164", r"nothing is seen of U\+3164"),
        ("a\u034fb", r"nothing is seen of U\+034F"),
        ("e\u0301", "NFC"),
    ],
)
def test_what_is_refused_is_told_why(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        new_user_id(text)


@given(
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=USER_CHARS_MAX).filter(
        lambda s: s == s.strip()
    )
)
def test_of_ascii_all_but_controls_is_taken(text: str) -> None:
    assert new_user_id(text) == text


@given(st.one_of(st.text(max_size=70), st.text("aZ é\u0301\u200b\u200c\u200d\u0628\u094d\u0915😀\t", max_size=70)))
def test_two_ids_that_differ_by_normal_form_alone_are_never_both_taken(text: str) -> None:
    try:
        taken = new_user_id(text)
    except ValueError:
        return
    assert 1 <= len(taken) <= USER_CHARS_MAX
    assert taken == taken.strip() == unicodedata2.normalize("NFC", taken)
    assert user_id(taken) == taken
    taken.encode()


@pytest.mark.parametrize(
    "text",
    [
        ("\u0628\u200c" * 32)[:63],
        "\u0915\u094d\u200c" * 21 + "\u0915",
        "\u0915\u094d\u200d" * 21 + "\u0915",
        "\u0628\u064b\u064b\u064b\u200c" * 12 + "\u0628",
        ("\u0628\u200c\u0628\u0915\u094d\u200c\u0915" * 10)[:62],
        "\u4e2d" * USER_CHARS_MAX,
        "a" + "\u0301\u0323" * 31,
    ],
    ids=[
        "broken connections",
        "broken conjuncts",
        "half forms",
        "transparent marks",
        "two scripts",
        "no joiner",
        "marks",
    ],
)
def test_the_work_for_a_name_does_not_grow_with_the_square_of_its_joiners(text: str) -> None:
    """A name of 32 joiners took 9 ms, and a `watch` may have 200 names: one request stopped the
    node for 2 s.
    """

    def judge() -> None:
        with contextlib.suppress(ValueError):
            new_user_id(text)

    judge()  # what is cached of single characters
    with Calls() as calls:
        judge()
    assert calls.ours <= 12 * USER_CHARS_MAX
