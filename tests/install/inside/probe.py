"""Asks `/readyz` of all nodes until it says what is so.

Runs on the installed machine; for each line of stdin, one of stdout.

    in    STATUS PART WORD      PART `-`: none; with 503 a part of `reasons`, with 200 one of `degraded`; WORD: how
                                its sentence begins, or `-`
    out   {"right_ms", "longest_ms", "first", "said"}     from the line to the last node's right answer; the longest
                                                          wait for an answer;
                                                          whether all first answers were right; what the last node said

A node that no longer listens (it has drained) said the last that it had to say.
"""

from __future__ import annotations

import http.client
import json
import sys
import time
from typing import Any

DEADLINE_S = 20.0
AGAIN_S = 0.01


def ask(port: int) -> tuple[int, dict[str, Any], float]:
    """Status, body, and how long it took, in ms."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read()), (time.monotonic() - began) * 1000
    finally:
        connection.close()


def is_right(status: int, said: dict[str, Any], wanted: list[str]) -> bool:
    parts = said.get("reasons" if status == 503 else "degraded", {})
    _, part, word = wanted
    return status == int(wanted[0]) and (
        not parts if part == "-" else parts.get(part, "").startswith(word.strip("-")) and part in parts
    )


def until_right(ports: list[int], wanted: list[str]) -> dict[str, Any]:
    began, longest_ms, is_first = time.monotonic(), 0.0, True
    said: dict[str, Any] = {}
    for port in ports:
        while True:
            status, said, ms = ask(port)
            longest_ms = max(longest_ms, ms)
            if is_right(status, said, wanted):
                break
            is_first = False
            if time.monotonic() - began > DEADLINE_S:
                return {"right_ms": None, "longest_ms": longest_ms, "first": False, "said": said}
            time.sleep(AGAIN_S)
    return {"right_ms": (time.monotonic() - began) * 1000, "longest_ms": longest_ms, "first": is_first, "said": said}


for line in sys.stdin:
    print(json.dumps(until_right([int(port) for port in sys.argv[1:]], line.split())), flush=True)
