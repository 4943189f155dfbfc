"""Every module of chatd has a test file, found from the packages.

`test_<module>.py` or `test_<room>_<module>.py`, anywhere below tests/; where several modules have
one name, it must import the module. A module without such a file is in `TESTED_IN`, with the file
that tests it, and why there.
"""

from __future__ import annotations

import ast
import configparser
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
UNIT: Final = ROOT / "tests" / "unit"

TESTED_IN: Final = {
    "chatd.__main__": ("integration/test_cli.py", "calls the command line"),
    "chatd.chat.cursors": ("integration/test_chat.py", "a request and its reply"),
    "chatd.chat.delivery": ("integration/test_chat.py", "its work is what other sessions see"),
    "chatd.chat.unknown_outcomes": ("integration/test_interleavings_store.py", "commits that hang, backends that wake"),
    "chatd.chat.handlers": ("integration/test_chat.py", "a request and its reply"),
    "chatd.chat.hello": ("cluster/test_hello_races.py", "what happens between listing and welcome needs a database"),
    "chatd.chat.listing": ("integration/test_items.py", "its rows are those of a database"),
    "chatd.chat.device_limit": ("cluster/test_devices.py", "devices of several nodes"),
    "chatd.chat.welcome": ("integration/test_chat.py", "the answer to a hello"),
    "chatd.chat.remote_entries": ("cluster/test_fanout.py", "an entry that another node tells of"),
    "chatd.chat.resync": ("integration/test_reads.py", "what is missed is read from the log"),
    "chatd.chat.send_errors": ("unit/test_send.py", "what the pipeline answers"),
    "chatd.chat.services": ("integration/test_chat.py", "it names parts, and makes users: all requests need it"),
    "chatd.chat.session_life": ("integration/test_chat.py", "hellos, and connections that end"),
    "chatd.chat.keys_in_force": ("integration/test_key_removal.py", "key files that change under live sessions"),
    "chatd.client.client": ("wire/test_client_life.py", "it needs a server: a fake one"),
    "chatd.client.values": ("unit/test_client_frames.py", "types alone, which frames are read into"),
    "chatd.client.testing.conversation": ("wire/test_fake_vectors.py", "the server's vectors hold the fake server"),
    "chatd.client.testing.plugin": ("wire/test_client_testing.py", "a pytest that uses it"),
    "chatd.client.testing.requests": ("wire/test_fake_vectors.py", "the server's vectors hold the fake server"),
    "chatd.client.testing.server": ("wire/test_fake_vectors.py", "the server's vectors hold the fake server"),
    "chatd.client.testing.session": ("wire/test_fake_vectors.py", "the server's vectors hold the fake server"),
    "chatd.client.testing.tokens": ("wire/test_client_testing.py", "the keys of a real chatd judge them"),
    "chatd.client.testing.world": ("wire/test_fake_vectors.py", "the server's vectors hold the fake server"),
    "chatd.client.reconnect": ("wire/test_client_life.py", "the same"),
    "chatd.client.errors": ("unit/test_client_desk.py", "it holds no logic but `of`; all that raise are tested"),
    "chatd.client.link": ("wire/test_client_connection.py", "a connection is a link with futures"),
    "chatd.client.session": ("wire/test_client_sends.py", "it needs a server: a fake one"),
    "chatd.cluster.node": ("cluster/test_devices.py", "one device at several nodes"),
    "chatd.cluster.presence_reader": ("cluster/test_presence_many.py", "subscriptions and keys of a real Redis"),
    "chatd.cluster.presence_keys": ("cluster/test_presence_sync.py", "keys of a real Redis"),
    "chatd.cluster.redis.connect": ("unit/test_client.py", "reasons and remedies are told by the client of Redis"),
    "chatd.cluster.redis.subscription": ("cluster/test_redis_client.py", "real servers of every shape"),
    "chatd.cluster.relay": ("cluster/test_fanout.py", "what one node says, sessions of another hear"),
    "chatd.config": ("unit/test_wrong_settings.py", "every value that can be wrong is in one table there"),
    "chatd.conformance.against_client": ("wire/test_adapter.py", "it needs a program that speaks the line protocol"),
    "chatd.conformance.against_server": ("integration/test_conformance_command.py", "it needs servers, good and bad"),
    "chatd.conformance.against_rules": ("integration/test_conformance_command.py", "walks over a real server"),
    "chatd.conformance.walk": ("integration/test_conformance_walks.py", "walks over a real server, and over faults"),
    "chatd.conformance.walk_device": ("integration/test_conformance_walks.py", "the same"),
    "chatd.conformance.walk_judge": ("integration/test_conformance_walks.py", "the same"),
    "chatd.conformance.played_link": ("wire/test_client_walk.py", "a connection of a client that walks"),
    "chatd.conformance.played_log": ("wire/test_client_walk.py", "what it judges wrong is what seeded faults do"),
    "chatd.conformance.played_server": ("wire/test_client_walk.py", "clients, good and bad, are connected to it"),
    "chatd.conformance.launch": ("integration/test_conformance_command.py", "it starts servers"),
    "chatd.conformance.server_vectors": ("integration/test_vectors.py", "it needs a server; a wrong vector must fail"),
    "chatd.core.sink": ("unit/test_session.py", "a type alone: connections and tests implement it"),
    "chatd.core.effects": ("unit/test_session.py", "types alone: `receive` makes them"),
    "chatd.net.connection": ("integration/test_hostile.py", "what a client may send over a socket"),
    "chatd.net.flow_control": ("faults/test_floods.py", "floods, and clients that do not read, over sockets"),
    "chatd.net.listener": ("integration/test_hostile.py", "sockets, and who opens too many"),
    "chatd.net.shared": ("unit/test_heartbeat.py", "fields and types alone, which a connection uses"),
    "chatd.ops.doctor": ("cluster/test_doctor_redis.py", "real servers; also faults/test_database_answers.py"),
    "chatd.ops.gauges": ("integration/test_admin.py", "what `/metrics` says of a node"),
    "chatd.ops.replica_check": ("faults/test_replica.py", "a real standby"),
    "chatd.ops.supervisor": ("integration/test_workers.py", "real processes"),
    "chatd.postgres.change_feed_reader": ("integration/test_feed.py", "a real database"),
    "chatd.postgres.connection": ("faults/test_forgotten.py", "connections that are gone, through a proxy"),
    "chatd.postgres.embedded_process": ("integration/test_embedded.py", "the processes of the embedded server"),
    "chatd.postgres.epoch": ("faults/test_several_servers.py", "of several servers it takes the right one"),
    "chatd.postgres.history_reads": ("faults/test_replica.py", "a real standby, which lags and dies"),
    "chatd.postgres.lane": ("integration/test_writer.py", "batches of a real database"),
    "chatd.postgres.lane_connection": ("integration/test_writer.py", "a real server, and what it answers"),
    "chatd.postgres.lane_failures": ("integration/test_writer.py", "batches that a real database refuses"),
    "chatd.postgres.lanes": ("integration/test_writer.py", "it chooses among lanes of a real database"),
    "chatd.postgres.old_primaries": ("integration/test_log_moved.py", "servers of which one is old"),
    "chatd.postgres.partitions": ("integration/test_retention.py", "partitions of a real database"),
    "chatd.postgres.planner": ("integration/test_plans.py", "settings alone: every statement is held to them"),
    "chatd.postgres.read_pool": ("integration/test_store.py", "queries of a real database"),
    "chatd.postgres.rows": ("integration/test_store.py", "types alone"),
    "chatd.postgres.state_flush": ("integration/test_locked_rows.py", "rows that another transaction holds"),
    "chatd.postgres.url": ("unit/test_wrong_settings.py", "all that can be wrong with a setting is in one table there"),
    "chatd.postgres.watch": ("integration/test_readiness.py", "what it sees is what a probe is told"),
    "chatd.request_decoders": ("unit/test_protocol.py", "all that `decode` gives and refuses"),
    "chatd.request_types": ("unit/test_protocol.py", "types alone: `decode` makes them"),
    "chatd.tui.conversation_list": ("wire/test_tui_app.py", "its lines are made by wording"),
    "chatd.tui.dialogs": ("wire/test_tui_app.py", "they stand on top of the app"),
    "chatd.tui.search_box": ("wire/test_tui_app.py", "what it finds is in the log of the app"),
    "chatd.server": ("integration/test_chat.py", "all parts of a node at work"),
}  # fmt: skip


