"""Measures chatd against its budgets:

`python -m bench --help`; docs/performance.md says how to read the figures.

    __main__ ─► scenarios/NAME ─► target    what is measured: PostgreSQL, Redis, nodes, each a child; or somebody
                                            else's server by --url
                     │        ─► gang      the generators: processes of their own, told what to do over a pipe
                     │              └─► generator ─► loads/NAME    what one of them does:
                     │                                  crowd      its users, one lean connection a device (client,
                     │                                             wire), each at a node (layout)
                     │                                  contacts   who writes to whom
                     │                                  pace       when each thing is due, whatever the server does
                     │                                             (open loop)
                     │                                  ledger     what became of each message
                     │                                  attacks    the kinds of attack, and one connection of it;
                     │                                             slow_line: a slow line
                     │        ─► sending   a measured phase of messages, which most scenarios have as subject or
                     │                     beside it
                     │        ─► beside    honest users beside what is measured, and what they feel
                     │        ─► contact_logs    a database in which each user has many contacts (contacts)
                     │        ─► first_visit    the page's first screen, over a line that is long and slow (long_line)
                     │        ─► watch, fill, old_logs, procs    what a server holds over time; a database full of
                     │                                           history; CPU and memory from /proc
                     └──────────► report ─► latency (HDR histograms), page (HTML)
    compare    what of two runs is better or worse than noise
    budget     runs all, and holds them to budgets.toml

Pure: `pace.Schedule`, `layout`, `contacts`, `ledger`, `latency`, `wire`, `page`, `attacks.kinds`, and the judges in
`compare`, `budget`, `watch`, `saturate.search`, `fill.plan`. Tests in tests/unit/test_bench_*.py
show that each judge can say no.
"""
