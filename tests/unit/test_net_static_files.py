"""The files of the page: which encoding a client gets, and when it has the file already."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.datastructures import Headers

from chatd.net import static_files
from chatd.net.static_files import ENCODINGS, IMMUTABLE, StaticFile, chosen, is_known

ALL = ("identity", "br", "gzip")
SECURITY = (("X-Content-Type-Options", "nosniff"),)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, StaticFile]:
    (tmp_path / "assets").mkdir()
    for name in ("index.html", "icon.svg", "secret.pem", "assets/index-1a2b3c4d.js", "assets/notes.md"):
        (tmp_path / name).write_text(name)
    for name in ("index.html", "assets/index-1a2b3c4d.js"):
        (tmp_path / f"{name}.br").write_text("brotli")
        (tmp_path / f"{name}.gz").write_text("gzip")
    return static_files.read(tmp_path, SECURITY)


def test_only_files_of_a_known_type_have_a_name(files: dict[str, StaticFile]) -> None:
    assert set(files) == {"index.html", "icon.svg", "assets/index-1a2b3c4d.js"}


@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [
        ([], "identity"),
        (["gzip, deflate, br, zstd"], "br"),
        (["gzip"], "gzip"),
        (["x-gzip, GZIP"], "gzip"),
        (["deflate"], "identity"),
        (["gzip", "br"], "br"),
        (["br;q=0.5, gzip;q=0.8"], "gzip"),
        (["br;q=0.8, gzip;q=0.8"], "br"),
        (["br;q=0, gzip;q=0.001"], "gzip"),
        (["br;q=0"], "identity"),
        (["*"], "br"),
        (["*;q=0, gzip"], "gzip"),
        (["*;q=0.5, br;q=0"], "gzip"),
        (["identity, br;q=0.5"], "identity"),
        (["identity;q=0, *;q=0"], "identity"),
        (["br;q=nan, gzip;q=2"], "identity"),
        (["br;q=-1"], "identity"),
        (["br;q=\u0661"], "identity"),
        (["br;level=4"], "identity"),
        ([""], "identity"),
        ([",;,;q=1,"], "identity"),
    ],
)
def test_the_encoding_is_the_best_that_the_client_accepts(accepted: list[str], encoding: str) -> None:
    assert chosen(ALL, accepted) == encoding


def test_an_encoding_that_is_not_there_is_not_chosen() -> None:
    assert chosen(("identity", "gzip"), ["br, gzip;q=0.1"]) == "gzip"
    assert chosen(("identity",), ["br"]) == "identity"


@pytest.mark.parametrize(
    ("conditions", "known"),
    [
        ([], False),
        (['"abc"'], True),
        (['W/"abc"'], True),
        (['"x", "abc"'], True),
        (['"x"', '"abc"'], True),
        (["*"], True),
        (["abc"], False),
        (['"abc-br"'], False),
        (['"x", *'], False),
        ([""], False),
    ],
)
def test_a_client_has_the_file_by_its_etag(conditions: list[str], known: bool) -> None:
    assert is_known('"abc"', conditions) is known


@given(st.lists(st.text(st.characters(max_codepoint=255)), max_size=4))
def test_no_header_raises(values: list[str]) -> None:
    assert chosen(ALL, values) in {"identity", *ENCODINGS}
    is_known('"abc"', values)


def test_each_encoding_has_headers_and_an_etag_of_its_own(files: dict[str, StaticFile]) -> None:
    etags = set()
    for accepted, body in (("", b"index.html"), ("gzip", b"gzip"), ("br", b"brotli")):
        page = files["index.html"].respond(Headers([("Accept-Encoding", accepted)]))
        headers = dict(page.headers)
        assert (page.status, page.body) == (HTTPStatus.OK, body)
        assert headers.get("Content-Encoding", "") == accepted
        assert (headers["Vary"], headers["Cache-Control"]) == ("Accept-Encoding", "no-cache")
        assert headers["X-Content-Type-Options"] == "nosniff"
        etags.add(headers["ETag"])
    assert len(etags) == 3
    assert not any(etag.startswith("W/") for etag in etags)


def test_a_file_without_encodings_does_not_vary(files: dict[str, StaticFile]) -> None:
    page = files["icon.svg"].respond(Headers([("Accept-Encoding", "br")]))
    assert page.body == b"icon.svg"
    assert not {"Vary", "Content-Encoding"} & set(dict(page.headers))


def test_what_is_named_by_its_content_is_immutable(files: dict[str, StaticFile]) -> None:
    page = files["assets/index-1a2b3c4d.js"].respond(Headers())
    assert dict(page.headers)["Cache-Control"] == IMMUTABLE


def test_what_the_client_has_is_not_sent_again(files: dict[str, StaticFile]) -> None:
    asked = [("Accept-Encoding", "br")]
    first = dict(files["index.html"].respond(Headers(asked)).headers)
    again = files["index.html"].respond(Headers([*asked, ("If-None-Match", first["ETag"])]))
    assert (again.status, again.body) == (HTTPStatus.NOT_MODIFIED, b"")
    told = dict(again.headers)
    assert all(told[name] == first[name] for name in ("ETag", "Cache-Control", "Vary", "X-Content-Type-Options"))
    assert not {"Content-Type", "Content-Encoding"} & set(told)
    other = files["index.html"].respond(Headers([("If-None-Match", first["ETag"])]))
    assert other.status == HTTPStatus.OK, "the ETag is that of another encoding"


def test_another_content_has_another_etag(tmp_path: Path) -> None:
    etags = set()
    for text in ("one", "two"):
        (tmp_path / "index.html").write_text(text)
        page = static_files.read(tmp_path, SECURITY)["index.html"].respond(Headers())
        etags.add(dict(page.headers)["ETag"])
    assert len(etags) == 2


def test_values_are_written_into_a_document_and_its_compressed_files_are_not_used(tmp_path: Path) -> None:
    for name in ("index.html", "app.js"):
        (tmp_path / name).write_text("a {login} {other}")
        (tmp_path / f"{name}.gz").write_text("gzip")
    gzip = Headers([("Accept-Encoding", "gzip")])
    assert static_files.read(tmp_path, SECURITY)["app.js"].respond(gzip).body == b"gzip"
    index = tmp_path / "index.html"
    answers = [static_files.document(index, SECURITY, login=login).respond(gzip) for login in ("name", "token")]
    assert [answer.body for answer in answers] == [b"a name {other}", b"a token {other}"]
    etags = [dict(answer.headers)["ETag"] for answer in answers]
    assert etags[0] != etags[1]
