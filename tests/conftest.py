"""Fixtures by theme: each `fix_*.py` says what it gives."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

pytest_plugins = [
    "tests.fix_postgres", "tests.fix_process", "tests.fix_redis", "tests.fix_server", "tests.fix_cluster", "tests.fix_engine",
    "tests.fix_mirror", "tests.fix_pgbouncer", "tests.fix_failover",
]

# No test fails for a slow machine: two workers share two cores, and the first draw of text takes seconds there.
settings.register_profile("chatd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("chatd")