def _dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES: Final = [_dotted(path) for path in sorted((ROOT / "chatd").rglob("*.py")) if path.name != "__init__.py"]
STEMS: Final = Counter(name.rsplit(".", 1)[1] for name in MODULES)
TEST_FILES: Final = sorted((ROOT / "tests").rglob("test_*.py"))


@cache
def _imported(file: Path) -> frozenset[str]:
    names = set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{one.name}" for one in node.names)}
    return frozenset(names)


def found(module: str) -> list[Path]:
    """Its test files, by their names."""
    *_, room, stem = module.split(".")
    return [
        file
        for file in TEST_FILES
        if file.stem == f"test_{room}_{stem}"
        or (file.stem == f"test_{stem}" and (STEMS[stem] == 1 or module in _imported(file)))
    ]


def pure() -> list[str]:
    """All modules of the contract `pure` in setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    named = config["importlinter:contract:pure"]["source_modules"].split()
    return [module for module in MODULES if any(f"{module}.".startswith(f"{name}.") for name in named)]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_test_file(module: str) -> None:
    elsewhere = TESTED_IN.get(module)
    if elsewhere is None:
        assert found(module), f"no test_{module.rsplit('.', 1)[1]}.py; write one, or name the file in TESTED_IN"
    else:
        assert not found(module), f"it has {found(module)}: take it out of TESTED_IN"
        assert (ROOT / "tests" / elsewhere[0]).exists()
        assert elsewhere[1]


def test_the_table_names_modules_that_there_are() -> None:
    assert set(TESTED_IN) <= set(MODULES)


@pytest.mark.parametrize("module", pure())
def test_every_pure_module_has_a_unit_test(module: str) -> None:
    files = found(module) or [ROOT / "tests" / TESTED_IN[module][0]]
    no_code = module in TESTED_IN and "alone" in TESTED_IN[module][1]
    assert no_code or any(UNIT in file.parents for file in files)
