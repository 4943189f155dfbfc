"""`chatd conformance`, as its user has it: exit status, lines, reports, servers that it starts."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

import pytest

from chatd.conformance import vectors
from chatd.conformance.launch import as_settings, websocket_url
from chatd.errors import SettingError
from tests.certificate import self_signed
from tests.fix_fake_chatd import FakeChatd
from tests.fix_server import MakeServer
from tests.proxy import Proxy

CHATD: Final = str(Path(sys.executable).parent / "chatd")
ECHO: Final = "/bin/echo {user}"


async def conformance(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, while this loop serves."""
    command = [CHATD, "conformance", *args]
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("CHATD_")} | variables
    return await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False, env=quiet)


async def test_a_server_that_keeps_the_protocol_gives_status_0(make_server: MakeServer, tmp_path: Path) -> None:
    server = await make_server()
    files = "--json", str(tmp_path / "r.json"), "--junit", str(tmp_path / "r.xml")
    result = await conformance(server.url, "--data-dir", str(tmp_path), "--only", "04_send", *files)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok   04_send: " in result.stdout
    assert "not run (1): needs a server with unknown_recipients=refuse" in result.stdout
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["counts"]["failed"] == 0
    assert report["counts"]["not_run"] == 1
    assert report["counts"]["passed"] >= 8
    assert len(list(ElementTree.parse(tmp_path / "r.xml").iter("testcase"))) == len(report["cases"])


async def test_a_server_that_does_not_keep_it_gives_status_1_and_says_where() -> None:
    async with FakeChatd() as fake:
        one = "an id must be greater than every earlier one"
        result = await conformance(fake.url, "--token-command", ECHO, "--only", one, "--wait-s", "0.5")
    assert result.returncode == 1
    assert f"FAIL 02_frames: {one}" in result.stdout
    assert "step " in result.stdout
    assert "0 passed, 1 failed, 0 not run" in result.stdout


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("ws://127.0.0.1:1/ws",), 1, "cannot be connected to"),
        (("http://127.0.0.1:1/",), 2, "is no address of a WebSocket"),
        ((), 2, "Give the URL of a server"),
        (("ws://h/ws", "--client", "x"), 2, "give one of URL, --launch and --client"),
        (("ws://h/ws", "--only", "no such case"), 2, "see --list"),
        (("ws://h/ws", "--secret", "short"), 2, "32 bytes"),
        (("ws://h/ws", "--secret", "s" * 32, "--token-command", ECHO), 2, "not both"),
        (("ws://h/ws", "--setting", "x"), 2, "NAME=VALUE"),
        (("--launch", "/nonexistent/server"), 1, "cannot be run"),
        (("--launch", "/bin/echo hello"), 1, "ended with status 0: hello"),
        (("--client", "/nonexistent/client"), 1, "cannot be run"),
    ],
)
async def test_what_cannot_be_tried_is_one_line(args: tuple[str, ...], status: int, says: str, tmp_path: Path) -> None:
    result = await conformance(*args, "--data-dir", str(tmp_path))
    assert (result.returncode, len(result.stderr.splitlines())) == (status, 1), result.stderr
    assert says in result.stderr


async def test_walks_are_repeated_by_their_seed(make_server: MakeServer, tmp_path: Path) -> None:
    flags = "--data-dir", str(tmp_path), "--only", "walk", "--walks", "2", "--steps", "20", "--seed", "7"
    result = await conformance((await make_server()).url, *flags)
    assert result.returncode == 0, result.stdout
    assert "ok   walks: walk 2" in result.stdout
    assert "seed of the walks: 7" in result.stdout
    assert "2 passed, 0 failed, 0 not run" in result.stdout


async def test_a_server_behind_tls_is_tried_by_wss(make_server: MakeServer, tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    self_signed(certificate, key)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    async with Proxy((await make_server()).port, tls=tls) as proxy:
        args = f"wss://127.0.0.1:{proxy.port}/ws", "--data-dir", str(tmp_path), "--walks", "1", "--steps", "20"
        refused = await conformance(*args)
        only = "--only", "01_", "--only", "04_send", "--only", "walk"
        tried = await conformance(*args, *only, SSL_CERT_FILE=str(certificate))
    assert (refused.returncode, len(refused.stderr.splitlines())) == (1, 1), refused.stderr
    assert "not trusted" in refused.stderr
    assert "SSL_CERT_FILE" in refused.stderr
    assert tried.returncode == 0, tried.stdout + tried.stderr
    assert "ok   walks: walk 1" in tried.stdout
    assert "ok   04_send: " in tried.stdout


async def test_walks_of_a_client_are_chosen_and_repeated_by_their_seed() -> None:
    command = shlex.join([sys.executable, str(Path(__file__).parents[2] / "clients" / "adapters" / "python.py")])
    result = await conformance("--client", command, "--only", "walk 2", "--steps", "20", "--seed", "7")
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok   walks: walk 2" in result.stdout
    assert "seed of the walks: 7" in result.stdout
    assert "1 passed, 0 failed, 0 not run" in result.stdout


async def test_a_token_that_the_server_refuses_is_one_line(make_server: MakeServer) -> None:
    result = await conformance((await make_server()).url, "--secret", "another secret, long enough to sign")
    assert result.returncode == 1
    assert "refuses the kit's token" in result.stderr
    assert "--keys-file" in result.stderr


async def test_a_server_that_is_there_is_tried_by_the_settings_that_it_is_said_to_have(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = await make_server(edit_window_ms=300)
    said = "--setting", "edit_window_ms=300"
    result = await conformance(server.url, "--data-dir", str(tmp_path), "--only", "05_edit", *said)
    assert result.returncode == 0, result.stdout
    assert "1 passed, 0 failed" in result.stdout
    assert "needs a server with the defaults" in result.stdout


async def test_a_server_that_the_kit_starts_has_the_settings_and_drains(tmp_path: Path, fresh_db: str) -> None:
    launch = shlex.join([CHATD, "serve", "--port", "0", "--admin-port", "0", "--data-dir", str(tmp_path)])
    only = "--only", "a draining server says so and closes with 1012", "--only", "devices_max", "--only", "one device"
    launch += " " + shlex.join(["--database-url", fresh_db])
    result = await conformance("--launch", launch, "--data-dir", str(tmp_path), *only)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed, 0 failed, 0 not run" in result.stdout


async def test_the_list_has_every_case_and_what_it_needs() -> None:
    lines = (await conformance("--list")).stdout.splitlines()
    assert len(lines) >= len(vectors.load("server"))
    assert any(line.endswith("# needs a server with devices_max=2") for line in lines)
    assert len((await conformance("--list", "--client", "x")).stdout.splitlines()) >= len(vectors.load("client"))


@pytest.mark.parametrize(
    ("printed", "url"),
    [
        ("http://127.0.0.1:80/", "ws://127.0.0.1:80/ws"),
        ("https://chat.example", "wss://chat.example/ws"),
        ("ws://[::1]:80/chat/ws", "ws://[::1]:80/chat/ws"),
        ("ws://h:1/ws.", "ws://h:1/ws"),
    ],
)
def test_the_url_that_a_server_prints_names_its_websocket(printed: str, url: str) -> None:
    assert websocket_url(printed) == url


def test_settings_are_read_as_json_or_text() -> None:
    assert as_settings(["a=1", "b=refuse", "c=true"]) == {"a": 1, "b": "refuse", "c": True}
    with pytest.raises(SettingError):
        as_settings(["=1"])
