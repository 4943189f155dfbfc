"""Arrays as chatd writes them, read back by psycopg's own binary loaders."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import pq
from psycopg.adapt import Transformer

from chatd.postgres.arrays import Array, BigintArray, SmallintArray, TextArray, UuidArray


def loaded(array: Array) -> object:
    return Transformer().get_loader(array.oid, pq.Format.BINARY).load(array.data)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=300))
def test_bigints(values: list[int]) -> None:
    assert loaded(BigintArray(values)) == values


@given(st.lists(st.integers(-(2**15), 2**15 - 1), max_size=300))
def test_smallints(values: list[int]) -> None:
    assert loaded(SmallintArray(values)) == values


@given(st.lists(st.one_of(st.none(), st.uuids()), max_size=50), st.booleans())
def test_uuids_from_text_and_nulls(values: list[uuid.UUID | None], upper: bool) -> None:
    assert loaded(UuidArray([None if v is None else str(v).upper() if upper else str(v) for v in values])) == values


@given(st.lists(st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=50)), max_size=50))
def test_texts_and_nulls(values: list[str | None]) -> None:
    assert loaded(TextArray(values)) == values


@pytest.mark.parametrize("kind", [BigintArray, SmallintArray, UuidArray, TextArray])
def test_an_empty_array_has_no_dimension(kind: type[Array]) -> None:
    array = kind([])  # type: ignore[call-arg, arg-type]
    assert array.data == bytes(8) + kind.element.to_bytes(4)
    assert loaded(array) == []


def test_the_format_byte_for_byte() -> None:
    array = BigintArray([1, -1])
    assert (
        array.data.hex(" ", 4)
        == "00000001 00000001 00000014 00000002 00000001 00000008 00000000 00000001 00000008 ffffffff ffffffff"
    )


def test_a_number_out_of_range_is_an_error_here() -> None:
    with pytest.raises(Exception, match=r"int|argument|range"):
        BigintArray([2**63])
