"""The kinds of attack: each sends what a server can read, and who judges the codes of the closes
can say no.
"""

from __future__ import annotations

import json
import random
from argparse import Namespace

import pytest

from bench import old_logs
from bench.attacks.kinds import KINDS, Kind, Who
from bench.old_logs import Old
from bench.scenarios import attack
from bench.target import TargetError
from chatd.wire.framing import FrameReader

WHO = Who("mallory0", "d", "token-of-mallory", "127.0.0.1", 80, ["honest0", "honest1"], "1", "2")


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.frames is not None and kind.shakes], ids=lambda kind: kind.name
)
def test_what_a_kind_sends_is_whole_frames_and_its_requests_have_rising_ids(kind: Kind) -> None:
    """An attack that is refused by its first frame shows nothing of what it is about."""
    assert kind.frames is not None
    first = b"" if kind.first is None else kind.first(WHO)
    reader = FrameReader(1 << 16)
    events = list(reader.feed(first + kind.frames(WHO, 2, 30) + kind.frames(WHO, 32, 30)))
    while reader.more:
        events += reader.feed(b"")
    requests = [json.loads(event) for event in events if isinstance(event, bytes) and event != b"{"]
    assert len(events) >= 60
    assert not any(type(event).__name__ == "Failure" for event in events)
    if requests:
        assert [request["id"] for request in requests] == list(range(2, 62))
        assert all(request["t"] for request in requests)


def test_a_wrong_close_counts_and_so_does_none_where_there_must_be_one() -> None:
    kind = Kind("x", "", frozenset({4008}), must_end=True)
    assert attack._wrong(kind, {4008: 3}) == 0
    assert attack._wrong(kind, {4008: 3, 1011: 2}) == 2
    assert attack._wrong(kind, {}) == 1
    assert (attack._wrong(kind, {1006: 2, 4003: 1}, 100), attack._wrong(kind, {1006: 2, 4003: 1})) == (0, 3)
    assert attack._wrong(kind._replace(must_end=False), {}) == 0


def test_only_one_connection_is_held_to_the_latencies_and_any_number_to_the_rest() -> None:
    options = Namespace(
        connections=1, workers=1, budget_rss_mib=64.0, budget_ping_p99_ms=100.0, budget_send_p99_ms=250.0
    )
    assert attack._bounds(options)["ping_p99_ms"] == 100.0
    many = attack._bounds(Namespace(**{**vars(options), "connections": 100, "workers": 2}))
    assert "ping_p99_ms" not in many
    assert many["workers_died"] == 0.0
    assert many["rss_growth_mib"] == 128.0


def test_an_unknown_kind_is_one_sentence() -> None:
    with pytest.raises(TargetError, match="no attack is called nonsense"):
        attack._chosen("pongs,nonsense")
    assert [kind.name for kind in attack._chosen("reads")] == ["none", "reads"]


def test_an_old_log_has_the_edits_behind_its_messages() -> None:

    entries = list(old_logs._entries(Old("a", "b", 3, 40, 2), 1_000_000.0, random.Random(1)))
    assert [(seq, na, nb, side, kind) for seq, _, _, na, nb, side, kind, *_ in entries] == [
        (1, 1, 0, 0, 0), (2, 1, 1, 1, 0), (3, 2, 1, 0, 0), (4, 2, 1, 0, 1), (5, 2, 1, 0, 1),
    ]  # fmt: skip
    assert entries[0][-2] == 5, "the first message has been changed by the last edit"
    assert {len(str(entry[7])) for entry in entries[:3]} == {40}
