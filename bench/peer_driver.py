"""chatd as a peer of the shared comparison (`peers/run.py --driver bench/peer_driver.py --peers
chatd,...`), beside other chat servers.

Loaded by that program, whose folder is on `sys.path`; so `drivers.base` is its module and nothing
of ours. chatd runs from this repository's .venv on the comparison's own PostgreSQL, its limits on
rates lifted by settings as in `bench.target`. User i is `u<i>`; all tokens are made beforehand.

    chatd      one node
    chatd-2    two nodes on one port (`--workers 2`; each has half of the connections, so half of the
               messages cross) with a redis-server; supervisor and Redis count as the server's CPU
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

from drivers.base import MARK, Peer, ws_frame, ws_upgrade  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parents[1]
PYTHON = next((str(p) for p in (ROOT / ".venv" / "bin" / "python",) if p.exists()), sys.executable)

# A process of its own: the comparison may run under a Python that has nothing of chatd's installed.
MAKE_TOKENS = """
import json, sys, time
from pathlib import Path
from bench.target import LIFTED, redis_server
from chatd.chat.auth import KeySet, issue
keys = KeySet.development(Path(sys.argv[1]))
tokens = [issue(keys, f"u{i}", 86_400, time.time(), None, None) for i in range(int(sys.argv[2]))]
json.dump({"tokens": tokens, "lifted": LIFTED, "redis": redis_server() if int(sys.argv[3]) else ""}, sys.stdout)
"""
READY_S_MAX = 40.0


class Chatd(Peer):  # type: ignore[misc]
    name = "chatd"
    ack_means = "sent after its batch is committed (durable)"
    lock_sql = "LOCK TABLE entries IN EXCLUSIVE MODE"
    count_sql = "SELECT count(*) FROM entries"
    settings: ClassVar[dict[str, object]] = {}
    nodes = 1

    def start(self, users: int) -> None:
        data_dir = Path(self.ctx.work) / f"{self.name}-data"
        made = subprocess.run(
            [PYTHON, "-c", MAKE_TOKENS, str(data_dir), str(users), str(int(self.nodes > 1))],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        facts: dict[str, Any] = json.loads(made.stdout)
        self.tokens: list[str] = facts["tokens"]
        self.db, self.port = self.ctx.pg.fresh_db(self.name.replace("-", "_")), self.ctx.port()
        url = f"postgresql://postgres@127.0.0.1:{self.ctx.pg.port}/{self.db}"
        settings = {
            "data_dir": data_dir,
            "port": self.port,
            "admin_port": -1,
            "database_url": url,
            "log_level": "warning",
            **facts["lifted"],
        }
        settings |= {"lane_deadline_ms": 30_000, **self.settings}  # the probe holds a lock for longer than a lane waits
        if self.nodes > 1:
            settings |= self.several(facts["redis"])
        self.spawn(
            [PYTHON, "-m", "chatd", "serve", *(f"--{n.replace('_', '-')}={v}" for n, v in settings.items())], cwd=ROOT
        )
        self.wait_port()
        for n in range(self.nodes if self.nodes > 1 else 0):
            self.wait_ready(int(str(settings["admin_port"])) + n)

    def several(self, redis_server: str) -> dict[str, object]:
        """Start the Redis; settings of a chatd that has several nodes."""
        redis_port, *admin_ports = (self.ctx.port() for _ in range(1 + self.nodes))
        where = ["--port", str(redis_port), "--bind", "127.0.0.1", "--dir", str(self.ctx.work)]
        self.spawn([redis_server, *where, "--save", "", "--appendonly", "no"])
        url = f"redis://127.0.0.1:{redis_port}"
        return {"workers": self.nodes, "redis_url": url, "admin_port": admin_ports[0]}

    def wait_ready(self, admin_port: int) -> None:
        """All nodes are there before anybody dials, or the first one would get all connections."""
        until = time.monotonic() + READY_S_MAX
        while time.monotonic() < until:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{admin_port}/readyz", timeout=1):
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        raise RuntimeError(f"{self.name}: a node is not ready; see {self.name}.log in {self.ctx.work}")

    def script(self, i: int) -> list[tuple[bytes, bytes]]:
        hello = {"t": "hello", "id": 1, "v": 1, "token": self.tokens[i], "device": "bench"}
        return [
            ws_upgrade("/ws", self.port, "Sec-WebSocket-Protocol: chatd.v1\r\n"),
            (ws_frame(json.dumps(hello).encode()), b'"t":"welcome"'),
        ]

    def message(self, i: int, j: int, text: bytes) -> bytes:
        cid = b"00000000-0000-4000-8000-00" + MARK
        return bytes(ws_frame(b'{"t":"send","id":1' + MARK + b',"to":"u%d","cid":"%b","body":"%b"}' % (j, cid, text)))

    def rules(self) -> list[tuple[bytes | str, ...]]:
        return [(b'{"t":"ok","id":1', "ack_token", "anchor"), (b'"body":"', "deliver")]


class Chatd2(Chatd):
    name = "chatd-2"
    nodes = 2
