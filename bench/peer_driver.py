"""chatd as a peer of the shared comparison (`peers/run.py --driver bench/peer_driver.py --peers
chatd,...`), beside other chat servers.

Loaded by that program, whose folder is on `sys.path`; so `drivers.base` is its module and nothing
of ours. chatd runs from this repository's .venv on the comparison's own PostgreSQL, its limits on
rates lifted by settings as in `bench.target`. User i is `u<i>`; all tokens are made beforehand.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

from drivers.base import MARK, Peer, ws_frame, ws_upgrade  # type: ignore[import-not-found]

ROOT = Path(__file__).resolve().parents[1]
PYTHON = next((str(p) for p in (ROOT / ".venv" / "bin" / "python",) if p.exists()), sys.executable)

# A process of its own: the comparison may run under a Python that has nothing of chatd's installed.
MAKE_TOKENS = """
import json, sys, time
from pathlib import Path
from bench.target import LIFTED
from chatd.chat.auth import KeySet, issue
keys = KeySet.development(Path(sys.argv[1]))
tokens = [issue(keys, f"u{i}", 86_400, time.time(), None, None) for i in range(int(sys.argv[2]))]
json.dump({"tokens": tokens, "lifted": LIFTED}, sys.stdout)
"""


class Chatd(Peer):  # type: ignore[misc]
    name = "chatd"
    ack_means = "sent after its batch is committed (durable)"
    lock_sql = "LOCK TABLE entries IN EXCLUSIVE MODE"
    count_sql = "SELECT count(*) FROM entries"
    settings: ClassVar[dict[str, object]] = {}

    def start(self, users: int) -> None:
        data_dir = Path(self.ctx.work) / f"{self.name}-data"
        made = subprocess.run(
            [PYTHON, "-c", MAKE_TOKENS, str(data_dir), str(users)], cwd=ROOT, check=True, capture_output=True, text=True
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
        self.spawn(
            [PYTHON, "-m", "chatd", "serve", *(f"--{n.replace('_', '-')}={v}" for n, v in settings.items())], cwd=ROOT
        )
        self.wait_port()

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
