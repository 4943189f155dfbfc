"""Fixtures by theme: each `fix_*.py` says what it gives."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.fix_postgres", "tests.fix_process", "tests.fix_redis", "tests.fix_server", "tests.fix_cluster", "tests.fix_engine"]

PROCESSES = ("tests/cluster/", "tests/faults/")  # real processes under load and promises in seconds: one of these at a time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` runs two workers (pytest-xdist): one takes all tests with processes, in turn, the other the rest."""
    for item in items:
        if item.nodeid.startswith(PROCESSES):
            item.add_marker(pytest.mark.xdist_group("processes"))
        elif "test_vectors.py" in item.nodeid:
            item.add_marker(pytest.mark.xdist_group("vectors"))  # its last test asks what the others saw
