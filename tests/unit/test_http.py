"""One place for plain HTTP: any head is judged without an exception, and answers are the bytes that
they were, and those of websockets.
"""

from __future__ import annotations

import re
from http import HTTPStatus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from websockets.datastructures import Headers
from websockets.http11 import Response

from chatd.ops import admin
from chatd.wire import handshake, http

TOKENS = st.text("abcXYZ-09", min_size=1, max_size=12)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"]), max_size=30)
PIECES = st.sampled_from([b"GET", b" ", b"/", b"?", b"\r", b"\n", b"HTTP/1.1", b"HTTP/1.0", b"\x00", b"\xff"])


@given(st.binary(max_size=200) | st.lists(PIECES).map(b"".join))
@example(b"GET /a?b?c HTTP/1.1\r\nHost: x\r\n\r\n")
def test_a_request_line_is_read_back_from_its_parts_or_refused(head: bytes) -> None:
    line = head.partition(b"\r\n")[0]
    read = http.request_line(head)
    shape = re.fullmatch(rb"[^ ]*( )[^ ]*( )HTTP/1\.[01]", line, re.DOTALL)
    assert (read is not None) == (shape is not None)
    if read is not None:
        target = read.path + b"?" + read.query if b"?" in line.split(b" ")[1] else read.path
        assert b" ".join([read.method, target, line[-8:]]) == line
        assert b"?" not in read.path


@given(st.sampled_from(list(HTTPStatus)), st.lists(st.tuples(TOKENS, VALUES), max_size=5), st.binary(max_size=50))
def test_an_answer_is_the_librarys_byte_for_byte(
    status: HTTPStatus, headers: list[tuple[str, str]], body: bytes
) -> None:
    assert (
        http.serialize(status, headers, body)
        == Response(status.value, status.phrase, Headers(headers), body).serialize()
    )


def test_the_admin_port_answers_as_it_did() -> None:
    refused = http.plain(HTTPStatus.METHOD_NOT_ALLOWED)
    head = (
        b"HTTP/1.1 405 Method Not Allowed\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 19\r\nAllow:"
        b" GET, HEAD\r\n"
        b"Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n"
    )
    assert admin._serialize(refused) == head + b"Method Not Allowed\n"
    assert admin._serialize(refused, with_body=False) == head
    ready = http.json(HTTPStatus.OK, {"ready": True})
    assert admin._serialize(ready) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 14\r\n"
        b'Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n{"ready":true}'
    )


@pytest.mark.parametrize(("status", "length"), [(HTTPStatus.SERVICE_UNAVAILABLE, b"20"), (HTTPStatus.NOT_FOUND, b"10")])
def test_the_chat_port_answers_as_it_did(status: HTTPStatus, length: bytes) -> None:
    data = re.sub(rb"Date: [^\r]+ GMT\r\n", b"Date: now\r\n", handshake.refusal(status))
    words = f"{status.value} {status.phrase}".encode()
    assert data == (
        b"HTTP/1.1 " + words + b"\r\nDate: now\r\nConnection: close\r\nContent-Length: " + length
        + b"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n" + words[4:] + b"\n"
    )  # fmt: skip
