"""The conformance vectors for servers (chatd/conformance/vectors/server) against a live server.

A file is a test; its vectors share a server, unless one asks for settings of its own. Whatever the
server sends on the way is held to `docs/schema/`.
"""

from __future__ import annotations

import functools
import json
import time
from typing import Any, Final

import jwt
import pytest

from chatd import errors, protocol
from chatd.chat import auth
from chatd.conformance import vectors
from chatd.conformance.server_vectors import ServerRunner
from chatd.conformance.values import Frame, Mismatch
from chatd.conformance.vectors import Vector
from chatd.ids import UserId
from tests.fix_server import MakeServer, Server
from tests.frame_schemas import FRAMES, problems, schemas_of

FILES: Final[dict[str, list[Vector]]] = {}
for one in vectors.load("server"):
    FILES.setdefault(one.file, []).append(one)
SEEN: set[str] = set()  # schemas of the frames that came
RAN: set[str] = set()  # files whose vectors ran in this process

# Codes that no step can bring about on a healthy node, and the tests that do.
NOT_BY_VECTOR = {
    "refused": "the database must refuse a row: tests/integration/test_store.py",
    "unavailable": "the database must be away: tests/faults",
    "internal": "a bug of ours",
}


def test_there_are_vectors() -> None:
    assert len(FILES) >= 10


@pytest.mark.parametrize("file", FILES)
async def test_vectors(file: str, make_server: MakeServer) -> None:
    RAN.add(file)
    servers: dict[str, Server] = {}
    failures = []
    for vector in FILES[file]:
        key = json.dumps(vector.settings, sort_keys=True)
        server = servers.get(key)
        if server is None:
            server = servers[key] = await make_server(**vector.settings)
        runner = ServerRunner(server.url, functools.partial(token, server), server.node.drain)
        try:
            await runner.run(vector.steps)
        except Mismatch as e:
            failures.append(f"{vector.name}: {e}")
        for frame in runner.frames:
            SEEN.update(schemas_of(frame))
            failures += [f"{vector.name}: {frame} does not fit its schema: {problem}" for problem in problems(frame)]
        if vector.is_drained:
            del servers[key]
    assert not failures, "\n" + "\n".join(failures)


def token(server: Server, user: str, options: Frame) -> str:
    """A token as `$token` asks for it."""
    now, ttl_s = time.time(), int(str(options.get("ttl_s", 3600)))
    claims = {"sub": user, "exp": int(now + ttl_s)}
    if options.get("none"):
        return jwt.encode(claims, "", "none")
    if options.get("wrong_key"):
        return jwt.encode(claims, "k" * 32, headers={"kid": "development"})
    return auth.issue(server.node.keys_in_force.keys, UserId(user), ttl_s, now, None, None)


def strings(value: Any) -> set[str]:
    """All texts in the vectors, at any depth."""
    match value:
        case str():
            return {value}
        case dict():
            return set().union(*(strings(item) for item in value.values()), value)
        case list():
            return set().union(*map(strings, value))
    return set()


ALL = strings([one.steps for some in FILES.values() for one in some])


def test_every_request_type_is_in_a_vector() -> None:
    assert set(protocol.REQUEST_TYPES) <= ALL


def test_every_error_code_is_in_a_vector_or_cannot_be() -> None:
    codes: set[str] = set()
    waiting: list[type[errors.Refused]] = [errors.Refused]
    while waiting:
        kind = waiting.pop()
        waiting += kind.__subclasses__()
        codes.add(kind.code)
    assert codes - ALL == set(NOT_BY_VECTOR)


def test_the_names_of_vectors_are_claims_that_differ() -> None:
    names = [vector.name for vectors in FILES.values() for vector in vectors]
    assert len(set(names)) == len(names)


async def test_a_wrong_vector_fails(server: Server) -> None:
    """The runner can say no: otherwise none of the above means anything."""
    hello: dict[str, Any] = {"hello": "a", "user": "@alice"}
    ping: dict[str, Any] = {"on": "a", "ask": {"t": "ping"}}
    wrong: list[list[dict[str, Any]]] = [
        [{**hello, "welcome": {"v": 2}}],
        [{**hello, "welcome": {"exp": "!"}}],
        [{**hello, "welcome": {"nothing": "*"}}],
        [{**hello, "welcome": {"limits": {"watch": "*str"}}}],
        [{**hello, "welcome": {"conversations": ["*"]}}],
        [{**hello, "welcome": {"v": {"$above": 1}}}],
        [{**hello, "welcome": {"ts": "$x", "exp": "$x"}}],
        [hello, {**ping, "reply": {"t": "err"}}],
        [hello, {**ping, "reply": {"t": {"$one_of": ["ok", "err"]}}}],
        [hello, {"on": "a", "raw": "x"}, {"on": "a", "quiet": True}],
        [hello, {"on": "a", "arrived": [{"t": "pong"}]}],
        [hello, {**ping, "reply": {}}, {"on": "a", "arrived": [{"t": "pong"}, {"t": "welcome"}]}],
        [hello, {"on": "a", "binary": "00"}, {"on": "a", "closed": 1000}],
        [{"open": "a", "http": 400}],
        [{"open": "a", "subprotocols": ["x"]}],
    ]
    for steps in wrong:
        with pytest.raises(Mismatch):
            await ServerRunner(server.url, lambda user, _: server.token(user)).run(steps)


def test_every_frame_of_the_server_came() -> None:
    """Runs last in this file: after the vectors, which fill `SEEN`."""
    if set(FILES) == RAN:  # alone (pytest -k), or shared by processes (-n without loadfile), not all came here
        assert {f"server/{name}" for name in FRAMES} == SEEN
