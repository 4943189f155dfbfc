"""Fixtures by theme: each `fix_*.py` says what it gives."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.fix_postgres", "tests.fix_process", "tests.fix_redis", "tests.fix_server", "tests.fix_cluster", "tests.fix_engine"]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist's own, which reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`make test` runs two workers (pytest-xdist, by group): the vectors stay together, because the last test of the file asks what the others saw."""
    for item in items:
        if "test_vectors.py" in item.nodeid:
            item.add_marker(pytest.mark.xdist_group("vectors"))
