"""How every session of chatd has its plans made:

`PLANNER`, name -> value, the same for reads, lanes, the feed and retention.

A statement is planned once a connection (`force_generic_plan`: planning history over 38 partitions
costs 1.5 to 3 ms, running it 0.3 ms). The plan stays until PostgreSQL analyses or attaches a table.
It may be made on empty tables and run on full ones. On empty tables all plans cost the same, so
what must not happen must be impossible, not dear. Two halves, and a statement needs both
(docs/decisions/0023):

1. These settings leave nested loops over index scans, whatever the role or the database sets. Sorts
   are off so that a scan whose order is wanted must be by the index that gives it; what can only be
   sorted is sorted all the same.
2. The text of a statement leaves one index to a table: see `sql/queries/README.md`.

`tests/integration/test_plans.py` holds every statement to it, in all states of the tables that made
another plan once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

PLANNER: Final[Mapping[str, str]] = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "enable_sort": "off",
    # What would keep rows of an inner scan: no scan here is worth it, and they change which of two
    # plans is the cheaper.
    "enable_material": "off",
    "enable_memoize": "off",
    # What the plans are made of. A role or a database may have turned one off.
    "enable_nestloop": "on",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_tidscan": "on",
    "enable_partition_pruning": "on",
    # No statement is long enough to be compiled or to be shared out among processes.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
}
