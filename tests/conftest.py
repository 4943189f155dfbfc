"""Fixtures by theme: each `fix_*.py` says what it gives."""

from __future__ import annotations

pytest_plugins = ["tests.fix_postgres", "tests.fix_process", "tests.fix_redis", "tests.fix_server", "tests.fix_cluster", "tests.fix_engine"]
