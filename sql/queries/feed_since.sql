-- The feed since a snapshot: first column of the one row with kind null: the snapshot to ask with next, and the time in ms; the others: kind and
-- data, see sql/migrations/0003_pre_feed.sql. $1: the snapshot of the last answer, null at the start. $2: from this time on (ms) only the snapshot is
-- wanted: it has got too much (and feed_prune may have been at it).
-- New is what that snapshot does not see, by its own words: all transactions from its xmax on, and those that it saw running. So every row comes
-- exactly once, in whatever order they commit, and a transaction that runs for hours costs nothing (from xmin on, all rows since it began were read).
-- Index feed_xid, for both.
WITH asked AS MATERIALIZED (
    SELECT $1::text::pg_snapshot AS seen, (extract(epoch FROM statement_timestamp()) * 1000)::bigint AS now_ms
)
SELECT pg_current_snapshot()::text, now_ms, NULL::smallint, NULL::bigint[] FROM asked
UNION ALL
SELECT NULL, NULL, kind, data FROM feed
WHERE xid >= (SELECT pg_snapshot_xmax(seen) FROM asked WHERE now_ms <= $2::bigint)
UNION ALL
SELECT NULL, NULL, kind, data FROM feed
WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(seen) FROM asked WHERE now_ms <= $2::bigint))
