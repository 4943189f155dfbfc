"""Replies to sends in one conversation come in order (docs/protocol.md, section 2), also where one
batch holds entries, duplicates and refusals.
"""

from __future__ import annotations

import uuid

from tests.fix_server import MakeServer, Server


def cids(n: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(n)]


async def test_what_is_over_the_limit_is_refused_behind_the_oks_before_it(make_server: MakeServer) -> None:
    server = await make_server(rate_messages=3)
    alice = await server.connect("alice")
    ids = [await alice.post("send", to="bob", cid=cid, body="x") for cid in cids(6)]
    replies = [await alice.recv() for _ in ids]
    assert [r["id"] for r in replies] == ids
    assert [r.get("code", "ok") for r in replies] == ["ok"] * 3 + ["rate_limited"] + ["blocked"] * 2


async def test_duplicates_between_new_entries_are_answered_in_their_place(server: Server) -> None:
    alice, bob = await server.connect("alice"), await server.connect("bob")
    one, two, *fresh = cids(5)
    await alice.say("bob", "one", cid=one)
    await alice.say("bob", "two", cid=two)
    ids = [await alice.post("send", to="bob", cid=cid, body=cid) for cid in (fresh[0], two, fresh[1], one, fresh[2])]
    replies = [await alice.recv() for _ in ids]
    assert [(r["id"], r["seq"], r.get("dup", False)) for r in replies] == [
        (ids[0], 3, False), (ids[1], 2, True), (ids[2], 4, False), (ids[3], 1, True), (ids[4], 5, False),
    ]  # fmt: skip
    assert [(await bob.push())["seq"] for _ in range(5)] == [1, 2, 3, 4, 5]
    await bob.quiet()
