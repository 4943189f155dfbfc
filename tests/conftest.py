"""Fixtures by theme: each `fix_*.py` says what it gives."""

from __future__ import annotations

from typing import Final

import pytest
from hypothesis import HealthCheck, settings

from tests import places  # noqa: F401 (before anything makes a file)

pytest_plugins = [
    "tests.fix_log",
    "tests.fix_postgres",
    "tests.fix_process",
    "tests.fix_redis",
    "tests.fix_server",
    "tests.fix_cluster",
    "tests.fix_redis_client",
    "tests.fix_presence_sync",
    "tests.fix_pgbouncer",
    "tests.fix_failover",
    "tests.fix_browser",
    "tests.fix_sdk",
    "tests.fix_bench",
]

# No test fails for a slow machine: three workers share two cores, and the first draw of text takes
# seconds there.
settings.register_profile("chatd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chatd")

# Workers take whole files, in this order (`--no-loadscope-reorder`): what takes long begins first,
# so that the short ones fill up the end.
ORDER: Final = (
    "tests/integration/test_bench",
    "tests/cluster/test_kills.py",
    "tests/integration/test_model.py",
    "tests/unit/test_session_order.py",
    "tests/cluster/",
    "tests/faults/",
    "tests/chaos/",
    "tests/integration/",
    "tests/oracles/test_unicode_ids_against_regex.py",
    "tests/js/",
    "tests/web/",
    "tests/site/",
    "tests/tidy/",
    "tests/wire/",
    "tests/oracles/",
    "tests/unit/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((n for n, place in enumerate(ORDER) if item.nodeid.startswith(place)), len(ORDER)))
