"""The planner's settings for every session of chatd: `PLANNER`, name -> value.

They are the same for reads, lanes, the change feed and retention.

A statement is planned once a connection (`force_generic_plan`: planning history over 38 partitions
costs 1.5 to 3 ms, running it 0.3 ms). The plan stays until PostgreSQL analyses or attaches a table.
So it may be made on empty tables and run on full ones. On empty tables all plans cost the same, so
a bad plan must be impossible, not expensive. That takes two halves (docs/decisions/0023):

1. These settings allow only nested loops over index scans, whatever the role or the database sets.
   Sorts are off, so that a scan whose order is needed must use the index that gives it. What can
   only be sorted is sorted nevertheless.
2. The text of a statement leaves one index to each table: see `sql/queries/README.md`.

`tests/integration/test_plans.py` checks every statement, in all states of the tables that have led
to another plan before.
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
    # These keep rows of an inner scan. No scan here gains by it, and they change which of two plans
    # is the cheaper.
    "enable_material": "off",
    "enable_memoize": "off",
    # The plans need these. A role or a database may have turned one off.
    "enable_nestloop": "on",
    "enable_indexscan": "on",
    "enable_indexonlyscan": "on",
    "enable_tidscan": "on",
    "enable_partition_pruning": "on",
    # No statement runs long enough to gain from compilation or from parallel workers.
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
}
