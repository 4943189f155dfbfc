"""The exception tree, the wire's codes and the tables of docs/protocol.md say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chatd import errors
from chatd.errors import ClientFault, CloseCode, Refused, Retryable

DOC = Path(__file__).parents[2] / "docs" / "protocol.md"


def leaves(root: type[Refused]) -> list[type[Refused]]:
    below = root.__subclasses__()
    return [leaf for one in below for leaf in leaves(one)] if below else [root]


def rows(section: int) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    text = re.search(rf"^## {section}\. .*?(?=^## |\Z)", DOC.read_text(), re.MULTILINE | re.DOTALL)
    assert text is not None
    table = [line.strip().strip("|").split("|") for line in text[0].splitlines() if line.startswith("|")]
    assert len(table) > 2
    return [[cell.strip() for cell in row] for row in table[2:]]


def test_every_error_is_in_the_table_and_every_row_is_an_error() -> None:
    documented = [row[0].strip("`") for row in rows(9)]
    ours = [leaf.code for leaf in leaves(Refused)] + [Refused.code]
    assert len(set(ours)) == len(ours)
    assert sorted(documented) == sorted(ours)


def test_the_table_says_which_errors_carry_retry_ms() -> None:
    retryable = {row[0].strip("`") for row in rows(9) if row[2] == "yes"}
    assert {row[2] for row in rows(9)} == {"yes", ""}
    assert retryable == {leaf.code for leaf in leaves(Retryable)}


def test_every_error_has_one_side_to_blame() -> None:
    for leaf in leaves(Refused):
        assert issubclass(leaf, ClientFault) != issubclass(leaf, Retryable)
        assert leaf.__name__ in dir(errors)
    assert not issubclass(errors.SettingError, Refused)


@pytest.mark.parametrize("leaf", leaves(Retryable))
def test_a_retryable_error_tells_when(leaf: type[Retryable]) -> None:
    error = leaf("wait", retry_ms=7, cid="x")
    assert (error.retry_ms, error.cid, error.field, str(error)) == (7, "x", None, "wait")


@pytest.mark.parametrize("leaf", leaves(ClientFault))
def test_a_clients_fault_tells_no_time(leaf: type[ClientFault]) -> None:
    error = leaf("wrong", field="body")
    assert (error.retry_ms, error.cid, error.field, str(error)) == (None, None, "body", "wrong")


def test_every_close_code_is_in_the_table_and_every_row_is_a_close_code() -> None:
    documented = {int(code) for row in rows(10) for code in re.findall(r"\d{4}", row[0])}
    assert documented == set(CloseCode)


def test_the_close_codes_of_ours_have_their_names_in_the_table() -> None:
    names = {int(row[0]): row[1] for row in rows(10) if row[0].isdigit()}
    for code in CloseCode:
        if code >= 4000:
            assert names[code].split("`")[1] == code.name.lower()


def test_every_close_code_says_whether_to_reconnect() -> None:
    assert all(row[2] for row in rows(10))
