"""Measures chatd against its budgets: `python -m bench SCENARIO`; docs/performance.md says how to read the figures.

    __main__ ─► scenarios/NAME ─► target   the server: started on a PostgreSQL of its own, or somebody else's by --url
                     │        ─► crowd    its users: one lean connection each (client, wire)
                     │        ─► pace     when each message is due, whatever the server does (open loop)
                     └────────── ledger   what became of each message;  procs, latency, report: the figures

Pure: `pace.Schedule`, `ledger`, `latency`, `wire`. Tests in tests/unit/test_bench_*.py show that the ledger catches what it has to.
"""
