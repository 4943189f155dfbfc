-- The feed since a snapshot. One row with kind null has the snapshot to ask with next, and the time
-- in ms; the other rows have kind and data, see sql/migrations/0003_pre_feed.sql. $1: the snapshot
-- of the last answer, null at the start. $2: past this time (ms) only the next snapshot is given:
-- the feed has grown too long (and feed_prune may have deleted rows).
-- New is what snapshot $1 does not see: all transactions from its xmax on, and those that it saw
-- running. So every row is read exactly once, in whatever order transactions commit, and a
-- transaction that runs for hours costs nothing (from xmin on, all rows since its start would be
-- read).
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
