"""Python lists as PostgreSQL arrays in binary, at the least cost a row. Pure but for `register`.

psycopg's own list dumper is general and costs 1 to 2 us an element; a batch has five arrays. These
know their element type: 0.1 us for an integer, 0.4 us for a text. The format is that of
PostgreSQL's `array_recv`: ndim, flags, element oid, then length and lower bound of the one
dimension, then each element as its length (-1: null) and its bytes, all big-endian. An empty array
has ndim 0.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

from psycopg import AsyncConnection
from psycopg.abc import Buffer
from psycopg.adapt import Dumper
from psycopg.pq import Format
from psycopg.types.numeric import Int8BinaryDumper


class Array:
    """An encoded array; the subclass gives the element type."""

    __slots__ = ("data",)
    oid: ClassVar[int]  # of the array type
    element: ClassVar[int]  # of the element type

    def __init__(self, n: int, parts: bytes) -> None:
        self.data = (
            struct.pack(">5i", 1, 1, self.element, n, 1) + parts if n else struct.pack(">3i", 0, 0, self.element)
        )


class BigintArray(Array):
    __slots__ = ()
    oid, element = 1016, 20

    def __init__(self, values: Sequence[int]) -> None:
        flat = [8] * (2 * len(values))
        flat[1::2] = values
        super().__init__(len(values), struct.pack(">" + "iq" * len(values), *flat))


class IntArray(Array):
    __slots__ = ()
    oid, element = 1007, 23

    def __init__(self, values: Sequence[int]) -> None:
        flat = [4] * (2 * len(values))
        flat[1::2] = values
        super().__init__(len(values), struct.pack(">" + "ii" * len(values), *flat))


class SmallintArray(Array):
    __slots__ = ()
    oid, element = 1005, 21

    def __init__(self, values: Sequence[int]) -> None:
        flat = [2] * (2 * len(values))
        flat[1::2] = values
        super().__init__(len(values), struct.pack(">" + "ih" * len(values), *flat))


class UuidArray(Array):
    """From UUIDs as text with hyphens."""

    __slots__ = ()
    oid, element = 2951, 2950

    def __init__(self, values: Sequence[str | None]) -> None:
        # One join, one replace and one fromhex for all. Before each element stands its length in
        # hex, -1 for a null.
        digits = "".join(["ffffffff" if v is None else "00000010" + v for v in values]).replace("-", "")
        super().__init__(len(values), bytes.fromhex(digits))


class TextArray(Array):
    __slots__ = ()
    oid, element = 1009, 25

    def __init__(self, values: Sequence[str | None]) -> None:
        parts: list[bytes] = []
        for v in values:
            if v is None:
                parts.append(b"\xff\xff\xff\xff")
            else:
                data = v.encode()
                parts.append(len(data).to_bytes(4, "big"))
                parts.append(data)
        super().__init__(len(values), b"".join(parts))


AnyArray: TypeAlias = BigintArray | IntArray | SmallintArray | UuidArray | TextArray


class _Dumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Array) -> Buffer | None:
        return obj.data


def register(conn: AsyncConnection) -> None:
    """Register the types with one connection.

    An integer is always sent as a bigint. psycopg's own dumper takes the smallest type that holds
    the value, and a statement is prepared and planned again for each combination of them: a page of
    history has four integers.
    """
    conn.adapters.register_dumper(int, Int8BinaryDumper)
    for array in (BigintArray, IntArray, SmallintArray, UuidArray, TextArray):
        dumper = type(f"{array.__name__}Dumper", (_Dumper,), {"oid": array.oid})
        conn.adapters.register_dumper(array, dumper)
