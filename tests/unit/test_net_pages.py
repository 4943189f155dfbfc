"""What the chat port answers to plain HTTP: files by their name in a table, and nothing else."""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path

import pytest
from websockets.datastructures import Headers

from chatd.net.pages import Pages

OURS = Headers([("X-Chatd-Dev", "1"), ("Host", "127.0.0.1:8080")])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("index.html", "app.js", "secret.pem"):
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.fixture
def pages(folder: Path) -> Pages:
    return Pages(None, folder=folder)


@pytest.mark.parametrize(
    ("path", "body"),
    [("/", b"index.html"), ("/index.html", b"index.html"), ("/app.js", b"app.js"), ("/app.js?v=1", b"app.js")],
)
def test_files_are_served_with_the_policy(pages: Pages, path: str, body: bytes) -> None:
    page = pages.respond("GET", path, Headers())
    assert (page.status, page.body) == (HTTPStatus.OK, body)
    assert dict(page.headers)["Content-Security-Policy"].startswith("default-src 'none'")
    assert pages.respond("HEAD", path, Headers()) == page


@pytest.mark.parametrize("path", ["/secret.pem", "/../index.html", "//app.js", "/nothing", "/dev/token?user=alice"])
def test_everything_else_is_404(pages: Pages, path: str) -> None:
    assert pages.respond("GET", path, OURS).status == HTTPStatus.NOT_FOUND


def test_a_file_is_read_once(pages: Pages, folder: Path) -> None:
    (folder / "app.js").write_text("changed")
    (folder / "new.js").write_text("new")
    assert pages.respond("GET", "/app.js", Headers()).body == b"app.js"
    assert pages.respond("GET", "/new.js", Headers()).status == HTTPStatus.NOT_FOUND


def test_other_methods_are_told_which_there_are(pages: Pages) -> None:
    page = pages.respond("POST", "/", Headers())
    assert (page.status, dict(page.headers)["Allow"]) == (HTTPStatus.METHOD_NOT_ALLOWED, "GET, HEAD")


def test_without_the_page_its_files_are_404_and_the_rest_stays(folder: Path) -> None:
    pages = Pages(lambda user: user, has_page=False, folder=folder)
    assert [pages.respond("GET", path, OURS).status for path in ("/", "/index.html", "/app.js")] == [404] * 3
    assert [pages.respond("GET", path, OURS).status for path in ("/healthz", "/dev/token?user=a")] == [200] * 2


def test_the_page_is_shown_in_the_frames_of_named_origins_alone(folder: Path) -> None:
    def policy(pages: Pages) -> str:
        headers = dict(pages.respond("GET", "/", Headers()).headers)
        return headers["Content-Security-Policy"].rpartition("; ")[2]

    assert policy(Pages(None, folder=folder)) == "frame-ancestors 'none'"
    named = ["https://a.example", "https://b.example:8443"]
    assert policy(Pages(None, folder=folder, embedders=named)) == f"frame-ancestors {' '.join(named)}"


def test_health(pages: Pages) -> None:
    assert pages.respond("GET", "/healthz", Headers()).body == b"ok\n"


@pytest.mark.parametrize(
    ("headers", "remote", "given"),
    [
        (OURS, False, True),
        (Headers([("X-Chatd-Dev", "1"), ("Host", "localhost")]), False, True),
        (Headers([("X-Chatd-Dev", "1"), ("Host", "[::1]:80")]), False, True),
        (Headers([("Host", "127.0.0.1")]), False, False),
        (Headers([("X-Chatd-Dev", "1"), ("Host", "evil.example")]), False, False),
        (Headers([("X-Chatd-Dev", "1"), ("Host", "chat.example")]), True, True),
        (Headers([("X-Chatd-Dev", "1"), ("Host", "a"), ("Host", "b")]), True, False),
    ],
)
def test_a_development_token_is_for_our_own_page(folder: Path, headers: Headers, remote: bool, given: bool) -> None:
    pages = Pages(lambda user: f"token of {user}", remote=remote, folder=folder)
    page = pages.respond("GET", "/dev/token?user=alice", headers)
    assert page.status == (HTTPStatus.OK if given else HTTPStatus.NOT_FOUND)
    if given:
        assert json.loads(page.body) == {"token": "token of alice", "user": "alice"}
        assert dict(page.headers)["Cache-Control"] == "no-store"


@pytest.mark.parametrize("query", ["", "user=", "user=%ff", "user=" + "a" * 300])
def test_who_cannot_be_a_user_gets_no_token(folder: Path, query: str) -> None:
    pages = Pages(lambda user: user, folder=folder)
    page = pages.respond("GET", f"/dev/token?{query}", OURS)
    assert page.status == HTTPStatus.BAD_REQUEST
    assert json.loads(page.body)["error"]


def test_the_page_is_told_how_people_sign_in() -> None:
    """As `/dev/token` answers: by a name in development mode, at a loopback host or where others are let in."""
    elsewhere = Headers([("Host", "chat.example.org")])
    gives, remote, never = Pages(lambda user: user), Pages(lambda user: user, remote=True), Pages(None)
    for pages, headers, login in (
        (gives, OURS, b"name"), (gives, elsewhere, b"token"), (gives, Headers(), b"token"),
        (remote, elsewhere, b"name"), (never, OURS, b"token"),
    ):  # fmt: skip
        for path in ("/", "/index.html"):
            assert b'data-login="%b"' % login in pages.respond("GET", path, headers).body
